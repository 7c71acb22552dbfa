"""Everything in the daemon, built in order, served, and taken down in reverse.

What a client may rely on when it connects: the stores are open, the tasks of an earlier daemon are found again, and
every service is there. What stays when the daemon stops: shims and containers.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from runtimed import directories
from runtimed.api import (
    containers_pb2,
    content_pb2,
    cri_pb2,
    diff_pb2,
    doctor_pb2,
    events_service_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    mounts_pb2,
    namespaces_pb2,
    registry_pb2,
    sandbox_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    version_pb2,
)
from runtimed.collector import Collector
from runtimed.config import Config
from runtimed.content.local import LocalStore
from runtimed.cri.start import kubernetes
from runtimed.deprecations import CGROUP_V1, OCI_RUNTIME, Deprecations
from runtimed.doctor.doctor import Doctor
from runtimed.errors import DataLoss, DeadlineExceeded, Internal, ResourceExhausted, RuntimedError, Unavailable
from runtimed.events import EventBus
from runtimed.images import pull
from runtimed.images.accounting import account
from runtimed.images.repair import Repairer
from runtimed.images.verifying import Verifier
from runtimed.metadata import facts
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounting.manager import MountManager
from runtimed.registry.registries import Registries
from runtimed.restarts.monitor import RestartMonitor
from runtimed.rpc import ttrpc
from runtimed.rpc.grpc_server import BACKLOG, Server
from runtimed.sandboxes.manager import PAUSE, SHIM, Sandboxes
from runtimed.sandboxes.pause import PauseController
from runtimed.sandboxes.shims import ShimController
from runtimed.services import events as events_service
from runtimed.services import introspection
from runtimed.services.containers import ContainersService
from runtimed.services.content import ContentService
from runtimed.services.diff import DiffService
from runtimed.services.doctor import DoctorService
from runtimed.services.images import ImagesService
from runtimed.services.interceptors import wrapped
from runtimed.services.introspection import IntrospectionService
from runtimed.services.layout import keep_index
from runtimed.services.leases import LeasesService
from runtimed.services.mounts import MountsService
from runtimed.services.namespaces import NamespacesService
from runtimed.services.registration import register
from runtimed.services.registry import RegistryService
from runtimed.services.sandbox_controllers import SandboxControllerService
from runtimed.services.sandboxes import SandboxStoreService
from runtimed.services.snapshots import SnapshotsService
from runtimed.services.streaming import StreamingService, Streams
from runtimed.services.tasks import TasksService
from runtimed.services.transfer import TransferService
from runtimed.services.version import VersionService
from runtimed.snapshots import loader
from runtimed.snapshots.loader import Loaded
from runtimed.systemd import notify
from runtimed.tasks import advisories
from runtimed.tasks.launch import Launcher
from runtimed.tasks.manager import TaskManager
from runtimed.tasks.nursery import Nursery
from runtimed.threads import blocking
from runtimed.workers.pool import Pool
from runtimed.workers.processors import Processors

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALLS_END_WITHIN_S = 1.0


Listeners = list[Callable[[Config], object]]  # are told of a configuration of which RELOADED may have changed


async def serve(config: Config, stopping: asyncio.Event, reloads: Listeners) -> None:
    """Serve until *stopping* is set; the directories exist and are locked, and the sockets' paths are free.

    Who takes other settings over while it runs adds itself to *reloads*.

    Raises:
        RuntimedError: something cannot be opened; nothing has been served.
    """
    async with AsyncExitStack() as held:
        database = await _database(config.root / "metadata.db", held)
        events = EventBus()
        store = await blocking(LocalStore, config.root / "content")
        content = Content(database, store, verify_on_read=config.content.verify_on_read)
        await blocking(content.reconcile)
        loaded = await blocking(
            loader.load, config.root / "snapshotters", config.snapshotters, proxies=config.proxy_plugins
        )
        held.push_async_callback(blocking, loader.close, loaded)
        snapshotters = await _snapshotters(database, loaded)
        registries = Registries(config.registry)
        pool = Pool(config.workers.count, mountpoint=config.state / "workers")
        await pool.start()
        held.push_async_callback(pool.close)
        processors = await blocking(Processors, config.stream_processors, config.root / "processing")
        launcher = await _launcher(config, held)
        versions = await held.enter_async_context(_meanwhile(launcher.oci_runtimes()))
        tasks = TaskManager(
            database,
            events,
            launcher,
            content,
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
        repairer = Repairer(content, database, pool)
        await repairer.begin(await blocking(_boot_id))
        held.push_async_callback(repairer.end)
        await pull.recover(database, content, snapshotters)

        pause = PauseController(database, tasks, config.root / "sandboxes" / "pause")
        sandboxes = Sandboxes(database, events, {PAUSE: pause, SHIM: shims})
        held.push_async_callback(sandboxes.close)
        await sandboxes.load()
        mounts = MountManager(database, config.root / "mounts", [config.root / "snapshotters"])
        await mounts.reconcile()
        held.push_async_callback(mounts.close)
        collector = Collector(database, content, snapshotters, events, config.gc, mounts.discard)
        restarts = RestartMonitor(database, tasks, snapshotters, events, interval_s=config.restart.interval_s)
        reloads.append(lambda changed: collector.configure(changed.gc))
        reloads.append(lambda changed: restarts.configure(changed.restart.interval_s))
        streams = Streams()
        verifier = Verifier(config.image_verification, content)
        transfer = TransferService(
            content, database, snapshotters, pool, streams, events, registries, repairer, verifier
        )
        cri = await kubernetes(
            config, database, content, snapshotters, transfer.puller, pool, tasks, events, collector.collect, held
        )
        cri.core.repairer = repairer
        oci_runtimes = await versions
        deprecations = Deprecations()
        _warn_of(oci_runtimes, deprecations)
        doctor = Doctor(
            database,
            tasks,
            root=config.root,
            state=config.state,
            runc_root=config.state / "runc",
            oci_runtimes=oci_runtimes,
            interval_s=config.doctor.interval_s,
        )
        offered: list[tuple[ServiceDescriptor, Any]] = [
            (_service(version_pb2, "Version"), VersionService()),
            (_service(namespaces_pb2, "Namespaces"), NamespacesService(database, events)),
            (_service(containers_pb2, "Containers"), ContainersService(database, events, content, deprecations)),
            (_service(content_pb2, "Content"), ContentService(content, events)),
            (_service(images_pb2, "Images"), ImagesService(database, events, collector.collect)),
            (_service(leases_pb2, "Leases"), LeasesService(database, collector.collect)),
            (_service(snapshots_pb2, "Snapshots"), SnapshotsService(snapshotters, events, repairer)),
            (_service(diff_pb2, "Diff"), DiffService(content, pool, snapshotters, events, processors)),
            (_service(tasks_pb2, "Tasks"), TasksService(tasks, mounts)),
            (_service(mounts_pb2, "Mounts"), MountsService(mounts)),
            (_service(sandbox_pb2, "Store"), SandboxStoreService(database)),
            (_service(registry_pb2, "Registry"), RegistryService(registries)),
            (_service(sandbox_pb2, "Controller"), SandboxControllerService(database, sandboxes)),
            (
                _service(doctor_pb2, "Doctor"),
                DoctorService(
                    doctor, snapshotters, pool, repairer, partial(account, config.root, database, content, snapshotters)
                ),
            ),
            (_service(events_service_pb2, "Events"), events_service.EventsService(events)),
            (_service(streaming_pb2, "Streaming"), StreamingService(streams)),
            (_service(transfer_pb2, "Transfer"), transfer),
            (_service(cri_pb2, "RuntimeService"), cri.runtime),
            (_service(cri_pb2, "ImageService"), cri.images),
        ]
        introspected = _service(introspection_pb2, "Introspection")
        names = [*(service.full_name for service, _ in offered), introspected.full_name, health.SERVICE_NAME]
        identity = await database.write(facts.ensure, "uuid", str(uuid.uuid4()))
        plugins = introspection.plugins(loaded.values(), config.root, names, oci_runtimes)
        offered.append((introspected, IntrospectionService(identity, plugins, launcher, deprecations)))

        await held.enter_async_context(_index_kept(content, events))
        await held.enter_async_context(collector.running())
        await held.enter_async_context(_listening(config, offered, names, events))
        await held.enter_async_context(_listening_to_shims(config, events))
        await held.enter_async_context(_swept(snapshotters))
        await held.enter_async_context(doctor.running())
        await held.enter_async_context(restarts.running())
        tasks.tell_lost()
        log.info("ready", extra={"address": config.address, "ms": _age_ms(), "pid": os.getpid()})
        notify("READY=1", f"MAINPID={os.getpid()}")
        await stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
        tasks.end_waits()
        cri.core.events.close()
    log.info("stopped")


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


@asynccontextmanager
async def _listening(
    config: Config, offered: Iterable[tuple[ServiceDescriptor, Any]], names: list[str], events: EventBus
) -> AsyncIterator[None]:
    """Serve gRPC while the block runs; at the end streams are ended, and calls get a moment to finish."""
    server = Server(wrapped)
    for service, servicer in offered:
        register(server, service, servicer)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflected = reflection.aio.ReflectionServicer([*names, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, server)
    await server.serve(_bound(config.address, config))
    for name in ["", *names]:
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await healthy.enter_graceful_shutdown()
        events.close()
        await server.stop(_CALLS_END_WITHIN_S)
        _unlink(config.address)


@asynccontextmanager
async def _listening_to_shims(config: Config, events: EventBus) -> AsyncIterator[None]:
    """Take the events of shims while the block runs."""
    server = ttrpc.Server({events_service.TTRPC_NAME: events_service.ttrpc_service(events)})
    address = config.address + directories.TTRPC_SUFFIX
    await server.serve(_bound(address, config))
    try:
        yield
    finally:
        await server.close()
        _unlink(address)


def _bound(address: str, config: Config) -> socket.socket:
    """Return a listening socket, with the owner and the mode that are configured. Raises Internal."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with directories.umask(0o777 & ~config.socket.mode):
            sock.bind(address)
        os.chown(address, config.socket.uid, config.socket.gid)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise Internal(f"socket {address}: cannot listen on it: {exc.strerror}") from None
    return sock


def _unlink(address: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(address)  # noqa: PTH108  a socket's name, on tmpfs


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _service(module: Any, name: str) -> ServiceDescriptor:
    service: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return service


def _age_ms() -> int:
    """Return how long ago this process started, in milliseconds (proc_pid_stat(5), field 22: clock ticks)."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1000)
