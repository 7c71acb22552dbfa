"""Everything in the daemon, built in order, served, and taken down in reverse.

What a client may rely on when it connects: every service is there, over all that :mod:`runtimed.server.parts` has
found. What stays when the daemon stops: shims and containers.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from runtimed.config import Config
from runtimed.errors import ResourceExhausted, RuntimedError
from runtimed.events import EventBus
from runtimed.metadata.content import Content
from runtimed.metadata.snapshots import Snapshots
from runtimed.server.metrics import telling
from runtimed.server.offered import services
from runtimed.server.parts import Listeners, build
from runtimed.server.sockets import listening, listening_to_shims
from runtimed.services.layout import keep_index
from runtimed.systemd import notify
from runtimed.threads import blocking

log = logging.getLogger(__name__)


async def serve(config: Config, stopping: asyncio.Event, reloads: Listeners) -> None:
    """Serve until *stopping* is set; the directories exist and are locked, and the sockets' paths are free.

    Who takes other settings over while it runs adds itself to *reloads*.

    Raises:
        RuntimedError: something cannot be opened; nothing has been served.
    """
    async with AsyncExitStack() as held:
        parts = await build(config, held, reloads)
        offered = await services(parts)
        await held.enter_async_context(_index_kept(parts.content, parts.events))
        await held.enter_async_context(parts.collector.running())
        observe = await held.enter_async_context(telling(parts))
        await held.enter_async_context(listening(config, offered, parts.events, observe))
        await held.enter_async_context(listening_to_shims(config, parts.events))
        await held.enter_async_context(_swept(parts.snapshotters))
        await held.enter_async_context(parts.doctor.running())
        await held.enter_async_context(parts.restarts.running())
        parts.tasks.tell_lost()
        log.info("ready", extra={"address": config.address, "ms": _age_ms(), "pid": os.getpid()})
        notify("READY=1", f"MAINPID={os.getpid()}")
        await stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
        parts.tasks.end_waits()
        parts.cri.core.events.close()
    log.info("stopped")


@asynccontextmanager
async def _index_kept(content: Content, events: EventBus) -> AsyncIterator[None]:
    """Keep the content store's index.json up to date while the block runs."""
    keeping = asyncio.create_task(_keep_index(content, events))
    try:
        yield
    finally:
        events.close()  # the subscription ends, and with it the task, when it has written what there was
        await asyncio.wait([keeping])


async def _keep_index(content: Content, events: EventBus) -> None:
    is_behind = True
    while is_behind:
        is_behind = False
        try:
            with events.subscribe([f"topic==/images/{what}" for what in ("create", "update", "delete")]) as changes:
                await keep_index(content, aiter(changes))
        except* ResourceExhausted:  # too many at once; the next one writes an index of all
            is_behind = True


@asynccontextmanager
async def _swept(snapshotters: Mapping[str, Snapshots]) -> AsyncIterator[None]:
    """Meanwhile, remove from disk what snapshotters had put aside when an earlier daemon ended: it may be much."""

    async def sweep() -> None:
        for name, snapshots in snapshotters.items():
            try:
                await blocking(snapshots.cleanup)
            except RuntimedError as exc:
                log.warning("snapshots not cleaned up", extra={"snapshotter": name, "error": str(exc)})

    sweeping = asyncio.create_task(sweep())
    try:
        yield
    finally:
        await asyncio.wait([sweeping])  # what is being removed cannot be stopped half-way


def _age_ms() -> int:
    """Return how long ago this process started, in milliseconds (proc_pid_stat(5), field 22: clock ticks)."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1000)
