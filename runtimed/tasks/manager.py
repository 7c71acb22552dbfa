"""Tasks by namespace and ID: each a bundle and a connection to the shim that serves it.

The state of a task is its shim's; what is kept here can be rebuilt from the bundles, and is, when the daemon starts. A
name is claimed before the first await of the operation that takes it.
"""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from runtimed.errors import (
    AlreadyExists,
    DeadlineExceeded,
    NotFound,
    RuntimedError,
    Unavailable,
)
from runtimed.events import EventBus
from runtimed.failpoints import hit_async
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.metadata.db import Database
from runtimed.mounts import Mount
from runtimed.rollback import Rollback
from runtimed.tasks import bundle as bundles
from runtimed.tasks import client as shims
from runtimed.tasks import pids as processes
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit, Process, Status, Stdio, TaskClient
from runtimed.tasks.exits import Exits, Waits
from runtimed.tasks.launch import Launcher
from runtimed.tasks.recovery import Found, Lost, recover
from runtimed.tasks.remains import clean_up, end_shim, named, settled
from runtimed.threads import blocking

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_WITHIN_S = 5.0
_STATE_WITHIN_S = 2.0  # a shim that needs longer to say how its task is, is taken for stuck
_ALL_LOADED_WITHIN_S = 5.0
_KILL_WITHIN_S = 10.0
_CREATE_ENDS_WITHIN_S = 8.0  # what is left of a Create that nobody waits for any more
_MAKING_ENDS_WITHIN_S = 3.0
_LOADED_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """What a client says of a task to be made."""

    id: str
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    options: Opaque | None = None  # None: those of the container
    runtime: str = ""  # a shim's path; "": the runtime of the container


@dataclass(eq=False, kw_only=True)
class _Task:
    bundle: Bundle
    endpoint: Endpoint
    client: TaskClient
    pid: int
    watch: "asyncio.Task[Exit | None]" = field(init=False)  # ends with the connection; what became of the task
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the one that deletes it
    is_leaving: bool = False  # it is being deleted, so that the end of its shim is nothing unusual


class TaskManager:
    """Creates, finds and ends tasks."""

    def __init__(
        self,
        db: Database,
        events: EventBus,
        launcher: Launcher,
        *,
        root: Path,
        state: Path,
        default_runtime: str,
    ) -> None:
        self._db = db
        self._launcher = launcher
        self._root = root
        self._state = state
        self._default_runtime = default_runtime
        self._tasks: dict[tuple[str, str], _Task | None] = {}  # None: claimed, being made
        self._background: set[asyncio.Task[Any]] = set()
        self._lost: list[tuple[Bundle, Exit]] | None = []  # found dead by load(), not yet told; None: tell at once
        self._making: set[asyncio.Task[Any]] = set()
        self._waits = Waits()
        self._exits = Exits(events)

    # Start and stop of the daemon

    async def load(self) -> None:
        """Find the tasks of an earlier daemon again and clean up after those that are gone; before anything is served.

        Takes a few seconds at most: what does not answer is left as it is, with status unknown.
        """
        self._spawn(self._exits.watch())
        found = await blocking(lambda: list(bundles.found(self._root, self._state)))
        if not found:
            return
        for bundle in found:
            self._tasks[bundle.namespace, bundle.id] = None
        limit = asyncio.Semaphore(_LOADED_AT_ONCE)
        loading = [self._spawn(self._load(bundle, limit)) for bundle in found]
        # What takes longer goes on by itself, its name taken: one task is not to keep all others from being served.
        _, late = await asyncio.wait(loading, timeout=_ALL_LOADED_WITHIN_S)
        alive = sum(task is not None for task in self._tasks.values())
        log.info("tasks loaded", extra={"found": len(found), "alive": alive, "late": len(late)})

    def tell_lost(self) -> None:
        """Publish the ends that :meth:`load` found; once there can be subscribers."""
        lost, self._lost = self._lost or [], None
        for bundle, exit in lost:
            self._exits.publish(bundle, exit)

    def end_waits(self) -> None:
        """Answer every :meth:`wait`, and those to come, with Unavailable: the daemon is stopping, not the task."""
        self._waits.end()

    async def close(self) -> None:
        """Let go of the shims; they and their containers go on."""
        if self._making:  # what has been begun is finished or undone, if it does not take too long
            await asyncio.wait(self._making, timeout=_MAKING_ENDS_WITHIN_S)
        for background in self._background:
            background.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(*(task.client.close() for task in self._tasks.values() if task is not None))
        self._tasks.clear()

    async def _load(self, bundle: Bundle, limit: asyncio.Semaphore) -> None:
        """Replace the claim that :meth:`load` has made by the task, or give it up."""
        found = None
        try:
            async with limit:
                found = await recover(self._launcher, bundle)
        except Exception:
            log.exception("a task could not be loaded", extra=named(bundle))
        finally:
            del self._tasks[bundle.namespace, bundle.id]
        match found:
            case Found():
                self._add(_Task(bundle=bundle, endpoint=found.endpoint, client=found.client, pid=found.pid))
            case Lost(exit):
                if self._lost is None:
                    self._exits.publish(bundle, exit)
                else:
                    self._lost.append((bundle, exit))

    # The Task API

    async def create(self, namespace: str, new: NewTask) -> int:
        """Start a shim and create the container in it; return the pid of its init. All of it, or nothing.

        Raises:
            NotFound: there is no such container.
            AlreadyExists: it has a task.
            RuntimedError: the runtime's own error.
        """
        bundle = Bundle.at(self._root, self._state, namespace, new.id)
        key = (namespace, new.id)
        if key in self._tasks:
            raise AlreadyExists(f"task {new.id}: already exists")
        self._tasks[key] = None
        self._exits.forget(bundle)
        current = asyncio.current_task()
        assert current is not None
        self._making.add(current)
        try:
            task = await self._create(bundle, new)
        except BaseException:
            del self._tasks[key]
            raise
        finally:
            self._making.discard(current)
        self._add(task)
        return task.pid

    async def start(self, namespace: str, id: str, exec_id: str) -> int:
        """Start the init or an exec; return its pid."""
        task = self._task(namespace, id)
        await hit_async("start.begun")
        pid = await task.client.start(exec_id)
        await hit_async("start.started")
        return pid

    async def exec(self, namespace: str, id: str, exec_id: str, stdio: Stdio, spec: Opaque) -> None:
        """Add a further process, to be started."""
        task = self._task(namespace, id)
        await hit_async("exec.begun")
        await task.client.exec(exec_id, stdio, spec)
        await hit_async("exec.added")

    async def get(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """Return the state of a process; of a task whose shim does not answer, that it is unknown."""
        task = self._task(namespace, id)
        watch = task.watch
        try:
            return await task.client.state(exec_id, _STATE_WITHIN_S)
        except DeadlineExceeded:
            if exec_id:
                raise
            return Process(container_id=id, pid=task.pid, status=Status.UNKNOWN)
        except Unavailable:
            if await asyncio.shield(watch) is not None or task.is_leaving:
                raise _not_found(id) from None
        return await self.get(namespace, id, exec_id)  # over the new connection

    async def list(self, namespace: str) -> list[Process]:
        """Return the state of every task in *namespace*, by ID."""
        ids = sorted(id for (of, id), task in self._tasks.items() if of == namespace and task is not None)
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
            task = self._task(namespace, id)
            watch = task.watch
            try:
                return await task.client.wait(exec_id)
            except Unavailable:
                if (exit := await asyncio.shield(watch)) is not None:
                    return exit
                if task.is_leaving:
                    raise _not_found(id) from None

    async def kill(self, namespace: str, id: str, exec_id: str, signal_number: int, *, all: bool) -> None:
        """Send a signal. SIGKILL for a task whose shim does not answer ends the shim and the container from outside."""
        task = self._task(namespace, id)
        try:
            await task.client.kill(exec_id, signal_number, all=all, timeout_s=_KILL_WITHIN_S)
        except DeadlineExceeded:
            if exec_id or signal_number != signal.SIGKILL:
                raise
            await self._end_stuck(task)

    async def delete(self, namespace: str, id: str) -> Exit:
        """Remove a task that has ended (or was never started), its shim and its bundle; return how it ended.

        One whose shim does not answer is ended from outside first.
        """
        task = self._task(namespace, id)
        async with task.changing:
            if self._tasks.get((namespace, id)) is not task:
                raise _not_found(id)
            watch = task.watch
            try:
                await task.client.state("", _STATE_WITHIN_S)
            except DeadlineExceeded:
                return await self._end_stuck(task)
            except Unavailable:
                if (exit := await asyncio.shield(watch)) is not None:
                    return exit
            # In a task of its own: once the shim has forgotten the container the rest must follow, client or not.
            return await asyncio.shield(self._spawn(self._delete(task)))

    async def delete_exec(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Remove an exec that has ended; return how."""
        return await self._task(namespace, id).client.delete(exec_id)

    async def pids(self, namespace: str, id: str) -> Sequence[tuple[int, Opaque]]:
        """Return every process of a task with what the shim knows of it."""
        return await self._task(namespace, id).client.pids()

    async def close_stdin(self, namespace: str, id: str, exec_id: str) -> None:
        await self._task(namespace, id).client.close_stdin(exec_id)

    async def resize_pty(self, namespace: str, id: str, exec_id: str, width: int, height: int) -> None:
        await self._task(namespace, id).client.resize_pty(exec_id, width, height)

    async def pause(self, namespace: str, id: str) -> None:
        await self._task(namespace, id).client.pause()

    async def resume(self, namespace: str, id: str) -> None:
        await self._task(namespace, id).client.resume()

    # Making

    async def _create(self, bundle: Bundle, new: NewTask) -> _Task:
        container = await self._db.read(containers.get, bundle.namespace, bundle.id)
        await hit_async("create.begun")
        program = self._launcher.resolve(new.runtime or container.runtime or self._default_runtime)
        options = self._launcher.options(program, new.options or container.runtime_options or Opaque("", b""))
        if bundle.path.exists():  # the name is ours, so this is what an earlier one could not remove
            await self._clean_up(bundle)
        async with Rollback() as steps:
            await blocking(bundle.create, container.spec.value)
            # Before the shim is there: it may be started half-way when that fails.
            steps.undo("clean up after the shim", self._clean_up, bundle)
            await hit_async("create.bundle")
            endpoint = await self._launcher.start(bundle, program, options)
            await hit_async("create.shim")
            client = await TaskClient.connect(endpoint, bundle.id, _CONNECT_WITHIN_S)
            steps.undo("disconnect from the shim", client.close)
            await hit_async("create.connected")
            creating = asyncio.create_task(client.create(bundle.path, new.rootfs, new.stdio, options))
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
        return _Task(bundle=bundle, endpoint=endpoint, client=client, pid=pid)

    def _add(self, task: _Task) -> None:
        self._tasks[task.bundle.namespace, task.bundle.id] = task
        task.watch = self._spawn(self._watch(task))

    def _task(self, namespace: str, id: str) -> _Task:
        task = self._tasks.get((namespace, id))
        if task is None:
            raise _not_found(id)
        return task

    # Ending

    async def _delete(self, task: _Task) -> Exit:
        await hit_async("delete.begun")
        task.is_leaving = True
        try:
            exit = await task.client.delete("")
        except BaseException:
            task.is_leaving = False
            if task.watch.done():  # the shim died of it, and that went unnoticed as intended
                task.watch = self._spawn(self._watch(task))
            raise
        self._launcher.close_log(task.bundle)
        try:
            await hit_async("delete.forgotten")
            is_shared = self._is_shared(task.endpoint, task.bundle)
            await end_shim(task.client, task.endpoint, task.bundle, is_shared=is_shared)
            await hit_async("delete.shim")
            await blocking(task.bundle.delete)
            await hit_async("delete.bundle")
        except Exception:
            # The task is gone as far as anybody can see; a new one, or the next start, removes the rest.
            log.exception("a bundle is left over", extra=named(task.bundle))
        finally:
            await task.client.close()
            self._forget(task)
        return exit

    async def _end_stuck(self, task: _Task) -> Exit:
        """Kill a shim that does not answer; what follows is as when it had died by itself."""
        log.warning("a shim does not answer and is killed", extra=named(task.bundle, task.endpoint))
        watch = task.watch
        if not await blocking(processes.kill, task.endpoint.pid, task.endpoint.started):
            raise DeadlineExceeded(
                f"task {task.bundle.id}: its shim (pid {task.endpoint.pid}) neither answers nor can it be killed"
            )
        return await asyncio.shield(watch) or shims.killed(task.pid)

    async def _watch(self, task: _Task) -> Exit | None:
        """Wait for the connection to end; return how the task ended with it, or None if it did not."""
        await asyncio.wait([task.client.closed])
        if task.is_leaving:
            return None
        if await self._reconnected(task):
            return None
        bundle = task.bundle
        log.warning("a shim has gone", extra=named(bundle, task.endpoint))
        try:
            exit = await self._clean_up(bundle)
        except Exception:
            log.exception("a bundle is left over", extra=named(bundle))
            exit = shims.killed(0)
        exit = replace(exit, pid=exit.pid or task.pid)
        self._forget(task)
        self._exits.publish(bundle, exit)
        return exit

    async def _reconnected(self, task: _Task) -> bool:
        """Connect again, if the shim lives and only the connection was lost: no reason to end a container."""
        await task.client.close()
        try:
            client = await TaskClient.connect(task.endpoint, task.bundle.id, _CONNECT_WITHIN_S)
        except RuntimedError:
            return False
        try:
            await client.state("", _STATE_WITHIN_S)
        except DeadlineExceeded:
            pass  # it is there, and stuck
        except RuntimedError:
            await client.close()
            return False
        task.client = client
        task.watch = self._spawn(self._watch(task))
        return True

    async def _clean_up(self, bundle: Bundle) -> Exit:
        endpoint = await blocking(bundle.endpoint)
        return await clean_up(self._launcher, bundle, is_shared=self._is_shared(endpoint, bundle))

    def _is_shared(self, endpoint: Endpoint | None, bundle: Bundle) -> bool:
        return endpoint is not None and any(
            task is not None and task.bundle != bundle and task.endpoint.path == endpoint.path
            for task in self._tasks.values()
        )

    def _forget(self, task: _Task) -> None:
        key = (task.bundle.namespace, task.bundle.id)
        if self._tasks.get(key) is task:
            del self._tasks[key]

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _not_found(id: str) -> NotFound:
    return NotFound(f"task {id}: not found")
