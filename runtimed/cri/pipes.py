"""FIFOs and the event loop: our ends of them never block."""

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Sequence
from pathlib import Path

from runtimed.errors import os_errors


def make(directory: Path, names: Sequence[str]) -> dict[str, int]:
    """Make FIFOs in a new *directory*; return our ends by name: to read from, and of "stdin" to write to. Blocks."""
    fds: dict[str, int] = {}
    with os_errors(f"exec directory {directory}"):
        directory.mkdir(mode=0o700, parents=True)
        try:
            for name in names:
                os.mkfifo(directory / name, 0o600)
                # Of input both ends, so that it can be opened before the process is there.
                mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
                fds[name] = os.open(directory / name, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise
    return fds


def unread(fd: int) -> int:
    """Return how many bytes are in a FIFO now: who goes on writing cannot keep a reader of so many for ever."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


async def ready(fd: int, *, to_write: bool = False) -> None:
    """Wait until *fd* can be read from (or has ended), or written to."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


async def write(fd: int, data: bytes) -> None:
    """Write all of *data*, as fast as it is taken. Raises BrokenPipeError: nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await ready(fd, to_write=True)
