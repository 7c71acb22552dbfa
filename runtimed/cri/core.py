"""What the operations of CRI work with, in one place."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtimed.config import Cri
from runtimed.cri import records
from runtimed.cri.cni import Attachment
from runtimed.cri.container_events import ContainerEvents
from runtimed.cri.handlers import Handler, Handlers
from runtimed.cri.hooks import Hooks
from runtimed.cri.images import NAMESPACE, Auth, Image, Images
from runtimed.cri.namespaces import snapshot_labels
from runtimed.cri.network import Network
from runtimed.cri.operations import Operations
from runtimed.cri.records import ContainerRecord, SandboxRecord
from runtimed.cri.rootfs import KnownAccounts
from runtimed.cri.sampler import Sampler
from runtimed.cri.state import Sandbox, State
from runtimed.errors import NotFound
from runtimed.images.repair import Repairer
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount
from runtimed.tasks.manager import TaskManager
from runtimed.threads import blocking
from runtimed.workers.pool import Pool


@dataclass(eq=False, kw_only=True)
class Core:
    """Stores, tasks, network, and what there is in memory. ``directory`` is on a file system that a reboot clears."""

    settings: Cri
    db: Database
    tasks: TaskManager
    snapshotters: Mapping[str, Snapshots]
    images: Images
    network: Network
    handlers: Handlers
    directory: Path
    root: Path  # the same, but it survives a reboot
    sampler: Sampler
    repairer: Repairer
    pool: Pool
    state: State = field(default_factory=State)
    events: ContainerEvents = field(default_factory=ContainerEvents)
    operations: Operations = field(default_factory=Operations)
    hooks: Hooks = field(default_factory=Hooks)
    known_accounts: KnownAccounts = field(default_factory=KnownAccounts)
    _pause: Image | None = None
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    async def pause_image(self, *, anew: bool = False) -> Image:
        """Return the image of the pause process; pulled if it is not here, looked for again if *anew*."""
        if self._pause is None or anew:
            name, snapshotter = self.settings.pause_image, self.handlers.default.snapshotter
            found = None if anew else await self.images.find(name)
            self._pause = found or await self.images.pull(name, Auth(), snapshotter, pinned=True)
        return self._pause

    def files(self, sandbox: Sandbox) -> Path:
        """Return the directory of a pod's files."""
        return self.directory / "sandboxes" / sandbox.id

    def container_directory(self, id: str) -> Path:
        """Return where a container's volumes are; they outlive a reboot, as its writable layer does."""
        return self.root / "containers" / id

    def mountpoints(self) -> Path:
        """Return the directory for mounts of the moment. Blocks."""
        directory = self.directory / "mounts"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def attachment(self, sandbox: Sandbox) -> Attachment:
        """Return what CNI plugins are told of a pod. Raises InvalidArgument."""
        parent = sandbox.config.linux.cgroup_parent
        return self.network.attachment(sandbox.id, sandbox.record.netns, sandbox.config, parent)

    async def prepare(self, sandbox: Sandbox, key: str, image: Image, *, view: bool = False) -> Sequence[Mount]:
        """Begin the writable layer *key* on *image*, or a view of it; return its mounts, with the pod's owners.

        The pod's lease holds it. Kubelets pull without saying for which runtime handler: what the handler's snapshotter
        does not have is unpacked there.

        Raises NotFound: the image has been removed, or cannot be unpacked from what is here.
        """
        snapshots = self.snapshots(sandbox.snapshotter)
        parent, labels = image.contents.chain_id, snapshot_labels(sandbox.namespace_options)
        begin = snapshots.view if view else snapshots.prepare

        async def made() -> Sequence[Mount]:
            await self.repairer.ensure(NAMESPACE, snapshots, parent)
            return await blocking(begin, NAMESPACE, key, parent, labels, sandbox.id)

        try:
            return await made()
        except NotFound:
            await self.images.unpack(image, sandbox.snapshotter)
        return await made()

    def has_user_namespaces(self, handler: Handler) -> bool:
        """Say whether pods of *handler* can have a user namespace: our shim mounts what the snapshotter maps."""
        snapshots = self.snapshotters.get(handler.snapshotter)
        return handler.maps_ids and snapshots is not None and "remap-ids" in snapshots.snapshotter.capabilities

    async def remove_snapshot(self, snapshotter: str, key: str, lease: str) -> None:
        """Remove a writable layer; fine if it is gone."""
        with suppress(NotFound):
            await blocking(self.snapshots(snapshotter).remove, NAMESPACE, key, lease)
            return
        with suppress(NotFound):  # of the lease: the pod is gone
            await blocking(self.snapshots(snapshotter).remove, NAMESPACE, key)

    def snapshots(self, name: str) -> Snapshots:
        """Return a snapshotter. Raises NotFound."""
        if (found := self.snapshotters.get(name)) is None:
            raise NotFound(f"snapshotter {name!r} is not available here")
        return found

    async def save(self, id: str, record: SandboxRecord | ContainerRecord) -> None:
        """Write what has changed of a pod or container; it is on disk when this returns."""
        await self.db.write(records.update, id, record)

    def save_soon(self, id: str, record: SandboxRecord | ContainerRecord) -> None:
        """Like :meth:`save`, without waiting: for what the next start can find out by itself."""
        self.spawn(self.save(id, record))

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Have *coroutine* run to its end, which :meth:`close` waits for."""
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def forget_measured(self) -> None:
        """Drop what was measured of pods and containers that are gone."""
        self.sampler.forget({one.id for one in self.state.sandboxes} | {one.id for one in self.state.containers})

    async def close(self) -> None:
        """Wait for what is being done."""
        await self.sampler.close()
        await self.operations.close()
        if self._background:
            _, left = await asyncio.wait(self._background, timeout=2.0)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)


async def all_of(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run them at once, each to its end; the first failure, if there was one, is what the caller hears then."""
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run them at once and return their results; the first failure, not a group of them, is what the caller hears.

    When one fails the others are cancelled and waited for.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None
    return [task.result() for task in tasks]
