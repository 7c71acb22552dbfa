"""What the daemon is made of: stores, work, and what keeps order, built from below and taken down in reverse.

When all is built the stores are open, and the tasks and sandboxes of an earlier daemon are found again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtimed import directories
from runtimed.collector import Collector
from runtimed.config import Config
from runtimed.content.local import LocalStore
from runtimed.cri import start as kubernetes
from runtimed.deprecations import CGROUP_V1, OCI_RUNTIME, Deprecations
from runtimed.doctor.doctor import Doctor
from runtimed.errors import DataLoss, DeadlineExceeded, Unavailable
from runtimed.events import EventBus
from runtimed.images import pull
from runtimed.images.repair import Repairer
from runtimed.images.verifying import Verifier
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounting.manager import MountManager
from runtimed.registry.registries import Registries
from runtimed.restarts.monitor import RestartMonitor
from runtimed.sandboxes.manager import PAUSE, SHIM, Sandboxes
from runtimed.sandboxes.pause import PauseController
from runtimed.sandboxes.shims import ShimController
from runtimed.services.streaming import Streams
from runtimed.services.transfer import TransferService
from runtimed.snapshots import loader
from runtimed.snapshots.loader import Loaded
from runtimed.tasks import advisories
from runtimed.tasks.launch import Launcher
from runtimed.tasks.manager import TaskManager
from runtimed.tasks.nursery import Nursery
from runtimed.threads import blocking
from runtimed.workers.pool import Pool
from runtimed.workers.processors import Processors

log = logging.getLogger(__name__)

T = TypeVar("T")

Listeners = list[Callable[[Config], object]]  # are told of a configuration of which RELOADED may have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What exists."""

    database: Database
    events: EventBus
    content: Content
    loaded: Mapping[str, Loaded]  # all snapshotters that are installed
    snapshotters: Mapping[str, Snapshots]  # those that can be used


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts(Stores):
    """Everything that services are made over."""

    config: Config
    registries: Registries
    pool: Pool
    processors: Processors
    repairer: Repairer
    streams: Streams
    transfer: TransferService
    launcher: Launcher
    oci_runtimes: Mapping[str, str]  # path -> what it says of its version
    tasks: TaskManager
    sandboxes: Sandboxes
    mounts: MountManager
    collector: Collector
    restarts: RestartMonitor
    doctor: Doctor
    deprecations: Deprecations
    cri: kubernetes.Services


async def build(config: Config, held: AsyncExitStack, reloads: Listeners) -> Parts:
    """Build everything; *held* takes it down in reverse. Who takes other settings over later is added to *reloads*.

    Raises:
        RuntimedError: something cannot be opened.
    """
    stores = await _stores(config, held)
    database, events, content, snapshotters = stores.database, stores.events, stores.content, stores.snapshotters
    registries = Registries(config.registry)
    pool = await _pool(config, held)
    processors = await blocking(Processors, config.stream_processors, config.root / "processing")
    launcher = await _launcher(config, held)
    versions = await held.enter_async_context(_meanwhile(launcher.oci_runtimes()))
    tasks, shims = await _tasks(config, stores, launcher, held)
    repairer = await _repairer(stores, pool, held)
    sandboxes = await _sandboxes(config, stores, tasks, shims, held)
    mounts = await _mounts(config, database, held)
    collector = _collector(config, stores, mounts, reloads)
    restarts = _restarts(config, stores, tasks, reloads)
    verifier, streams = Verifier(config.image_verification, content), Streams()
    transfer = TransferService(content, database, snapshotters, pool, streams, events, registries, repairer, verifier)
    cri = await kubernetes.start(
        config,
        database,
        content,
        snapshotters,
        transfer.puller,
        pool,
        tasks,
        events,
        collector.collect,
        registries,
        repairer,
        held,
    )
    oci_runtimes, deprecations = await versions, Deprecations()
    _warn_of(oci_runtimes, deprecations)
    return Parts(
        database=database,
        events=events,
        content=content,
        loaded=stores.loaded,
        snapshotters=snapshotters,
        config=config,
        registries=registries,
        pool=pool,
        processors=processors,
        repairer=repairer,
        streams=streams,
        transfer=transfer,
        launcher=launcher,
        oci_runtimes=oci_runtimes,
        tasks=tasks,
        sandboxes=sandboxes,
        mounts=mounts,
        collector=collector,
        restarts=restarts,
        doctor=_doctor(config, database, tasks, oci_runtimes),
        deprecations=deprecations,
        cri=cri,
    )


async def _stores(config: Config, held: AsyncExitStack) -> Stores:
    database = await _database(config.root / "metadata.db", held)
    store = await blocking(LocalStore, config.root / "content")
    content = Content(database, store, verify_on_read=config.content.verify_on_read)
    await blocking(content.reconcile)
    loaded = await blocking(
        loader.load, config.root / "snapshotters", config.snapshotters, proxies=config.proxy_plugins
    )
    held.push_async_callback(blocking, loader.close, loaded)
    return Stores(
        database=database,
        events=EventBus(),
        content=content,
        loaded=loaded,
        snapshotters=await _snapshotters(database, loaded),
    )


async def _tasks(
    config: Config, stores: Stores, launcher: Launcher, held: AsyncExitStack
) -> tuple[TaskManager, ShimController]:
    """Return what keeps tasks, and the sandboxes that are shims, which tasks may join: both with what there was."""
    tasks = TaskManager(
        stores.database,
        stores.events,
        launcher,
        stores.content,
        root=config.root,
        state=config.state,
        default_runtime=config.default_runtime,
        sandbox=lambda namespace, id: shims.endpoint(namespace, id),
    )
    shims = ShimController(launcher, tasks.groups, root=config.root, state=config.state)
    held.push_async_callback(shims.close)
    await shims.load()
    held.push_async_callback(tasks.close)
    await tasks.load()
    return tasks, shims


async def _repairer(stores: Stores, pool: Pool, held: AsyncExitStack) -> Repairer:
    """Return what mends layers, told of an unclean stop; what that has cut short of pulls is cleaned up."""
    repairer = Repairer(stores.content, stores.database, pool)
    await repairer.begin(await blocking(_boot_id))
    held.push_async_callback(repairer.end)
    await pull.recover(stores.database, stores.content, stores.snapshotters)
    return repairer


async def _sandboxes(
    config: Config, stores: Stores, tasks: TaskManager, shims: ShimController, held: AsyncExitStack
) -> Sandboxes:
    pause = PauseController(stores.database, tasks, config.root / "sandboxes" / "pause")
    sandboxes = Sandboxes(stores.database, stores.events, {PAUSE: pause, SHIM: shims})
    held.push_async_callback(sandboxes.close)
    await sandboxes.load()
    return sandboxes


async def _mounts(config: Config, database: Database, held: AsyncExitStack) -> MountManager:
    mounts = MountManager(database, config.root / "mounts", [config.root / "snapshotters"])
    await mounts.reconcile()
    held.push_async_callback(mounts.close)
    return mounts


async def _pool(config: Config, held: AsyncExitStack) -> Pool:
    pool = Pool(config.workers.count, mountpoint=config.state / "workers")
    await pool.start()
    held.push_async_callback(pool.close)
    return pool


def _collector(config: Config, stores: Stores, mounts: MountManager, reloads: Listeners) -> Collector:
    collector = Collector(
        stores.database, stores.content, stores.snapshotters, stores.events, config.gc, mounts.discard
    )
    reloads.append(lambda changed: collector.configure(changed.gc))
    return collector


def _restarts(config: Config, stores: Stores, tasks: TaskManager, reloads: Listeners) -> RestartMonitor:
    restarts = RestartMonitor(
        stores.database, tasks, stores.snapshotters, stores.events, interval_s=config.restart.interval_s
    )
    reloads.append(lambda changed: restarts.configure(changed.restart.interval_s))
    return restarts


def _doctor(config: Config, database: Database, tasks: TaskManager, oci_runtimes: Mapping[str, str]) -> Doctor:
    return Doctor(
        database,
        tasks,
        root=config.root,
        state=config.state,
        runc_root=config.state / "runc",
        oci_runtimes=oci_runtimes,
        interval_s=config.doctor.interval_s,
    )


@asynccontextmanager
async def _meanwhile(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Have *coroutine* run while the block does."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _warn_of(oci_runtimes: Mapping[str, str], deprecations: Deprecations) -> None:
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        deprecations.emit(CGROUP_V1)
    for binary, version in oci_runtimes.items():
        if not version:
            log.warning("an OCI runtime does not run, or does not tell its version", extra={"binary": binary})
        elif warning := advisories.warning(version):
            deprecations.emit(OCI_RUNTIME)
            log.warning("an OCI runtime is old", extra={"binary": binary, "version": version, "advisories": warning})


async def _database(path: Path, held: AsyncExitStack) -> Database:
    try:
        database = await blocking(Database, path)
    except DataLoss as exc:
        raise DataLoss(
            f"{path}: {exc}; restore a copy, or move it away to start with empty records (containers go on running)"
        ) from None
    held.push_async_callback(blocking, database.close)
    return database


async def _snapshotters(database: Database, loaded: Mapping[str, Loaded]) -> dict[str, Snapshots]:
    """Return the snapshotters that can be used, their records and disks in agreement."""
    usable = {
        name: Snapshots(database, name, entry.snapshotter)
        for name, entry in loaded.items()
        if entry.snapshotter is not None
    }
    for snapshots in usable.values():
        try:
            await blocking(snapshots.reconcile)
        except (Unavailable, DeadlineExceeded) as exc:  # a proxy's process is not there yet; the next cleanup does it
            log.warning("snapshotter does not answer", extra={"snapshotter": snapshots.name, "error": str(exc)})
    return usable


async def _launcher(config: Config, held: AsyncExitStack) -> Launcher:
    sockets = config.state / "s"
    await blocking(directories.make_private, sockets, 0o700)
    nursery = Nursery(config.state / "rehearsal")
    ttrpc_address = config.address + directories.TTRPC_SUFFIX
    launcher = Launcher(
        nursery,
        config.runtimes,
        sockets,
        config.address,
        ttrpc_address,
        runc_root=config.state / "runc",
        debug=config.log.level == "debug",
    )
    held.callback(launcher.logs.close_all)
    nursery.start()
    held.push_async_callback(nursery.close)
    return launcher


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
