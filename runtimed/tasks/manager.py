"""Tasks by namespace and ID: each a bundle and a connection to the shim that serves it.

The state of a task is its shim's; what is kept here can be rebuilt from the bundles, and is, when the daemon starts.
How a task is made stands in :mod:`runtimed.tasks.making`, how it ends in :mod:`runtimed.tasks.ending`, how it is found
again in :mod:`runtimed.tasks.loading`; the rest of the Task API is here.
"""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimed.errors import DeadlineExceeded, NotFound, Unavailable
from runtimed.events import EventBus
from runtimed.failpoints import hit_async
from runtimed.metadata.containers import Opaque
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci.descriptor import Descriptor
from runtimed.tasks.background import Background
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.checkpoints import Checkpoints
from runtimed.tasks.client import Endpoint, Exit, Process, Status, Stdio
from runtimed.tasks.ending import STATE_WITHIN_S, Endings
from runtimed.tasks.exits import Exits, Waits
from runtimed.tasks.groups import Groups
from runtimed.tasks.launch import Launcher
from runtimed.tasks.loading import Loader
from runtimed.tasks.making import Maker, NewTask
from runtimed.tasks.metrics import Metric, collect
from runtimed.tasks.table import Table, not_found

_KILL_WITHIN_S = 10.0
_MAKING_ENDS_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What there is because of a task: names (those being made too), tasks, the pids of shims, their sockets."""

    names: frozenset[tuple[str, str]]  # namespace and ID
    tasks: frozenset[tuple[str, str]]
    shims: frozenset[int]
    sockets: frozenset[Path]


class TaskManager:
    """Creates, finds and ends tasks."""

    def __init__(
        self,
        db: Database,
        events: EventBus,
        launcher: Launcher,
        content: Content,
        *,
        root: Path,
        state: Path,
        default_runtime: str,
        sandbox: Callable[[str, str], Endpoint | None] = lambda namespace, id: None,
    ) -> None:
        """*sandbox* says where the shim of a sandbox serves the tasks in it, by namespace and ID, if there is one."""
        self._root = root
        self._state = state
        self._table = Table()
        self._checkpoints = Checkpoints(db, content)
        self._background = Background()
        self._waits = Waits()
        self._exits = Exits(events, self._table)
        self.groups = groups = Groups()
        self._endings = Endings(self._table, groups, launcher, self._exits, self._background)
        self._maker = Maker(
            db,
            self._table,
            groups,
            launcher,
            self._checkpoints,
            self._endings,
            default_runtime=default_runtime,
            sandbox=sandbox,
        )
        self._loader = Loader(self._table, groups, launcher, self._endings, self._exits, self._background)

    # Start and stop of the daemon

    async def load(self) -> None:
        """Find the tasks of an earlier daemon again and clean up after those that are gone; before anything is served.

        Takes a few seconds at most: what does not answer is left as it is, with status unknown.
        """
        self._background.spawn(self._exits.watch())
        await self._loader.load(self._root, self._state)

    def tell_lost(self) -> None:
        """Publish the ends that :meth:`load` found; once there can be subscribers."""
        self._loader.tell_lost()

    def end_waits(self) -> None:
        """Answer every :meth:`wait`, and those to come, with Unavailable: the daemon is stopping, not the task."""
        self._waits.end()

    async def close(self) -> None:
        """Let go of the shims; they and their containers go on."""
        await self._maker.settle(_MAKING_ENDS_WITHIN_S)
        await self._background.end()
        await asyncio.gather(*(task.client.close() for task in self._table))
        self._table.clear()

    # For who looks after what is left over

    def holdings(self) -> Holdings:
        """Return what is explained by a task at this moment."""
        tasks = list(self._table)
        return Holdings(
            names=self._table.names(),
            tasks=frozenset((task.bundle.namespace, task.bundle.id) for task in tasks),
            shims=frozenset(task.endpoint.pid for task in tasks),
            sockets=self.groups.sockets() | {task.endpoint.path for task in tasks},
        )

    async def adopt(self, namespace: str, id: str) -> str:
        """Load the task of a bundle that has none, or clean up after it; return what was done. Raises RuntimedError."""
        is_task = await self._loader.adopt(Bundle.at(self._root, self._state, namespace, id))
        return "loaded again" if is_task else "cleaned up"

    # The Task API

    async def create(self, namespace: str, new: NewTask) -> int:
        """Start a shim and create the container in it; return the pid of its init. All of it, or nothing.

        Raises:
            NotFound: there is no such container.
            AlreadyExists: it has a task.
            RuntimedError: the runtime's own error.
        """
        bundle = Bundle.at(self._root, self._state, namespace, new.id)
        self._table.claim(bundle)
        return (await self._maker.make(bundle, new)).pid

    async def start(self, namespace: str, id: str, exec_id: str) -> int:
        """Start the init or an exec; return its pid."""
        task = self._table.get(namespace, id)
        await hit_async("start.begun")
        pid = await task.client.start(exec_id)
        await hit_async("start.started")
        return pid

    async def exec(self, namespace: str, id: str, exec_id: str, stdio: Stdio, spec: Opaque) -> None:
        """Add a further process, to be started."""
        task = self._table.get(namespace, id)
        await hit_async("exec.begun")
        await task.client.exec(exec_id, stdio, spec)
        await hit_async("exec.added")

    async def get(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """Return the state of a process; of a task whose shim does not answer, that it is unknown."""
        task = self._table.get(namespace, id)
        watch = task.watch
        try:
            try:
                return await task.client.state(exec_id, STATE_WITHIN_S)
            except Unavailable:
                if await self._endings.outcome(task, watch) is not None or task.is_leaving:
                    raise not_found(id) from None
        except DeadlineExceeded:
            if exec_id:
                raise
            return Process(container_id=id, pid=task.pid, status=Status.UNKNOWN)
        return await self.get(namespace, id, exec_id)  # over the new connection

    async def list(self, namespace: str) -> list[Process]:
        """Return the state of every task in *namespace*, by ID."""
        ids = sorted(task.bundle.id for task in self._table if task.bundle.namespace == namespace)
        states = await asyncio.gather(*(self.get(namespace, id) for id in ids), return_exceptions=True)
        for state in states:
            if isinstance(state, BaseException) and not isinstance(state, NotFound):
                raise state
        return [state for state in states if isinstance(state, Process)]

    async def wait(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Wait for a process to end. Cancel it at any time; nothing else ends it but the daemon's stop."""
        return await self._waits.run(self._wait(namespace, id, exec_id))

    async def _wait(self, namespace: str, id: str, exec_id: str) -> Exit:
        while True:
            task = self._table.get(namespace, id)
            watch = task.watch
            try:
                return await task.client.wait(exec_id)
            except Unavailable:
                if (exit := await asyncio.shield(watch)) is not None:
                    return exit
                if task.is_leaving:
                    raise not_found(id) from None

    async def kill(self, namespace: str, id: str, exec_id: str, signal_number: int, *, all: bool) -> None:
        """Send a signal. SIGKILL for a task whose shim does not answer ends the shim and the container from outside."""
        task = self._table.get(namespace, id)
        watch = task.watch
        try:
            try:
                await task.client.kill(exec_id, signal_number, all=all, timeout_s=_KILL_WITHIN_S)
            except Unavailable:
                if await self._endings.outcome(task, watch) is not None or task.is_leaving:
                    raise not_found(id) from None
                await self.kill(namespace, id, exec_id, signal_number, all=all)  # over the new connection
        except DeadlineExceeded:
            if exec_id or signal_number != signal.SIGKILL:
                raise
            await self._endings.end_stuck(task)

    async def delete(self, namespace: str, id: str) -> Exit:
        """Remove a task that has ended (or was never started), its shim and its bundle; return how it ended.

        One whose shim does not answer is ended from outside first.
        """
        return await self._endings.delete(self._table.get(namespace, id))

    async def delete_exec(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Remove an exec that has ended; return how."""
        task = self._table.get(namespace, id)
        await hit_async("exec.deleting")
        exit = await task.client.delete(exec_id)
        await hit_async("exec.deleted")
        return exit

    async def pids(self, namespace: str, id: str) -> Sequence[tuple[int, Opaque]]:
        """Return every process of a task with what the shim knows of it."""
        return await self._table.get(namespace, id).client.pids()

    async def close_io(self, namespace: str, id: str, exec_id: str, *, stdin: bool) -> None:
        await self._table.get(namespace, id).client.close_io(exec_id, stdin=stdin)

    async def attach(self, namespace: str, id: str, path: Path) -> None:
        """Have the output of a task's init come on the FIFO *path* too, in the pieces that shim/attach.py has.

        Raises:
            Unimplemented: its shim is another than runtimed's.
            FailedPrecondition: the process has ended, or its output goes to no log.
        """
        await self._table.get(namespace, id).client.attach(path)

    async def resize_pty(self, namespace: str, id: str, exec_id: str, width: int, height: int) -> None:
        await self._table.get(namespace, id).client.resize_pty(exec_id, width, height)

    async def pause(self, namespace: str, id: str) -> None:
        await self._table.get(namespace, id).client.pause()

    async def resume(self, namespace: str, id: str) -> None:
        await self._table.get(namespace, id).client.resume()

    async def update(self, namespace: str, id: str, resources: Opaque, annotations: Mapping[str, str]) -> None:
        """Change what a task may use. Raises InvalidArgument for what are no resources."""
        await self._table.get(namespace, id).client.update(resources, annotations)

    async def checkpoint(self, namespace: str, id: str, options: Opaque, lease: str) -> Sequence[Descriptor]:
        """Save a task; return the blobs that it is restored from, held by *lease*. See :meth:`Checkpoints.take`."""
        task = self._table.get(namespace, id)
        return await self._checkpoints.take(task.bundle, task.client, options, lease)

    async def metrics(self, namespace: str, filters: Sequence[str]) -> Sequence[Metric]:
        """Return what those tasks use that the filters mean."""
        clients = {task.bundle.id: task.client for task in self._table if task.bundle.namespace == namespace}
        return await collect(namespace, clients, filters)
