"""FIFOs and the event loop: our ends of them never block."""

import asyncio
import os


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
