"""Pods and containers of an earlier daemon: what is recorded, compared with the tasks there are."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError

from runtimed.api import cri_pb2 as pb
from runtimed.cri import (
    checkpoint,
    container_exit,
    container_images,
    ending,
    mapped_volumes,
    network,
    records,
    restore,
    sandbox_files,
)
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.records import ContainerRecord, SandboxRecord
from runtimed.cri.state import Container, Sandbox
from runtimed.errors import NotFound, RuntimedError
from runtimed.metadata import containers
from runtimed.mounts import unmount_all
from runtimed.tasks.client import Process, Status
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_AT_ONCE = 32  # tasks that are asked at a time; each answers within a limit of the task manager's


async def recover(core: Core) -> None:
    """Rebuild what is kept in memory; before anything is served."""
    await blocking(shutil.rmtree, core.directory / "exec", ignore_errors=True)
    for directory in await blocking(_directories, core.directory / "mapped"):
        await blocking(_clear, mapped_volumes.remove, directory)
    for mountpoint in await blocking(_directories, await blocking(core.mountpoints)):
        await blocking(_clear, _take_off, mountpoint)
    found = await core.db.read(records.every)
    for container in found:
        try:
            _load(core, container)
        except (msgspec.MsgspecError, DecodeError, RuntimedError) as exc:
            log.error("a record of CRI cannot be read", extra={"container": container.id, "error": str(exc)})
    checkpoints = await blocking(checkpoint.interrupted, core)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def take(one: Sandbox | Container) -> None:
        async with turns:
            process = await _process(core, one.id)
        if isinstance(one, Sandbox):
            _take_sandbox(core, one, process)
        else:
            _take_container(core, one, process)

    await asyncio.gather(*map(take, core.state.sandboxes), *map(take, core.state.containers))
    for paused, directories in checkpoints:
        core.spawn(checkpoint.recover(core, paused, directories))
    # Looked for now: what is there once pods are made again may be theirs.
    left = await blocking(left_over, core, {one.id for one in found})
    core.spawn(_sweep(core, left))


def left_over(core: Core, recorded: set[str]) -> list[tuple[Callable[[Path], None], Path]]:
    """Return what belongs to no pod or container, with what removes it: it was being made or removed. Blocks."""
    places: tuple[tuple[Callable[[Path], None], list[Path]], ...] = (
        (network.unpin, list(map(Path, core.network.namespaces()))),
        (sandbox_files.delete, _directories(core.directory / "sandboxes")),
        (container_images.unmount, _directories(core.directory / "containers")),
        (_remove_tree, _directories(core.root / "containers")),
    )
    unknown = [(remove, path) for remove, paths in places for path in paths if path.name not in recorded]
    return [*unknown, *((_remove_tree, path) for path in restore.leftovers(core))]


async def _sweep(core: Core, left: Sequence[tuple[Callable[[Path], None], Path]]) -> None:
    for remove, path in left:
        await blocking(_clear, remove, path)
    await core.network.collect(lambda: [one.id for one in (*core.state.sandboxes, *core.state.coming.values())])


def _directories(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _remove_tree(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _clear(remove: Callable[[Path], None], path: Path) -> None:
    """Remove what a daemon left that was killed at that moment. If it stays, pods run all the same."""
    try:
        remove(path)
    except (OSError, RuntimedError) as exc:
        log.warning("something of an earlier daemon stays", extra={"path": str(path), "error": str(exc)})


def _take_off(mountpoint: Path) -> None:
    unmount_all(mountpoint)
    mountpoint.rmdir()


def _load(core: Core, container: containers.Container) -> None:
    if records.kind_of(container) == records.SANDBOX:
        record = records.load(container, SandboxRecord)
        config = pb.PodSandboxConfig.FromString(record.config)
        handler = record.handler or core.handlers.default.name
        sandbox = Sandbox(
            id=container.id, config=config, record=record, handler=handler, snapshotter=container.snapshotter
        )
        if record.is_named and record.is_made:  # else it is asked for again, and that is to succeed
            core.state.sandboxes.reserve(sandbox.name, sandbox.id)
        core.state.sandboxes.add(sandbox)
        return
    details = records.load(container, ContainerRecord)
    parent = core.state.sandboxes.get(details.sandbox)
    made = Container(
        id=container.id, sandbox=parent, config=pb.ContainerConfig.FromString(details.config), record=details
    )
    core.state.containers.reserve(made.name, made.id)
    core.state.containers.add(made)
    parent.containers[made.id] = made


async def _process(core: Core, id: str) -> Process | None:
    try:
        return await core.tasks.get(NAMESPACE, id)
    except NotFound:
        return None
    except RuntimedError as exc:
        log.warning("a task does not say how it is", extra={"container": id, "error": str(exc)})
        return Process(container_id=id)


def _take_sandbox(core: Core, sandbox: Sandbox, process: Process | None) -> None:
    if process is None:
        return
    is_running = process.status in (Status.RUNNING, Status.PAUSED)
    if is_running and sandbox.record.is_made and not sandbox.record.is_stopped:
        sandbox.is_ready, sandbox.pid = True, process.pid
    elif process.status is not Status.UNKNOWN:
        core.spawn(ending.end(core, sandbox.id))


def _take_container(core: Core, container: Container, process: Process | None) -> None:
    record = container.record
    if process is None:
        if record.finished_at:
            container.state = pb.CONTAINER_EXITED
            container.ended.set()
        elif record.started_at:
            container.state = pb.CONTAINER_RUNNING
            container_exit.note(core, container, container_exit.unseen_exit())
        return
    container.pid = process.pid
    match process.status:
        case Status.STOPPED:
            container.state = pb.CONTAINER_RUNNING
            container_exit.told(core, container.id, container_exit.exit_of(process))
        case Status.UNKNOWN:
            container.state = pb.CONTAINER_UNKNOWN
        case Status.CREATED:  # a start that the daemon did not live to see the end of
            core.spawn(container_exit.remove_unstarted(core, container))
        case _:
            container.state = pb.CONTAINER_RUNNING
