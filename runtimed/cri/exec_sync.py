"""ExecSync: run a command in a container and return what it wrote, as probes do a thousand times a minute.

<state>/cri/exec/<id>/      the FIFOs that the process writes to; gone when the call is
"""

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri import container_exit
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, RuntimedError, os_errors
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.oci.runtime_spec import PROCESS_TYPE_URL
from runtimed.tasks.client import Stdio
from runtimed.threads import blocking

LIMIT = (16 << 20) - (64 << 10)  # bytes of output that are kept: what fits in a message a kubelet takes
_CHUNK = 64 << 10  # what a FIFO holds
_ENDED_WITHIN_S = 10.0  # from SIGKILL to the exit


@dataclass(frozen=True, slots=True)
class Result:
    """What a command has written, as far as it was kept, and its exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int


async def exec_sync(core: Core, id: str, command: Sequence[str], timeout_s: int) -> Result:
    """Run *command* in a running container until it ends. 0 is no timeout.

    What it leaves running in the background does not hold up the answer. A caller that leaves ends it.

    Raises:
        NotFound, FailedPrecondition: no such container, or it does not run.
        InvalidArgument: no command, or a negative timeout.
        DeadlineExceeded: it has not ended in time, and was killed.
        RuntimedError: the runtime's own error: there is no such program, say.
    """
    if not command or timeout_s < 0:
        raise InvalidArgument("exec: a command, and a timeout of at least 0, are required")
    container = core.state.containers.get(id)
    if container.state != pb.CONTAINER_RUNNING:
        raise FailedPrecondition(f"container {container.id} is not running")
    execution = _Execution(core, container, command)
    try:
        async with asyncio.timeout(timeout_s or None):
            return await execution.run()
    except TimeoutError:
        raise DeadlineExceeded(f"exec in container {container.id}: not done within {timeout_s} s, killed") from None
    finally:
        # Whatever happens to the caller, the process ends and its FIFOs go.
        await asyncio.shield(core.spawn(execution.end()))


async def process_of(core: Core, container: Container) -> dict[str, object]:
    """Return the ``process`` of a container's spec, which a further process starts from."""
    if container.process is None:
        record = await core.db.read(containers.get, NAMESPACE, container.id)
        container.process = msgspec.json.decode(record.spec.value)["process"]
    return dict(container.process)


async def begin(core: Core, container: Container, exec_id: str, stdio: Stdio, spec: Opaque) -> None:
    """Start a further process in a container.

    Raises:
        FailedPrecondition: the container has ended meanwhile, and says so. The runtime only has that a pipe is broken.
        RuntimedError: the runtime's own error.
    """
    try:
        await core.tasks.exec(NAMESPACE, container.id, exec_id, stdio, spec)
        await core.tasks.start(NAMESPACE, container.id, exec_id)
    except RuntimedError as exc:
        if not await container_exit.has_ended(container):
            raise
        raise FailedPrecondition(f"container {container.id} has ended: {exc}") from exc


class _Execution:
    """One command in a container."""

    def __init__(self, core: Core, container: Container, command: Sequence[str]) -> None:
        self._core = core
        self._container = container
        self._command = list(command)
        self._id = f"exec-{secrets.token_hex(8)}"
        self._directory = core.directory / "exec" / self._id
        self._streams: list[_Stream] = []
        self._starting: asyncio.Task[None] | None = None
        self._has_ended = False

    async def run(self) -> Result:
        # Not cancelled with the caller: it must be known whether there is a process to end.
        self._starting = self._core.spawn(self._start())
        await asyncio.shield(self._starting)
        exit = await self._core.tasks.wait(NAMESPACE, self._container.id, self._id)
        self._has_ended = True
        stdout, stderr = self._streams
        return Result(stdout.take(), stderr.take(), exit.status)

    async def end(self) -> None:
        id = self._container.id
        if self._starting is not None:
            await asyncio.wait([self._starting])
            with suppress(RuntimedError):
                if not self._has_ended:
                    with suppress(NotFound):
                        await self._core.tasks.kill(NAMESPACE, id, self._id, signal.SIGKILL, all=False)
                    async with asyncio.timeout(_ENDED_WITHIN_S):
                        await self._core.tasks.wait(NAMESPACE, id, self._id)
                await self._core.tasks.delete_exec(NAMESPACE, id, self._id)
        for stream in self._streams:
            stream.close()
        await blocking(shutil.rmtree, self._directory, ignore_errors=True)

    async def _start(self) -> None:
        process = await process_of(self._core, self._container)
        process |= {"args": self._command, "terminal": False}
        process.pop("consoleSize", None)
        fds = await blocking(_make_fifos, self._directory)
        room = _Room(LIMIT)
        self._streams = [_Stream(fd, room) for fd in fds]
        stdio = Stdio(stdout=str(self._directory / "stdout"), stderr=str(self._directory / "stderr"))
        spec = Opaque(PROCESS_TYPE_URL, msgspec.json.encode(process))
        await begin(self._core, self._container, self._id, stdio, spec)


class _Room:
    """How much may be kept of both streams together."""

    def __init__(self, size: int) -> None:
        self.left = size


class _Stream:
    """What comes out of a FIFO; what there is no room for is read and dropped, so that the process goes on."""

    def __init__(self, fd: int, room: _Room) -> None:
        self._fd = fd
        self._room = room
        self._kept = bytearray()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def take(self) -> bytes:
        """Return what has come, with all that was written until now."""
        while self._fd >= 0 and self._read():
            pass
        return bytes(self._kept)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        """Read once; return whether more may be there."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        kept = data[: self._room.left]
        self._kept += kept
        self._room.left -= len(kept)
        return len(data) == _CHUNK


def _make_fifos(directory: Path) -> list[int]:
    """Make the FIFOs; return their reading ends, which never block. Blocks."""
    fds: list[int] = []
    with os_errors(f"exec directory {directory}"):
        directory.mkdir(mode=0o700, parents=True)
        try:
            for name in ("stdout", "stderr"):
                os.mkfifo(directory / name, 0o600)
                fds.append(os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
    return fds
