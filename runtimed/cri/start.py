"""Puts the parts of CRI together."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from runtimed.config import Config
from runtimed.cri.filesystems import Filesystems
from runtimed.cri.handlers import Handlers
from runtimed.cri.image_service import ImageService
from runtimed.cri.images import Images
from runtimed.cri.network import Network
from runtimed.cri.runtime_service import RuntimeService
from runtimed.events import EventBus
from runtimed.images.pull import Puller
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.tasks.manager import TaskManager
from runtimed.workers.pool import Pool


@dataclass(frozen=True, slots=True)
class Services:
    """The two services of runtime.v1."""

    runtime: RuntimeService
    images: ImageService


async def kubernetes(
    config: Config,
    db: Database,
    content: Content,
    snapshotters: Mapping[str, Snapshots],
    puller: Puller,
    pool: Pool,
    tasks: TaskManager,
    events: EventBus,
    collect: Callable[[], Awaitable[None]],
    held: AsyncExitStack,
) -> Services:
    """Return the services, ready to be called; what they hold ends with *held*."""
    handlers = Handlers(config)
    images = Images(db, content, puller, pool, events, collect)
    filesystems = Filesystems(config.root / "snapshotters", snapshotters, handlers.snapshotters)
    network = Network(config.cri.cni, config.state)
    return Services(RuntimeService(handlers, network), ImageService(images, handlers, filesystems))
