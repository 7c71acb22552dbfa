"""Between a shim's keeper and its worker: packets on a socket pair, of which the keeper holds both ends.

So what the keeper says while there is no worker waits for the next one. To the keeper::

    chdir PATH         be a shim from now on, in that working directory
    hold               a child that it does not know may turn out to be a process of a task: reap none such
    free               that is over
    adopt PID          say how this child of yours ends
    inherit PID        a child of the worker's, which becomes one of yours with `rest`: say then how it ends
    take FD ...        descriptors (SCM_RIGHTS), to be held by the same numbers
    watch FD ...       of those: wake a worker when one is readable
    drop               forget what was taken, or is to be inherited: the worker goes on
    rest FD MS         the worker ends. One of those taken is its state for the next one, to be woken after so many
                       milliseconds at the latest (-1: whenever something happens)

and to the worker::

    exit PID STATUS NS how a child has ended (exit code, or 128 + signal), and when: nanoseconds since the epoch
    lost PID           that is no child of the keeper's
    terminate          the keeper was sent SIGTERM
"""

import _socket  # not socket, whose wrappers cost each shim 0.1 MB of memory
import array
import os
from collections.abc import Callable, Sequence

MAX_PACKET = 8192  # bytes; a path has 4096 at most
AT_ONCE = 200  # descriptors in a packet; the kernel takes 253


class Link:
    """The worker's end."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def say(self, *words: object) -> None:
        """Send a packet. Raises OSError."""
        self._socket.send(os.fsencode(" ".join(map(str, words))))

    def give(self, fds: Sequence[int]) -> None:
        """Have the keeper take *fds*. Raises OSError: it has taken some of them."""
        for chunk in _chunks(fds):
            packet = " ".join(map(str, ("take", *chunk))).encode()
            self._socket.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", chunk))])

    def watch(self, fds: Sequence[int]) -> None:
        for chunk in _chunks(fds):
            self.say("watch", *chunk)

    def hear(self, said: Callable[[list[bytes]], None]) -> None:
        """Call *said* with the words of each packet that has come."""
        while True:
            try:
                packet = self._socket.recv(MAX_PACKET, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            said(packet.split())


def _chunks(fds: Sequence[int]) -> list[Sequence[int]]:
    return [fds[at : at + AT_ONCE] for at in range(0, len(fds), AT_ONCE)]
