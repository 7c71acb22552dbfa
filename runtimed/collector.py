"""When garbage collection runs: after deletions, after many changes, when something expires, and when it is asked to.

The thresholds are those of containerd's scheduler. One collection at a time; its work is in slices between which
requests go on, and it takes no more than a small share of the time (``[gc] pause_percent``).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from runtimed import failpoints, gcgraph
from runtimed.api import events_pb2, images_pb2
from runtimed.config import Gc
from runtimed.errors import RuntimedError, Unavailable
from runtimed.events import EventBus
from runtimed.gcgraph import Graph, Node
from runtimed.metadata import gc
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.gc import Removed
from runtimed.metadata.snapshots import Snapshots
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_SLICE = 200  # rows removed in one transaction
_SHORTEST_S = 0.005  # what a collection counts for at least
_LONGEST_WAIT_S = 60.0  # the wall clock is looked at that often
_SCAN_S = 1.0  # how soon a new expiry is known
_RETRY_S = 5.0  # after a failure, and for snapshots that were in use


class Listener(Protocol):
    """Hears how many records a collection removed, how many seconds it took, and whether it failed."""

    def __call__(self, removed: int, seconds: float, *, failed: bool) -> None: ...


class Collector:
    """Collects while :meth:`running`. Belongs to the event loop's thread."""

    def __init__(
        self,
        db: Database,
        content: Content,
        snapshotters: Mapping[str, Snapshots],
        events: EventBus,
        config: Gc,
        take_off: Callable[[str], object],
    ) -> None:
        """*take_off* takes the mounts of a directory off; it blocks."""
        self._db = db
        self._content = content
        self._snapshotters = snapshotters
        self._events = events
        self._config = config
        self._take_off = take_off
        self._clock = gc.Clock()
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._asked_at = 0.0
        self._changes = self._deletions = 0  # since the last collection
        self._earliest = time.monotonic() + config.startup_delay_ms / 1000  # when the next may begin unasked
        self._is_first = True
        self._next_expiry: int | None = None  # ns UTC
        self._scan_at: float | None = None  # when to look for a new expiry
        self._left: dict[str, set[str]] = {}  # snapshots without a row that could not be removed
        self._retry_at: float | None = None
        self._is_closed = False
        self.listener: Listener | None = None  # hears of each collection

    def configure(self, config: Gc) -> None:
        """Take other settings from now on."""
        self._config = config
        self._wake.set()

    async def collect(self) -> None:
        """Return when a collection that began after this call has ended, with everything removed from disk.

        Raises: what made it fail.
        """
        if self._is_closed:
            raise Unavailable("the daemon is stopping: nothing is collected")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._asked_at = time.monotonic()
        self._waiting.append(done)
        self._wake.set()
        await done

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Collect while the block runs. What is being removed when it ends is removed to the end of its slice."""
        loop = asyncio.get_running_loop()
        self._db.listener = lambda changes, is_deletion: loop.call_soon_threadsafe(self._note, changes, is_deletion)
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._is_closed = True
            self._db.listener = None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for waiting in self._waiting:
                waiting.cancel()

    def _note(self, changes: int, is_deletion: bool) -> None:
        self._changes += changes
        self._deletions += is_deletion
        if self._scan_at is None:
            self._scan_at = time.monotonic() + _SCAN_S
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            wait = self._wait_s()
            if wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
            elif self._scan_at is not None and not self._is_due():
                await self._scan()
            else:
                await self._collect_and_answer()

    def _wait_s(self) -> float:
        """Return how long nothing is to be done, unless something happens."""
        now = time.monotonic()
        times = [now + _LONGEST_WAIT_S]
        if self._waiting:
            times.append(self._asked_at + self._config.schedule_delay_ms / 1000)
        limit = self._config.deletion_threshold
        if limit and self._deletions >= limit:
            times.append(now + self._config.schedule_delay_ms / 1000)
        if self._is_wanted():
            times.append(self._earliest)
        if self._next_expiry is not None:
            seconds = (self._next_expiry - self._clock.now()) / 10**9
            times.append(max(self._earliest, now + max(seconds, 0)))
        times += [at for at in (self._retry_at, self._scan_at) if at is not None]
        return min(times) - now

    def _is_wanted(self) -> bool:
        limit = self._config.mutation_threshold
        return self._is_first or self._deletions > 0 or bool(limit and self._changes >= limit)

    def _is_due(self) -> bool:
        """Say whether it is time for a collection, rather than for a scan only."""
        scan_at, self._scan_at = self._scan_at, None
        try:
            return self._wait_s() <= 0
        finally:
            self._scan_at = scan_at

    async def _scan(self) -> None:
        """Learn when the next record expires, now that there may be others."""
        began = time.monotonic()
        self._scan_at = None
        try:
            self._next_expiry = await self._db.read(gc.next_expiry, self._clock.now())
        except RuntimedError as exc:
            log.warning("expiring records not looked for", extra={"error": str(exc)})
            self._scan_at = began + _RETRY_S

    async def _collect_and_answer(self) -> None:
        began = time.monotonic()
        answered, self._waiting = self._waiting, []
        self._changes = self._deletions = 0
        self._is_first = False
        self._scan_at = self._retry_at = None
        failure: Exception | None = None
        removed = 0
        try:
            removed = await self._collect()
        except asyncio.CancelledError:
            for waiting in answered:
                waiting.cancel()
            raise
        except Exception as exc:
            failure = exc
            self._retry_at = time.monotonic() + _RETRY_S
            log.exception("garbage collection failed", extra={"retry_s": _RETRY_S})
        for waiting in answered:
            if not waiting.done():
                waiting.set_exception(failure) if failure else waiting.set_result(None)
        took = max(time.monotonic() - began, _SHORTEST_S)
        self._earliest = time.monotonic() + took * (100 / max(self._config.pause_percent, 1) - 1)
        if self.listener is not None:
            self.listener(removed, took, failed=failure is not None)
        if removed:
            log.info("garbage collected", extra={"removed": removed, "ms": round(took * 1000)})

    async def _collect(self) -> int:
        await self._db.write(gc.watch)
        count = 0
        try:
            graph, dead = await blocking(self._mark)
            self._next_expiry = graph.next_expiry
            await failpoints.hit_async("gc.marked")
            for start in range(0, len(dead), _SLICE):
                removed = await self._db.write(gc.sweep, graph, dead[start : start + _SLICE], self._is_busy)
                await failpoints.hit_async("gc.swept")
                await blocking(self._remove, removed)
                await failpoints.hit_async("gc.removed")
                self._publish(removed)
                count += len(removed)
        finally:
            await self._db.write(gc.unwatch)
        await blocking(self._remove_left)
        return count

    def _mark(self) -> tuple[Graph, list[Node]]:
        held = self._content.held()  # before the tables: who takes an ingest up later writes to its row
        with self._db.reading() as tx:
            graph = gc.load(tx, self._clock.now(), held)
        return graph, graph.dead()

    def _is_busy(self, snapshotter: str, backend_key: str) -> bool:
        snapshots = self._snapshotters.get(snapshotter)
        return snapshots is None or snapshots.is_busy(backend_key)  # of one that is not loaded nothing is removed

    def _remove(self, removed: Sequence[Removed]) -> None:
        """Remove from disk what has no row any more. What fails is logged; the next start finds it."""
        snapshots: dict[str, list[str]] = {}  # by snapshotter, children before their parents
        for node, place, expected in removed:
            kind, _, name = node.type.partition("/")
            try:
                if kind == gcgraph.CONTENT:
                    self._content.remove_unnamed(node.id)
                elif kind == gcgraph.INGESTS:
                    self._content.drop_ingest(place, expected)
                elif kind == gcgraph.MOUNTS:
                    self._take_off(place)
                elif name:
                    snapshots.setdefault(name, []).append(place)
            except RuntimedError as exc:
                log.warning("garbage stays on disk", extra={"type": node.type, "id": node.id, "error": str(exc)})
        for name, keys in snapshots.items():
            if left := self._snapshotters[name].discard_many(keys):
                self._left.setdefault(name, set()).update(left)

    def _remove_left(self) -> None:
        """Try again with the snapshots that were in use; children may have been made after their parents."""
        for name, keys in self._left.items():
            while gone := {key for key in keys if self._snapshotters[name].discard(key)}:
                keys -= gone
        if any(self._left.values()):
            self._retry_at = time.monotonic() + _RETRY_S

    def _publish(self, removed: Sequence[Removed]) -> None:
        """Tell of what containerd's collector tells of: images and snapshots."""
        for node, *_ in removed:
            kind, _, name = node.type.partition("/")
            if kind == gcgraph.IMAGES:
                self._events.publish(node.namespace, "/images/delete", images_pb2.ImageDelete(name=node.id))
            elif name:
                event = events_pb2.SnapshotRemove(key=node.id, snapshotter=name)
                self._events.publish(node.namespace, "/snapshot/remove", event)
