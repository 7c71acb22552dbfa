"""Starting worker processes: they are forked from a parent that has loaded what they need (:mod:`.forking`)."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from runtimed.errors import Unavailable, from_os_error, os_errors
from runtimed.workers import proxies

log = logging.getLogger(__name__)

_END_LIMIT_S = 10.0
_MESSAGE_SIZE = 8  # bytes; forking.MESSAGE, which is not loaded here with all that it loads

# Not "-m": the worker must be the daemon's own code wherever that was loaded from, while -I keeps the environment
# and the working directory out of its module path.
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from runtimed.workers import forking; forking.main()"
_CODE = Path(__file__).parents[2]
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", *proxies.VARIABLES)


class Process:
    """A process that the parent has forked."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.status: int | None = None  # as that of subprocess.Popen; None also if nobody knows
        self._pidfd = pidfd
        self._gone = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        return not self._gone.is_set()

    def kill(self) -> None:
        """Kill it, if it is still there."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> None:
        """Wait until it has ended and is reaped."""
        await self._gone.wait()

    def ended(self, status: int | None) -> None:
        """Take note of its end."""
        self.status = status
        self._gone.set()
        os.close(self._pidfd)

    def watch(self) -> None:
        """Notice the end by oneself, because the parent that would tell is gone; it has this one killed."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._pidfd)
            self.ended(None)

        loop.add_reader(self._pidfd, gone)


class Nursery:
    """Forks worker processes. The parent is started for the first, and ends some time after the last."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._parent: asyncio.subprocess.Process | None = None
        self._sock: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._asked: deque[asyncio.Future[Process]] = deque()  # answers come in the order of the requests
        self._forked: dict[int, Process] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """See that the parent is there, or on its way."""
        async with self._starting:
            if self._sock is None:
                await self._start()

    async def fork(self, control: socket.socket) -> Process:
        """Return a new worker process that takes its jobs from *control*.

        Raises:
            Unavailable: the parent has gone.
            ResourceExhausted and others: there can be no more processes.
        """
        await self.start()
        future: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        try:
            assert self._sock is not None
            socket.send_fds(self._sock, [b"w"], [control.fileno()])
        except OSError as exc:
            self._asked.remove(future)
            raise Unavailable(f"worker process cannot be asked for: {exc.strerror}; try again") from None
        return await future

    async def close(self) -> None:
        """End the parent, and so all that it has forked; wait for it."""
        self._part()
        if self._ending:
            await asyncio.wait(self._ending)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with theirs, os_errors("worker process"):
                parent = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-c", _PROGRAM, _CODE, str(theirs.fileno()), str(os.getpid())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    cwd="/",
                    start_new_session=True,  # ^C in the daemon's terminal is the daemon's to handle
                )
        except BaseException:
            ours.close()  # also what ends a process that has started
            raise
        self._parent, self._sock = parent, ours
        asyncio.get_running_loop().add_reader(ours, self._hear, ours)
        self._rest()

    def _hear(self, sock: socket.socket) -> None:
        try:
            data, given, _, _ = socket.recv_fds(sock, _MESSAGE_SIZE, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            data, given = b"", []
        if not data:
            log.warning("the parent of worker processes ended", extra={"pid": self._parent and self._parent.pid})
            self._part()
            return
        pid, status = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (0, 4))
        if given:
            self._born(pid, *given)
        elif pid == 0:
            self._answer(from_os_error(OSError(status, os.strerror(status)), "worker process"))
        elif process := self._forked.pop(pid, None):
            process.ended(status)
            self._rest()

    def _born(self, pid: int, pidfd: int) -> None:
        process = self._forked[pid] = Process(pid, pidfd)
        self._rest()
        if not self._answer(process):
            process.kill()  # whoever asked has given up

    def _answer(self, answer: Process | Exception) -> bool:
        future = self._asked.popleft()
        if future.done():
            return False
        if isinstance(answer, Process):
            future.set_result(answer)
        else:
            future.set_exception(answer)
        return True

    def _rest(self) -> None:
        """Have the parent end when nothing of it has been there for a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._forked:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._asked:
            self._rest()
        else:
            self._part()

    def _part(self) -> None:
        """Leave the parent, which ends at that; the next one is another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is None or self._parent is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        task = asyncio.create_task(_ended(self._parent))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        self._sock = self._parent = None
        while self._asked:
            self._answer(Unavailable("the parent of worker processes ended; try again"))
        for process in self._forked.values():
            process.watch()
        self._forked.clear()


async def _ended(parent: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_END_LIMIT_S):
            await parent.wait()
    except TimeoutError:
        log.warning("the parent of worker processes does not end; it is killed", extra={"pid": parent.pid})
        parent.kill()
        await parent.wait()
