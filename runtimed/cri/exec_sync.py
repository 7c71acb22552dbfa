"""ExecSync: run a command in a container and return what it wrote, as probes do a thousand times a minute."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from runtimed.api import cri_pb2 as pb
from runtimed.cri import pipes
from runtimed.cri.core import Core
from runtimed.cri.execution import Execution
from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument

LIMIT = (16 << 20) - (64 << 10)  # bytes of output that are kept: what fits in a message a kubelet takes
_CHUNK = 64 << 10  # what a FIFO holds


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
    execution = Execution(core, container)
    streams: list[Stream] = []

    def stop_reading() -> None:
        for stream in streams:
            stream.stop()

    try:
        async with asyncio.timeout(timeout_s or None):
            await execution.start(command, ("stdout", "stderr"))
            room = Room(LIMIT)
            streams += [Stream(fd, room) for fd in execution.fds.values()]
            exit_code = await execution.wait()
            stdout, stderr = streams
            return Result(stdout.take(), stderr.take(), exit_code)
    except TimeoutError:
        raise DeadlineExceeded(f"exec in container {container.id}: not done within {timeout_s} s, killed") from None
    finally:
        # Whatever happens to the caller, the process ends and its FIFOs go.
        await execution.end(stop_reading)


class Room:
    """How much may be kept of both streams together."""

    def __init__(self, size: int) -> None:
        self.left = size


class Stream:
    """What comes out of a FIFO; what there is no room for is read and dropped, so that the process goes on."""

    def __init__(self, fd: int, room: Room) -> None:
        self._fd = fd
        self._room = room
        self._kept = bytearray()
        self._is_read = True
        asyncio.get_running_loop().add_reader(fd, self._read, _CHUNK)

    def take(self) -> bytes:
        """Return what has come, with all that was written until now."""
        left = pipes.unread(self._fd)
        while left > 0 and (size := self._read(min(left, _CHUNK))):
            left -= size
        return bytes(self._kept)

    def stop(self) -> None:
        """Read no more."""
        if self._is_read:
            self._is_read = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def _read(self, most: int) -> int:
        """Read once; return how many bytes that were."""
        try:
            data = os.read(self._fd, most)
        except BlockingIOError:
            return 0
        if not data:
            self.stop()
        kept = data[: self._room.left]
        self._kept += kept
        self._room.left -= len(kept)
        return len(data)
