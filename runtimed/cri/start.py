"""Kubernetes' Container Runtime Interface: its parts, put together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from runtimed.config import Config, CriStreaming
from runtimed.cri import container_exit, recovery
from runtimed.cri.core import Core
from runtimed.cri.filesystems import Filesystems
from runtimed.cri.handlers import Handlers
from runtimed.cri.image_service import ImageService
from runtimed.cri.images import Images
from runtimed.cri.network import Network
from runtimed.cri.runtime_service import RuntimeService
from runtimed.cri.sampler import Sampler
from runtimed.cri.streaming.server import Settings, StreamingServer
from runtimed.cri.streams import Streams
from runtimed.events import EventBus
from runtimed.images.pull import Puller
from runtimed.images.repair import Repairer
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.registry.registries import Registries
from runtimed.tasks.manager import TaskManager
from runtimed.workers.pool import Pool


@dataclass(frozen=True, slots=True)
class Services:
    """The two services of runtime.v1."""

    runtime: RuntimeService
    images: ImageService
    core: Core


async def start(
    config: Config,
    db: Database,
    content: Content,
    snapshotters: Mapping[str, Snapshots],
    puller: Puller,
    pool: Pool,
    tasks: TaskManager,
    events: EventBus,
    collect: Callable[[], Awaitable[None]],
    registries: Registries,
    repairer: Repairer,
    held: AsyncExitStack,
) -> Services:
    """Return the services, ready to be called; what they hold ends with *held*."""
    logging.getLogger("pyroute2").setLevel(logging.WARNING)  # at debug it tells each message
    handlers = Handlers(config)
    images = Images(db, content, puller, pool, events, collect, registries)
    filesystems = Filesystems(config.root / "snapshotters", snapshotters, handlers.snapshotters)
    core = Core(
        settings=config.cri,
        db=db,
        tasks=tasks,
        snapshotters=snapshotters,
        images=images,
        network=Network(config.cri.cni, config.state),
        handlers=handlers,
        directory=config.state / "cri",
        root=config.root / "cri",
        sampler=Sampler(filesystems),
        repairer=repairer,
        pool=pool,
    )
    held.push_async_callback(core.close)
    # Subscribed first: what ends while the rest is looked at is not missed.
    is_watching = asyncio.Event()
    watching = asyncio.create_task(container_exit.watch(core, events, is_watching))
    held.push_async_callback(_ended, watching)
    await is_watching.wait()
    await recovery.recover(core)
    if config.nri.enabled:
        from runtimed.cri.nri import NriHooks

        hooks = NriHooks(core, config.nri)
        held.push_async_callback(hooks.close)
        await hooks.begin()
        core.hooks = hooks
    streaming = StreamingServer(Streams(core), _settings(config.cri.streaming))
    await streaming.start()
    held.push_async_callback(streaming.close)
    return Services(RuntimeService(core, streaming), ImageService(images, handlers, filesystems), core)


def _settings(given: CriStreaming) -> Settings:
    return Settings(
        host=given.host,
        port=given.port,
        certificate=Path(given.certificate) if given.certificate else None,
        key=Path(given.key) if given.key else None,
    )


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
