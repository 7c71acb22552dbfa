"""Making a task: a bundle, a shim, a container in it. All of it, or nothing."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtimed.errors import RuntimedError
from runtimed.failpoints import hit_async
from runtimed.linux.cgroups import get_ready_to_attach
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.metadata.db import Database
from runtimed.mounts import Mount
from runtimed.oci.descriptor import Descriptor
from runtimed.rollback import Rollback
from runtimed.tasks.bundle import Bundle, group_of
from runtimed.tasks.checkpoints import Checkpoints
from runtimed.tasks.client import Endpoint, Stdio, TaskClient
from runtimed.tasks.ending import CONNECT_WITHIN_S, Endings
from runtimed.tasks.groups import Groups
from runtimed.tasks.launch import Launcher
from runtimed.tasks.remains import settled
from runtimed.tasks.table import Table, Task
from runtimed.threads import aside, blocking

_CREATE_ENDS_WITHIN_S = 8.0  # what is left of a Create that nobody waits for any more


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """What a client says of a task to be made."""

    id: str
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    options: Opaque | None = None  # None: those of the container
    runtime: str = ""  # a shim's path; "": the runtime of the container
    checkpoint: Descriptor | None = None  # what it is to be restored from
    shim: Endpoint | None = (
        None  # of a sandbox, that is to serve it; None: that of the container's sandbox, or a new one
    )


class Maker:
    """Makes tasks of containers that are recorded."""

    def __init__(
        self,
        db: Database,
        table: Table,
        groups: Groups,
        launcher: Launcher,
        checkpoints: Checkpoints,
        endings: Endings,
        *,
        default_runtime: str,
        sandbox: Callable[[str, str], Endpoint | None],
    ) -> None:
        self._db = db
        self._table = table
        self._groups = groups
        self._launcher = launcher
        self._checkpoints = checkpoints
        self._endings = endings
        self._default_runtime = default_runtime
        self._sandbox = sandbox
        self._making: set[asyncio.Task[object]] = set()

    async def make(self, bundle: Bundle, new: NewTask) -> Task:
        """Start a shim and create the container in it; *bundle* says where, and has been claimed."""
        current = asyncio.current_task()
        assert current is not None
        self._making.add(current)
        try:
            task = await self._make(bundle, new)
        except BaseException:
            self._table.release(bundle)
            raise
        finally:
            self._making.discard(current)
        self._endings.add(task)
        return task

    async def settle(self, limit_s: float) -> None:
        """Let what has been begun finish, or be undone, if it does not take longer than *limit_s*."""
        if self._making:
            await asyncio.wait(self._making, timeout=limit_s)

    async def _make(self, bundle: Bundle, new: NewTask) -> Task:
        container = self._db.look_up(containers.get, bundle.namespace, bundle.id)
        aside(get_ready_to_attach)  # while the bundle and the shim are made
        await hit_async("create.begun")
        program = self._launcher.resolve(new.runtime or container.runtime or self._default_runtime)
        options = self._launcher.options(program, new.options or container.runtime_options or Opaque("", b""))
        group = group_of(container.spec.value, bundle.id)
        if bundle.path.exists():  # the name is ours, so this is what an earlier one could not remove
            await self._endings.clean_up(bundle)
        async with Rollback() as steps:
            await blocking(bundle.create, container.spec.value)
            # Before the shim is there: it may be started half-way when that fails.
            steps.undo("clean up after the shim", self._endings.clean_up, bundle)
            checkpoint = await self._checkpoints.place(bundle, new.checkpoint, options)
            await hit_async("create.bundle")
            async with self._groups.locked(bundle.namespace, group):
                if (shim := new.shim or self._sandbox(bundle.namespace, container.sandbox)) is not None:
                    endpoint = await self._launcher.join(bundle, program, shim)
                else:
                    joins = self._groups.shim(bundle.namespace, group, program.binary)
                    endpoint = await self._launcher.start(bundle, program, options, group=group, joins=joins)
                self._groups.use(bundle, group, program.binary, endpoint)
            await hit_async("create.shim")
            client = await TaskClient.connect(endpoint, bundle.id, CONNECT_WITHIN_S)
            steps.undo("disconnect from the shim", client.close)
            await hit_async("create.connected")
            create = client.create(bundle.path, new.rootfs, new.stdio, options, checkpoint)
            creating = asyncio.create_task(create)
            # A client that leaves cannot cancel what the shim does. Let it end before the shim is ended, or the
            # container would come into being with nobody to see it.
            steps.undo("wait for the shim's answer", settled, creating, _CREATE_ENDS_WITHIN_S)
            try:
                pid = await asyncio.shield(creating)
            except RuntimedError as exc:
                raise type(exc)(f"failed to create shim task: {exc}") from exc
            await hit_async("create.made")
            await blocking(bundle.mark_created)
            await hit_async("create.marked")
            steps.commit()
        return Task(bundle=bundle, group=group, endpoint=endpoint, client=client, pid=pid)
