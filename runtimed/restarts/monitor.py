"""The restart monitor: tasks are brought into the state that the labels of their containers ask for.

As containerd's, it looks at every container that has ``containerd.io/restart.status`` from time to time. Besides, an
end is looked at when it is told, so that a container is back a second after it has ended, not ten. One that ends again
and again waits twice as long each time, up to a minute; one that has run for ten seconds begins anew.

The labels are the client's: clients copy labels of images to containers, but the log URI of an image, which would make
the daemon write files or start programs as its maker pleases, has been left out when the container was recorded
(:mod:`runtimed.services.containers`).
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import msgspec

from runtimed import labels
from runtimed.api import events_pb2
from runtimed.errors import NotFound, ResourceExhausted, RuntimedError
from runtimed.events import EventBus
from runtimed.metadata import containers
from runtimed.metadata.containers import Container
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount
from runtimed.restarts import policy
from runtimed.tasks import client as shims
from runtimed.tasks.background import Background
from runtimed.tasks.client import Process, Status, Stdio
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_STEADY_AFTER_S = 10.0  # a task that has run for so long did not fail at once

Name = tuple[str, str]  # namespace and ID


@dataclass(slots=True)
class _Attempt:
    """What is known of a container's restarts."""

    pause_s: float = _FIRST_PAUSE_S
    started_at: float = 0.0  # monotonic
    exit_status: int | None = None  # of its last task, when that was told


class _Terminal(msgspec.Struct):
    terminal: bool = False


class _Spec(msgspec.Struct):
    process: _Terminal | None = None


class RestartMonitor:
    """Starts and stops while :meth:`running`. Belongs to the event loop's thread."""

    def __init__(
        self,
        db: Database,
        tasks: TaskManager,
        snapshotters: Mapping[str, Snapshots],
        events: EventBus,
        *,
        interval_s: float,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        """*interval_s* is how often all containers are looked at; 0: nothing is done at all."""
        self._db = db
        self._tasks = tasks
        self._snapshotters = snapshotters
        self._events = events
        self._interval_s = interval_s
        self._first_pause_s = first_pause_s
        self._attempts: dict[Name, _Attempt] = {}
        self._busy: set[Name] = set()
        self._complained: set[tuple[Name, str]] = set()
        self._background = Background()
        self._changed = asyncio.Event()

    def configure(self, interval_s: float) -> None:
        """Take another interval from now on."""
        self._interval_s = interval_s
        self._changed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep containers as they are to be while the block runs. What is being started when it ends may be undone."""
        self._background.spawn(self._look_again_and_again())
        self._background.spawn(self._follow_exits())
        try:
            yield
        finally:
            await self._background.end()

    async def _look_again_and_again(self) -> None:
        while True:
            self._changed.clear()
            try:
                if self._interval_s:
                    await self.look()
            except RuntimedError as exc:
                log.warning("containers to restart cannot be looked for", extra={"error": str(exc)})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s or None):
                    await self._changed.wait()

    async def look(self) -> Sequence[asyncio.Task[None]]:
        """Look at all containers; return what is being done about those that are not as they are to be."""
        found = await self._db.read(containers.labelled, labels.RESTART_STATUS)
        there = {(namespace, container.id) for namespace, container in found}
        for name in self._attempts.keys() - there - self._busy:
            del self._attempts[name]
        now = time.time_ns()
        # Of others the client may be about to make the task.
        steady = [one for one in found if now - one[1].updated_at > self._interval_s * 10**9]
        begun = [self._begin((namespace, container.id), pause_s=0) for namespace, container in steady]
        return [task for task in begun if task is not None]

    async def _follow_exits(self) -> None:
        while True:
            # Falling behind loses ends; they are found by looking.
            with suppress(ResourceExhausted), self._events.subscribe(["topic==/tasks/exit"]) as subscription:
                async for envelope in subscription:
                    if self._interval_s and (ended := shims.ended_init(envelope)) is not None:
                        await self._has_ended((envelope.namespace, ended.id), ended.exit.status)
                return

    async def _has_ended(self, name: Name, exit_status: int) -> None:
        try:
            container = await self._db.read(containers.get, *name)
        except RuntimedError:
            return
        if container.labels.get(labels.RESTART_STATUS) != policy.RUNNING:
            return
        attempt = self._attempts.setdefault(name, _Attempt(self._first_pause_s))
        attempt.exit_status = exit_status
        if time.monotonic() - attempt.started_at > _STEADY_AFTER_S:
            attempt.pause_s = self._first_pause_s
        self._begin(name, pause_s=attempt.pause_s)
        attempt.pause_s = min(2 * attempt.pause_s, _LONGEST_PAUSE_S)

    def _begin(self, name: Name, *, pause_s: float) -> "asyncio.Task[None] | None":
        if name in self._busy:
            return None
        self._busy.add(name)
        return self._background.spawn(self._put_right(name, pause_s))

    async def _put_right(self, name: Name, pause_s: float) -> None:
        try:
            await asyncio.sleep(pause_s)
            container = await self._db.read(containers.get, *name)
            await self._reconcile(name, container)
        except NotFound:
            self._attempts.pop(name, None)  # deleted meanwhile
        except RuntimedError as exc:
            log.warning("a container is not restarted", extra=_named(name) | {"error": str(exc)})
        finally:
            self._busy.discard(name)

    async def _reconcile(self, name: Name, container: Container) -> None:
        task = await self._task(name)
        match container.labels.get(labels.RESTART_STATUS):
            case policy.STOPPED if task is not None and task.status is not Status.STOPPED:
                await self._remove(name, task)
            case policy.RUNNING if task is None or task.status is Status.STOPPED:
                exit_status = self._attempts[name].exit_status if name in self._attempts else None
                if task is not None:
                    exit_status = task.exit_status
                if self._is_wanted(name, container, exit_status):
                    await self._start(name, container, task)

    def _is_wanted(self, name: Name, container: Container, exit_status: int | None) -> bool:
        try:
            return policy.is_wanted(container.labels, exit_status)
        except RuntimedError as exc:
            if (name, str(exc)) not in self._complained:
                self._complained.add((name, str(exc)))
                log.warning("a container is not restarted", extra=_named(name) | {"error": str(exc)})
            return False

    async def _start(self, name: Name, container: Container, task: Process | None) -> None:
        namespace, id = name
        restarts = policy.count(container.labels) + 1
        attempt = self._attempts.setdefault(name, _Attempt(self._first_pause_s))
        attempt.started_at = time.monotonic()
        counted = replace(container, labels={labels.RESTART_COUNT: str(restarts)})
        stored = await self._db.write(containers.update, namespace, counted, [f"labels.{labels.RESTART_COUNT}"])
        event = events_pb2.ContainerUpdate(
            id=id, image=stored.image, labels=stored.labels, snapshot_key=stored.snapshot_key
        )
        self._events.publish(namespace, "/containers/update", event)
        if task is not None:
            await self._remove(name, task)
        new = NewTask(id=id, rootfs=await self._rootfs(namespace, container), stdio=_stdio(container))
        await self._tasks.create(namespace, new)
        try:
            await self._tasks.start(namespace, id, "")
        except RuntimedError:
            with suppress(RuntimedError):
                await self._tasks.delete(namespace, id)
            raise
        log.info("a container is restarted", extra=_named(name) | {"count": restarts})

    async def _rootfs(self, namespace: str, container: Container) -> Sequence[Mount]:
        if not container.snapshot_key:
            return ()
        snapshots = self._snapshotters.get(container.snapshotter)
        if snapshots is None:
            raise NotFound(f"container {container.id!r}: snapshotter {container.snapshotter!r}")
        return await blocking(snapshots.mounts, namespace, container.snapshot_key)

    async def _task(self, name: Name) -> Process | None:
        try:
            return await self._tasks.get(*name)
        except NotFound:
            return None

    async def _remove(self, name: Name, task: Process) -> None:
        if task.status is not Status.STOPPED:
            with suppress(NotFound):
                await self._tasks.kill(*name, "", signal.SIGKILL, all=True)
            await self._tasks.wait(*name, "")
        with suppress(NotFound):
            await self._tasks.delete(*name)


def _stdio(container: Container) -> Stdio:
    uri = container.labels.get(labels.RESTART_LOG_URI, "")
    try:
        spec = msgspec.json.decode(container.spec.value, type=_Spec)
    except msgspec.MsgspecError:
        spec = _Spec()
    is_terminal = spec.process is not None and spec.process.terminal
    return Stdio(stdout=uri, stderr="" if is_terminal else uri, terminal=is_terminal and bool(uri))


def _named(name: Name) -> dict[str, str]:
    return {"namespace": name[0], "container": name[1]}
