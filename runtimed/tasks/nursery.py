"""The daemon's side of the warm parent that forks shims; what the two say to each other stands in shim/nursery.py."""

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from runtimed.errors import Internal, Unavailable, os_errors
from runtimed.linux.rlimit import restore_nofile
from runtimed.tasks.environment import for_children
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_LARGEST_PACKET = 64 << 10  # bytes
_READY_WITHIN_S = 2.0
_ANSWER_WITHIN_S = 10.0
_STEADY_AFTER_S = 5.0  # one that lives shorter than this is not started again at once
_LONGEST_PAUSE_S = 30.0


class Nursery:
    """Keeps a warm parent running. Requests may be made at any time, also several at once.

    *rehearsal* is a directory that the parent makes, and removes again, while it starts; the one around it exists.
    """

    def __init__(self, rehearsal: Path) -> None:
        self._rehearsal = rehearsal
        self._supervising: asyncio.Task[None] | None = None
        self._sock: socket.socket | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()  # answers come in the order of the requests
        self._ready = asyncio.Event()

    def start(self) -> None:
        """Begin to start it; returns at once. Until it is there :meth:`fork` waits for it."""
        self._supervising = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """Let it end; the shims it has forked go on."""
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.wait([self._supervising])

    async def ready(self) -> None:
        """Wait until it is there."""
        await self._ready.wait()

    async def fork(self, request: dict[str, Any]) -> int:
        """Return the pid of a new shim that listens already.

        Raises:
            Unavailable: the warm parent is not there, or went away before it answered; a shim may have been made.
            Internal: it could not make one, and says why.
        """
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await self.ready()
        except TimeoutError:
            raise Unavailable("the parent of shims is not there") from None
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                answer = json.loads(await self._ask(json.dumps(request).encode()))
        except TimeoutError:
            raise Unavailable(f"the parent of shims did not answer within {_ANSWER_WITHIN_S:g} s") from None
        if "error" in answer:
            raise Internal(f"shim could not be started: {answer['error']}")
        return int(answer["pid"])

    async def _ask(self, packet: bytes) -> bytes:
        if self._sock is None:
            raise Unavailable("the parent of shims is not running")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # Queued before the send can wait: who sends first must also stand first for the answers.
        self._waiting.append(future)
        try:
            self._sock.send(packet)
        except BlockingIOError:
            # More requests than the socket holds, a hundred or so; refusing is better than mixing their order up.
            self._waiting.remove(future)
            raise Unavailable("too many shims are being started at once; try again") from None
        except OSError as exc:
            self._waiting.remove(future)
            raise Unavailable(f"the parent of shims has gone: {exc.strerror}") from None
        return await future

    async def _supervise(self) -> None:
        pause_s = 0.0
        while True:
            started = time.monotonic()
            try:
                await self._run()
            except Exception:
                log.exception("the parent of shims cannot be started")
            pause_s = 0.0 if time.monotonic() - started > _STEADY_AFTER_S else min(pause_s * 2 or 0.1, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _run(self) -> None:
        """Start one and hand its answers out until it ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, tempfile.TemporaryFile() as stderr:
            ours.setblocking(False)
            with theirs:
                await blocking(shutil.rmtree, self._rehearsal, ignore_errors=True)  # of one that was killed
                process = await _start(theirs.fileno(), self._rehearsal, stderr)
            self._sock = ours
            self._ready.set()
            try:
                await self._answer(ours)
            finally:
                self._sock = None
                self._ready.clear()
                self._fail_waiting()
                ours.close()  # at which it ends, if it has not
                await _ended(process)
            stderr.seek(0)
            message = stderr.read(4096).decode(errors="replace").strip()
            log.warning("the parent of shims ended", extra={"status": process.returncode, "stderr": message})

    async def _answer(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while packet := await loop.sock_recv(sock, _LARGEST_PACKET):
                # One whose asker has given up is still in the queue, so that its answer is not another's.
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(packet)

    def _fail_waiting(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(Unavailable("the parent of shims ended before it answered"))


async def _start(fd: int, rehearsal: Path, stderr: IO[bytes]) -> asyncio.subprocess.Process:
    with os_errors("the parent of shims"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "shim.nursery", str(fd), str(rehearsal)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(fd,),
            env=for_children(),
            start_new_session=True,  # a Ctrl-C at the daemon's terminal is not meant for it
        )
    restore_nofile(process.pid)  # shims inherit from it, and are not asked for before this
    return process


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(2.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
