"""ListMetricDescriptors and ListPodSandboxMetrics: the names that cAdvisor has given to what containers use.

Each metric is a line of a table: its name, what it says, its kind, the label keys beyond those that all have, and how
its values come from what was measured. A metric has at least one value for each container (or pod, for the network).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtimed.api import cri_pb2 as pb
from runtimed.cri.core import Core
from runtimed.cri.sampler import Measured
from runtimed.cri.state import Container, Sandbox
from runtimed.cri.usage import Disk, Interface, Pressure, Usage

_COMMON = ("id", "name", "image", "container", "namespace", "pod")
_NS = 1_000_000_000
_US = 1_000_000

# A value with those of the label keys that are the metric's own.
_Values = Sequence[tuple[tuple[str, ...], int]]


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    help: str
    kind: "pb.MetricType"
    keys: tuple[str, ...]
    values: Callable[[Measured, Usage, Container], _Values]


@dataclass(frozen=True, slots=True)
class _NetworkMetric:
    name: str
    help: str
    value: Callable[[Interface], int]


def _one(value: Callable[[Usage], int]) -> Callable[[Measured, Usage, Container], _Values]:
    return lambda measured, used, container: [((), value(used))]


def _of(value: Callable[[Measured], int]) -> Callable[[Measured, Usage, Container], _Values]:
    return lambda measured, used, container: [((), value(measured))]


def _counter(name: str, help: str, value: Callable[[Usage], int]) -> _Metric:
    return _Metric(f"container_{name}", help, pb.COUNTER, (), _one(value))


def _gauge(name: str, help: str, value: Callable[[Usage], int]) -> _Metric:
    return _Metric(f"container_{name}", help, pb.GAUGE, (), _one(value))


def _gauge_of(name: str, help: str, value: Callable[[Measured], int]) -> _Metric:
    return _Metric(f"container_{name}", help, pb.GAUGE, (), _of(value))


def _disk(name: str, help: str, value: Callable[[Disk], int], kind: "pb.MetricType" = pb.COUNTER) -> _Metric:
    def values(measured: Measured, used: Usage, container: Container) -> _Values:
        disks = used.disks or (Disk(0, 0),)
        return [((f"/dev/block/{disk.major}:{disk.minor}",), value(disk)) for disk in disks]

    return _Metric(f"container_{name}", help, kind, ("device",), values)


def _layer(name: str, help: str, value: Callable[[Measured], int]) -> _Metric:
    def values(measured: Measured, used: Usage, container: Container) -> _Values:
        return [((measured.layer.mountpoint if measured.layer else "",), value(measured))]

    return _Metric(f"container_{name}", help, pb.GAUGE, ("device",), values)


def _pressure(what: str, kind: str, help: str) -> _Metric:
    verb = {"some": "waiting", "full": "stalled"}[kind]

    def values(measured: Measured, used: Usage, container: Container) -> _Values:
        return [((), used.pressure.get(what, {}).get(kind, Pressure()).total // _US)]

    return _Metric(f"container_pressure_{what}_{verb}_seconds_total", help, pb.COUNTER, (), values)


def _failures(measured: Measured, used: Usage, container: Container) -> _Values:
    return [
        ((kind, scope), value)
        for scope in ("container", "hierarchy")
        for kind, value in (("pgfault", used.faults), ("pgmajfault", used.major_faults))
    ]


def _operations(measured: Measured, used: Usage, container: Container) -> _Values:
    return [
        ((f"/dev/block/{disk.major}:{disk.minor}", str(disk.major), str(disk.minor), operation), value)
        for disk in used.disks or (Disk(0, 0),)
        for operation, value in (("Read", disk.read_bytes), ("Write", disk.write_bytes))
    ]


def _states(measured: Measured, used: Usage, container: Container) -> _Values:
    return [((state,), 0) for state in ("iowaiting", "running", "sleeping", "stopped", "uninterruptible")]


def _hugepages(index: int) -> Callable[[Measured, Usage, Container], _Values]:
    return lambda measured, used, container: [
        ((size,), both[index]) for size, both in (used.hugepages or {"": (0, 0)}).items()
    ]


def _inodes(measured: Measured) -> int:
    return measured.layer.inodes if measured.layer else 0


def _layer_size(measured: Measured) -> int:
    return measured.layer.size if measured.layer else 0


_METRICS: tuple[_Metric, ...] = (
    _Metric(
        "container_cpu_usage_seconds_total",
        "Processor time used, in seconds.",
        pb.COUNTER,
        ("cpu",),
        lambda measured, used, container: [(("total",), used.cpu // _NS)],
    ),
    _counter("cpu_user_seconds_total", "Processor time used in user mode, in seconds.", lambda u: u.cpu_user // _NS),
    _counter(
        "cpu_system_seconds_total", "Processor time used by the kernel, in seconds.", lambda u: u.cpu_system // _NS
    ),
    _counter("cpu_cfs_periods_total", "Periods in which the processor limit applied.", lambda u: u.periods),
    _counter(
        "cpu_cfs_throttled_periods_total", "Periods in which the limit was reached.", lambda u: u.throttled_periods
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total", "Time held back by the limit, in seconds.", lambda u: u.throttled // _NS
    ),
    _gauge_of("cpu_load_average_10s", "Load average of the last 10 seconds, where the kernel tells it.", lambda m: 0),
    _gauge("memory_usage_bytes", "Memory in use, with all caches.", lambda u: u.memory),
    _gauge("memory_max_usage_bytes", "The most memory that was in use.", lambda u: u.memory_max),
    _gauge("memory_working_set_bytes", "Memory in use that cannot be reclaimed at once.", lambda u: u.working_set),
    _gauge("memory_rss", "Anonymous memory, in bytes.", lambda u: u.rss),
    _gauge("memory_cache", "Page cache, in bytes.", lambda u: u.cache),
    _gauge("memory_swap", "Swap in use, in bytes.", lambda u: u.swap),
    _gauge("memory_mapped_file", "Files mapped into memory, in bytes.", lambda u: u.mapped),
    _gauge("memory_kernel_usage", "Memory that the kernel has allocated for it, in bytes.", lambda u: u.kernel),
    _gauge("memory_total_active_file_bytes", "Page cache in use lately.", lambda u: u.active_file),
    _gauge("memory_total_inactive_file_bytes", "Page cache that is reclaimed first.", lambda u: u.inactive_file),
    _counter("memory_failcnt", "Times that the memory limit was reached.", lambda u: u.failures),
    _Metric("container_memory_failures_total", "Page faults.", pb.COUNTER, ("failure_type", "scope"), _failures),
    _counter("oom_events_total", "Processes killed because memory ran out.", lambda u: u.oom_kills),
    _gauge("spec_memory_limit_bytes", "Memory limit; 0 is none.", lambda u: u.memory_limit),
    _gauge("spec_memory_swap_limit_bytes", "Limit of swap; 0 is none.", lambda u: u.swap_limit),
    _gauge("spec_memory_reservation_limit_bytes", "Memory that is reserved; 0 is none.", lambda u: u.memory_soft_limit),
    _gauge("spec_cpu_period", "Length of a period of the processor limit, in microseconds.", lambda u: u.cpu_period),
    _gauge("spec_cpu_quota", "Processor time in a period, in microseconds; 0 is no limit.", lambda u: u.cpu_quota),
    _gauge("spec_cpu_shares", "Share of the processor, relative to others.", lambda u: u.cpu_shares),
    _gauge_of("processes", "Processes.", lambda m: m.processes),
    _gauge_of("threads", "Threads.", lambda m: m.threads),
    _gauge("threads_max", "Limit of threads; 0 is none.", lambda u: u.tasks_limit),
    _gauge_of("file_descriptors", "Open file descriptors.", lambda m: m.file_descriptors),
    _gauge_of("sockets", "Open sockets.", lambda m: m.sockets),
    _Metric(
        "container_ulimits_soft",
        "Soft limits of the first process.",
        pb.GAUGE,
        ("ulimit",),
        lambda measured, used, container: [(("max_open_files",), measured.nofile)],
    ),
    _Metric("container_tasks_state", "Tasks by state, where the kernel tells it.", pb.GAUGE, ("state",), _states),
    _Metric(
        "container_start_time_seconds",
        "When it was started, in seconds since the epoch.",
        pb.GAUGE,
        (),
        lambda measured, used, container: [((), container.record.started_at // _NS)],
    ),
    _gauge("last_seen", "When it was measured, in seconds since the epoch.", lambda u: u.at // _NS),
    _Metric(
        "container_blkio_device_usage_total",
        "Bytes that went to and from a device.",
        pb.COUNTER,
        ("device", "major", "minor", "operation"),
        _operations,
    ),
    _disk("fs_reads_total", "Reads that a device has done.", lambda d: d.reads),
    _disk("fs_reads_bytes_total", "Bytes read.", lambda d: d.read_bytes),
    _disk("fs_reads_merged_total", "Reads that were merged, where the kernel tells it.", lambda d: 0),
    _disk("fs_read_seconds_total", "Time spent reading, where the kernel tells it.", lambda d: 0),
    _disk("fs_sector_reads_total", "Sectors read.", lambda d: d.read_bytes // 512),
    _disk("fs_writes_total", "Writes that a device has done.", lambda d: d.writes),
    _disk("fs_writes_bytes_total", "Bytes written.", lambda d: d.write_bytes),
    _disk("fs_writes_merged_total", "Writes that were merged, where the kernel tells it.", lambda d: 0),
    _disk("fs_write_seconds_total", "Time spent writing, where the kernel tells it.", lambda d: 0),
    _disk("fs_sector_writes_total", "Sectors written.", lambda d: d.write_bytes // 512),
    _disk("fs_io_current", "Requests under way, where the kernel tells it.", lambda d: 0, pb.GAUGE),
    _disk("fs_io_time_seconds_total", "Time with requests under way, where the kernel tells it.", lambda d: 0),
    _disk("fs_io_time_weighted_seconds_total", "The same, times the requests, where it is told.", lambda d: 0),
    _layer("fs_usage_bytes", "What the writable layer takes on disk.", _layer_size),
    _layer("fs_limit_bytes", "What it may take; 0 is no limit.", lambda m: 0),
    _layer("fs_inodes_total", "Files in the writable layer.", _inodes),
    _layer("fs_inodes_free", "Files that may be made yet; 0 is no limit.", lambda m: 0),
    _Metric("container_hugetlb_usage_bytes", "Huge pages in use.", pb.GAUGE, ("pagesize",), _hugepages(0)),
    _Metric("container_hugetlb_max_usage_bytes", "The most that were.", pb.GAUGE, ("pagesize",), _hugepages(1)),
    _pressure("cpu", "some", "Time in which a task waited for the processor, in seconds."),
    _pressure("cpu", "full", "Time in which all tasks waited for the processor, in seconds."),
    _pressure("memory", "some", "Time in which a task waited for memory, in seconds."),
    _pressure("memory", "full", "Time in which all tasks waited for memory, in seconds."),
    _pressure("io", "some", "Time in which a task waited for a disk, in seconds."),
    _pressure("io", "full", "Time in which all tasks waited for a disk, in seconds."),
)

_NETWORK: tuple[_NetworkMetric, ...] = (
    _NetworkMetric("container_network_receive_bytes_total", "Bytes received.", lambda i: i.rx_bytes),
    _NetworkMetric("container_network_receive_packets_total", "Packets received.", lambda i: i.rx_packets),
    _NetworkMetric(
        "container_network_receive_packets_dropped_total", "Packets dropped on receipt.", lambda i: i.rx_dropped
    ),
    _NetworkMetric("container_network_receive_errors_total", "Errors while receiving.", lambda i: i.rx_errors),
    _NetworkMetric("container_network_transmit_bytes_total", "Bytes sent.", lambda i: i.tx_bytes),
    _NetworkMetric("container_network_transmit_packets_total", "Packets sent.", lambda i: i.tx_packets),
    _NetworkMetric("container_network_transmit_packets_dropped_total", "Packets not sent.", lambda i: i.tx_dropped),
    _NetworkMetric("container_network_transmit_errors_total", "Errors while sending.", lambda i: i.tx_errors),
)


def descriptors() -> list[pb.MetricDescriptor]:
    """Return each metric's name, what it says, and its label keys."""
    found = [pb.MetricDescriptor(name=one.name, help=one.help, label_keys=(*_COMMON, *one.keys)) for one in _METRICS]
    found += [pb.MetricDescriptor(name=one.name, help=one.help, label_keys=(*_COMMON, "interface")) for one in _NETWORK]
    return found


async def pod_sandbox_metrics(core: Core) -> list[pb.PodSandboxMetrics]:
    """Return the metrics of every pod that runs, and of the containers that run in it."""
    core.forget_measured()
    sandboxes = [one for one in core.state.sandboxes if one.is_ready]
    pods = await core.sampler.sandboxes(sandboxes)
    containers = [c for one in sandboxes for c in one.containers.values() if c.state == pb.CONTAINER_RUNNING]
    measured = dict(zip(containers, await core.sampler.containers(containers, in_depth=True), strict=True))
    return [
        pb.PodSandboxMetrics(
            pod_sandbox_id=sandbox.id,
            metrics=_network(sandbox, pod),
            container_metrics=[
                pb.ContainerMetrics(container_id=one.id, metrics=_container(one, measured[one]))
                for one in sandbox.containers.values()
                if one in measured
            ],
        )
        for sandbox, pod in zip(sandboxes, pods, strict=True)
    ]


def _container(container: Container, measured: Measured) -> list[pb.Metric]:
    used = measured.usage
    if used is None:
        return []
    metadata = container.sandbox.config.metadata
    common = (
        *(container.id, container.config.metadata.name, container.config.image.image),
        *(container.config.metadata.name, metadata.namespace, metadata.name),
    )
    return [
        _metric(one.name, used.at, one.kind, (*common, *labels), value)
        for one in _METRICS
        for labels, value in one.values(measured, used, container)
    ]


def _network(sandbox: Sandbox, measured: Measured) -> list[pb.Metric]:
    metadata = sandbox.config.metadata
    common = (sandbox.id, "POD", "", "POD", metadata.namespace, metadata.name)
    at = measured.usage.at if measured.usage else time.time_ns()
    return [
        _metric(one.name, at, pb.COUNTER, (*common, interface.name), one.value(interface))
        for interface in measured.interfaces
        for one in _NETWORK
    ]


def _metric(name: str, at: int, kind: "pb.MetricType", labels: Sequence[str], value: int) -> pb.Metric:
    return pb.Metric(
        name=name, timestamp=at, metric_type=kind, label_values=labels, value=pb.UInt64Value(value=max(value, 0))
    )
