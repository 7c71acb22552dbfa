"""What a transfer says while it goes on, over a client's stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.images.progress import Progress, Report
from runtimed.services.streaming import Stream

_FLUSH_LIMIT_S = 5.0  # for the last progress messages, when the transfer itself is done


@asynccontextmanager
async def progress_to(stream: Stream) -> AsyncIterator[Report]:
    """Hold a report function that returns at once: a client that reads slowly misses steps, but not the last of each.

    When the block ends what is left is sent, for some seconds, and the stream is closed.
    """
    pending: dict[tuple[str, str], Progress] = {}  # the newest for each thing and event, in order
    wake = asyncio.Event()
    is_done = False

    def report(progress: Progress) -> None:
        pending[progress.event, progress.name] = progress
        wake.set()

    async def send() -> None:
        while pending or not is_done:
            if not pending:
                wake.clear()
                await wake.wait()
                continue
            progress = pending.pop(next(iter(pending)))
            await stream.send(_progress_message(progress))

    sender = asyncio.create_task(send())
    try:
        yield report
    finally:
        is_done = True
        wake.set()
        await asyncio.wait([sender], timeout=_FLUSH_LIMIT_S)
        sender.cancel()
        # A client that has gone wants no progress any more; the transfer is not the worse for it.
        await asyncio.gather(sender, return_exceptions=True)
        stream.close()


def _progress_message(progress: Progress) -> types.Progress:
    message = types.Progress(
        event=progress.event,
        name=progress.name,
        parents=progress.parents,
        progress=progress.progress,
        total=progress.total,
    )
    if descriptor := progress.descriptor:
        message.desc.CopyFrom(
            types_pb2.Descriptor(
                media_type=descriptor.media_type,
                digest=descriptor.digest,
                size=descriptor.size,
                annotations=descriptor.annotations,
            )
        )
    return message
