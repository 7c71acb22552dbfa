"""A shim's keeper: the process that is there for as long as the shim, and does next to nothing.

A shim is two processes. The *keeper* is the one whose pid is the shim's. It is the parent of the containers' processes
and outlives every worker. The *worker*, a fork of it, does the work (``shim.server``). To create and start a
container Python writes to two megabytes of what a fork shares with its parent, so a worker that has nothing to do gives
what it holds to the keeper and ends (``shim.handover``); the keeper forks another when something happens. The keeper

* waits for what the last worker waited for, the next client among others;
* reaps its children, which the OCI runtime has left: tells the worker of those that it knows, and nobody of others
  (``shim.link`` has the words);
* ends with its worker, as the worker does with it: when either is killed, the shim is gone as a whole.

To touch few pages this is plain code on system calls, with few objects that come and go.
"""

import _signal  # type: ignore[import-not-found]  # not signal, whose wrappers cost memory
import _socket  # not socket, for the same reason
import fcntl
import gc
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from runtimed.linux import process
from shim import link, log
from shim.link import Link

_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
_RIGHTS_SIZE = _socket.CMSG_SPACE(4 * link.AT_ONCE)
_FORK_AGAIN_S = 0.2


class Start:
    """What a worker starts with."""

    __slots__ = ("keeper", "keepers_fds", "link", "state")

    def __init__(self, keeper: int, keepers_fds: frozenset[int], link: Link, state: int) -> None:
        self.keeper = keeper  # the shim's pid
        self.keepers_fds = keepers_fds  # which the worker inherits, and need not hand over
        self.link = link
        self.state = state  # descriptor of what the last worker has left; -1: this is the first


class Keeper:
    """The keeper of a shim, whose workers call *work*.

    The first one takes the descriptors *given* with it; those *kept* the keeper holds for all of them.
    """

    def __init__(self, work: Callable[[Start], None], given: Sequence[int] = (), kept: Sequence[int] = ()) -> None:
        self._work = work
        self._socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.link = Link(theirs)
        self._signals, self._signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pid = os.getpid()
        self._worker = 0  # its pid; 0: at rest
        self._status: int | None = None  # of a worker that ended without a hand-over, and so the shim's
        self._holding = False
        self._known: set[int] = set()  # children of which the worker is told
        self._heirlooms: list[int] = []  # the worker's, of which the next one is
        self._taken = list(given)
        self._state = -1
        self._patience_ms: int | None = None
        self._watched: list[int] = []  # what wakes a worker
        self._poll = select.poll()
        for fd in (self._socket.fileno(), self._signals):
            self._poll.register(fd, select.POLLIN)
        self.fds = frozenset({self._socket.fileno(), theirs.fileno(), self._signals, self._signalled, *kept})

    def fileno(self) -> int:
        """Return the descriptor that is readable when the worker has said something."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close what it has opened; a process that ends need not."""
        _signal.set_wakeup_fd(-1)
        self._socket.close()
        self.link.close()
        os.close(self._signals)
        os.close(self._signalled)

    def start(self) -> None:
        """Start the first worker. Raises OSError: there can be none."""
        gc.disable()
        _signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        for number in (_signal.SIGCHLD, _signal.SIGTERM):
            _signal.signal(number, _nothing)  # the pipe has the number
        self._fork()

    def run(self) -> int:
        """Keep the shim until it ends; return its status, which is 0 if it was shut down."""
        while self._status is None:
            wakes = self._wait()
            self.attend()
            if wakes and not self._worker:
                self._wake()
        return self._status

    def attend(self) -> None:
        """Do what the worker says, and see to children that have ended."""
        self._listen()
        self._reap()

    def _wait(self) -> bool:
        """Wait for something to happen; return whether it is for a worker."""
        ready = self._poll.poll(self._patience_ms)
        wakes = not ready
        for fd, _ in ready:
            if fd == self._signals:
                if _signal.SIGTERM in os.read(fd, link.MAX_PACKET):
                    self._socket.send(b"terminate")
            elif fd != self._socket.fileno():
                wakes = True
        return wakes

    def _wake(self) -> None:
        try:
            self._fork()
        except OSError as exc:  # out of memory, or of processes
            log.error(f"the shim cannot be woken: {exc.strerror}")
            time.sleep(_FORK_AGAIN_S)
            self._patience_ms = 0

    def _fork(self) -> None:
        """Start a worker, and let go what it takes with it."""
        pid = os.fork()
        if pid == 0:
            self._be_worker()
        self._worker = pid
        self._drop()

    def _be_worker(self) -> NoReturn:
        status = 1
        try:
            process.end_with_parent()
            if os.getppid() == self._pid:
                _signal.set_wakeup_fd(-1)
                _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
                _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)  # the keeper says it
                gc.enable()
                self._work(Start(self._pid, self.fds, self.link, self._state))
                status = 0
        except BaseException:
            import traceback  # here: it loads much, and is hardly ever needed

            traceback.print_exc()
        finally:
            os._exit(status)

    def _listen(self) -> None:
        while True:
            flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
            try:
                packet, rights, flags, _ = self._socket.recvmsg(link.MAX_PACKET, _RIGHTS_SIZE, flags)
            except BlockingIOError:
                return
            if flags & _socket.MSG_CTRUNC:
                raise OSError("what a worker handed over did not arrive")
            word, _, rest = packet.partition(b" ")
            if word == b"chdir":
                process.set_name("runtimed-shim")
                os.chdir(rest)
            else:
                self._do(word, [int(number) for number in rest.split()], rights)

    def _do(self, word: bytes, numbers: list[int], rights: list[Any]) -> None:
        if word == b"hold":
            self._holding = True
        elif word == b"free":
            self._holding = False
        elif word == b"adopt":
            self._adopt(numbers[0])
        elif word == b"inherit":
            self._heirlooms.append(numbers[0])
        elif word == b"take":
            self._take(numbers, rights)
        elif word == b"watch":
            self._watch(numbers)
        elif word == b"drop":
            self._drop()
        elif word == b"rest":
            self._state, patience = numbers
            self._patience_ms = None if patience < 0 else patience
            self._watch((self.link.fileno(),))  # what is said to nobody
            self._worker = 0  # what is left of it is a child like others
            self._known.update(self._heirlooms)
            self._heirlooms.clear()

    def _adopt(self, pid: int) -> None:
        try:
            os.waitid(os.P_PID, pid, _ENDED)
            self._known.add(pid)
        except ChildProcessError:
            self._socket.send(b"lost %d" % pid)

    def _take(self, numbers: list[int], rights: list[Any]) -> None:
        received = [fd for _, _, data in rights for fd in memoryview(data).cast("i")]
        self._taken += numbers
        # By way of numbers above all: one that was received may have the number that another is to have.
        above = max(numbers) + 1
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in received]
        for fd in received:
            os.close(fd)
        for fd, number in zip(moved, numbers, strict=True):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)

    def _watch(self, fds: Sequence[int]) -> None:
        for fd in fds:
            self._poll.register(fd, select.POLLIN)
            self._watched.append(fd)

    def _drop(self) -> None:
        for fd in self._watched:
            self._poll.unregister(fd)
        for fd in self._taken:
            os.close(fd)
        self._watched.clear()
        self._taken.clear()
        self._heirlooms.clear()
        self._patience_ms = None

    def _reap(self) -> None:
        while (pid := _ended()) and self._status is None:
            self._listen()  # what the worker said of it before it ended
            if self._holding and pid not in self._known and pid != self._worker:
                self._reap_known()  # of all the kernel names the same one again and again
                return
            self._bury(pid)

    def _reap_known(self) -> None:
        for pid in (*self._known, self._worker):
            try:
                if pid and os.waitid(os.P_PID, pid, _ENDED) is not None:
                    self._bury(pid)
            except ChildProcessError:
                continue  # not inherited yet: the last worker is still ending

    def _bury(self, pid: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status = code if code >= 0 else 128 - code
        if pid == self._worker:
            self._status = status
        elif pid in self._known:
            self._known.discard(pid)
            self._socket.send(b"exit %d %d %d" % (pid, status, time.time_ns()))


def _ended() -> int:
    """Return the pid of a child that has ended, which stays as it is; 0 if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, _ENDED)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0


def _nothing(number: int, frame: object) -> None:
    pass
