"""Clients that are attached to a container: what it writes to its log comes on a FIFO of theirs too.

The daemon makes the FIFO, opens it for reading, and asks for it (runtimed.shim.v1.Attach); when it closes its end the
shim forgets the FIFO. What comes are pieces: a byte for the stream (1 stdout, 2 stderr), the length (four bytes, big
endian), and as many bytes of what the process wrote. A piece of stream 0, without bytes, is the last: there is no more.

What a client has not taken waits in the FIFO, and when that is full the process waits too, but not for long: a client
that does not take a piece within three seconds is dropped. Its FIFO ends without the last piece.

Nothing of this is there while nobody is attached.
"""

import os
import stat
from collections.abc import Sequence
from typing import Any, Protocol

from runtimed.errors import InvalidArgument, os_errors
from shim import loop, poller

_PATIENCE_S = 3.0
_NUMBERS = {"stdout": b"\x01", "stderr": b"\x02"}
_END = bytes(5)


class Source(Protocol):
    """A stream of the process, which is read from."""

    ended: loop.Event

    def hold(self) -> None:
        """Read no more for now."""

    def go_on(self) -> None:
        """Read again."""


class Clients:
    """Those who are attached to one log, whose streams are *sources*."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._clients: list[_Client] = []

    def add(self, path: str) -> None:
        """Attach a client. Raises NotFound, InvalidArgument: *path* is no FIFO that somebody has open for reading."""
        self._clients.append(_Client(path, self))
        self.end()

    def give(self, stream: str, data: bytes) -> None:
        """Give what the process wrote to everybody."""
        if not self._clients:
            return
        piece = _NUMBERS[stream] + len(data).to_bytes(4, "big") + data
        for client in list(self._clients):
            client.give(piece)
        if self._are_behind():
            for source in self._sources:
                source.hold()

    def end(self) -> None:
        """Tell everybody that there is no more, if all streams have ended."""
        if all(source.ended.is_set() for source in self._sources):
            for client in list(self._clients):
                client.end()

    async def gone(self) -> None:
        """Wait until all have been given everything, or were dropped. Call :meth:`end` first."""
        for client in list(self._clients):
            await client.gone.wait()

    def look(self, client: "_Client") -> None:
        """*client* has been given everything, or is gone."""
        if client.gone.is_set() and client in self._clients:
            self._clients.remove(client)
        if not self._are_behind():
            for source in self._sources:
                source.go_on()

    def _are_behind(self) -> bool:
        return any(client.is_behind for client in self._clients)


class _Client:
    """One FIFO, and what does not fit into it."""

    def __init__(self, path: str, clients: Clients) -> None:
        self.gone = loop.Event()
        self._clients = clients
        self._unsent = bytearray()
        self._is_ending = False
        self._patience: poller.Timer | None = None
        with os_errors(f"attached client's FIFO {path}"):
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise InvalidArgument(f"attached client's {path} is not a FIFO")
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # who is behind keeps the worker awake
        if not self.gone.is_set():
            self._watch()

    @property
    def is_behind(self) -> bool:
        return bool(self._unsent)

    def give(self, piece: bytes) -> None:
        if self.gone.is_set():
            return
        was_behind = self.is_behind
        self._unsent += piece
        if not was_behind:
            self._write()
            if self.is_behind:
                poller.add_writer(self._fd, self._write_on)
                self._patience = poller.call_later(_PATIENCE_S, self._drop)

    def end(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self.give(_END)
            self._close_if_done()

    def _watch(self) -> None:
        poller.add_reader(self._fd, self._drop, resumable=True)  # called when nobody has it open for reading any more

    def _write(self) -> None:
        try:
            del self._unsent[: os.write(self._fd, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._drop()

    def _write_on(self) -> None:
        self._write()
        if self.is_behind or self.gone.is_set():
            return
        poller.remove_writer(self._fd)
        self._be_patient_no_more()
        self._close_if_done()
        self._clients.look(self)

    def _close_if_done(self) -> None:
        if self._is_ending and not self.is_behind:
            self._drop()

    def _drop(self) -> None:
        """Forget the client, whatever it has not been given."""
        if self.gone.is_set():
            return
        self._unsent.clear()
        self._be_patient_no_more()
        poller.remove_reader(self._fd)
        poller.remove_writer(self._fd)
        os.close(self._fd)
        self.gone.set()
        self._clients.look(self)

    def _be_patient_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
