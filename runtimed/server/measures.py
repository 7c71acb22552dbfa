"""What Prometheus is told: counts and times of what the daemon does, and what there is when it asks.

Loaded only if there is an address to tell it on. docs/metrics.md has the list.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as Count
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtimed.errors import STATUSES, os_errors
from runtimed.images.timings import Timings
from runtimed.metadata.db import Tx
from runtimed.server.parts import Parts
from runtimed.threads import blocking

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CALL_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)  # seconds
_WORK_BUCKETS = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300)  # seconds
# As Go's servers, containerd among them, write the codes.
_CODES = {code: code.title().replace("_", "") for code in STATUSES} | {"OK": "OK", "CANCELLED": "Canceled"}


class Measures:
    """Takes note of what happens, and looks at the daemon's parts when it is asked. Belongs to the event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self._calls = Count("grpc_server_handled", "Calls that have ended.", (*labels, "grpc_code"), registry=registry)
        self._call_times = Histogram(
            "grpc_server_handling_seconds", "How long calls took.", labels, buckets=_CALL_BUCKETS, registry=registry
        )
        self._pulls = Histogram(
            "runtimed_image_pull_seconds", "Pulls that succeeded.", buckets=_WORK_BUCKETS, registry=registry
        )
        self._stages = Count(
            "runtimed_image_pull_stage_seconds",
            "Of the stages of pulls; those of layers are added up, though they overlap.",
            ("stage",),
            registry=registry,
        )
        self._bytes = Count("runtimed_image_pull_bytes", "Bytes of layers that pulls downloaded.", registry=registry)
        self._layers = Count(
            "runtimed_image_pull_layers", "Layers of images that were pulled.", ("origin",), registry=registry
        )
        self._collections = Histogram(
            "runtimed_gc_seconds", "Garbage collections.", ("result",), buckets=_WORK_BUCKETS, registry=registry
        )
        self._removed = Count("runtimed_gc_removed", "Records that garbage collections removed.", registry=registry)
        self._state = _State()
        registry.register(self._state)

    def called(self, kind: str, path: str, code: str, seconds: float) -> None:
        """Take note of a call of *path*, such as ``unary``, that ended with *code*, one of STATUSES."""
        _, service, method = path.split("/")
        self._calls.labels(kind, service, method, _CODES.get(code, "Unknown")).inc()
        self._call_times.labels(kind, service, method).observe(seconds)

    def pulled(self, timings: Timings) -> None:
        """Take note of a pull that succeeded."""
        self._pulls.observe(timings.total_s)
        self._bytes.inc(timings.downloaded)
        self._stages.labels("resolve").inc(timings.resolve_s)
        self._stages.labels("manifests").inc(timings.manifests_s)
        for layer in timings.layers:
            self._layers.labels("here" if layer.was_here else "downloaded").inc()
            self._stages.labels("download").inc(layer.download_s)
            self._stages.labels("unpack").inc(layer.unpack_s)

    def collected(self, removed: int, seconds: float, *, failed: bool) -> None:
        """Take note of a garbage collection."""
        self._collections.labels("error" if failed else "ok").observe(seconds)
        self._removed.inc(removed)

    async def text(self) -> bytes:
        """Return all of it in Prometheus' text format. Raises RuntimedError: the database or disk does not answer."""
        found = await self._parts.database.read(_records)
        with os_errors("file system of the root directory"):
            disk = await blocking(os.statvfs, self._parts.config.root)
        self._state.families = [*self._records(found), *self._disk(disk), *self._running()]
        self._state.families += [*self._processes(), *self._events()]
        return generate_latest(self._registry)

    def _records(self, found: "_Records") -> Iterator[Metric]:
        yield _gauge("runtimed_records", "Records of all namespaces, by kind.", "kind", found.counts.items())
        yield _gauge("runtimed_snapshots", "Snapshots of all namespaces.", "snapshotter", found.snapshots.items())
        yield _gauge("runtimed_blob_bytes", "Bytes of all blobs, each counted once.", "", [("", found.blob_bytes)])

    def _disk(self, disk: os.statvfs_result) -> Iterator[Metric]:
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        yield _gauge("runtimed_root_size_bytes", "Size of the root directory's file system.", "", [("", size)])
        yield _gauge("runtimed_root_available_bytes", "What of that is free.", "", [("", free)])

    def _running(self) -> Iterator[Metric]:
        pulls = self._parts.transfer.puller.running
        sizes = (("fetched", sum(one.fetched for one in pulls)), ("total", sum(one.total for one in pulls)))
        yield _gauge("runtimed_image_pulls_running", "Pulls under way.", "", [("", len(pulls))])
        yield _gauge("runtimed_image_pulls_running_bytes", "Bytes of their blobs.", "state", sizes)

    def _processes(self) -> Iterator[Metric]:
        holdings, pool = self._parts.tasks.holdings(), self._parts.pool
        tasks = Counter(namespace for namespace, _ in holdings.tasks)
        yield _gauge("runtimed_tasks", "Tasks that exist, running or not.", "namespace", tasks.items())
        yield _gauge("runtimed_shims", "Shims that serve tasks.", "", [("", len(holdings.shims))])
        workers = (("busy", pool.busy), ("idle", pool.idle))
        yield _gauge("runtimed_workers", "Worker processes.", "state", workers)
        yield _gauge("runtimed_build_info", "Which version this is.", "version", [(version("runtimed"), 1)])

    def _events(self) -> Iterator[Metric]:
        events = self._parts.events
        told = CounterMetricFamily("runtimed_events", "Events by topic.", labels=("topic",))
        for topic, count in events.told.items():
            told.add_metric((topic,), count)
        yield told
        yield CounterMetricFamily("runtimed_events_lost", "Events lost by slow subscribers.", value=events.lost)
        yield _gauge("runtimed_event_subscribers", "Who hears events now.", "", [("", events.subscribers)])


@dataclass(frozen=True, slots=True)
class _Records:
    counts: dict[str, int]
    snapshots: dict[str, int]
    blob_bytes: int


def _records(tx: Tx) -> _Records:
    tables = ("namespaces", "images", "containers", "sandboxes", "leases")
    counts = {table: int(tx.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]) for table in tables}
    blobs = tx.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM (SELECT DISTINCT digest, size FROM blobs)")
    counts["blobs"], size = blobs.fetchone()
    rows = tx.execute("SELECT snapshotter, COUNT(*) FROM snapshots GROUP BY snapshotter")
    return _Records(counts, {row[0]: row[1] for row in rows}, size)


def _gauge(name: str, help: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=(label,) if label else ())
    for value in values:
        family.add_metric((value[0],) if label else (), value[1])
    return family


class _State:
    """What was there when it was last looked."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.families
