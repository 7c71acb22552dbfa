"""What a container uses, from the files of cgroup version 1."""

import os
from collections.abc import Callable

from runtimed.errors import NotFound
from shim import metrics_v1 as pb
from shim.hierarchies import Cgroups
from shim.statfiles import integer, nested, number, page_sizes, table, text

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNLIMITED_RDMA = (1 << 32) - 1
_MEMORY = {  # the kernel's name to the field's, where they differ
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_BLKIO = {"io_time_recursive": "time_recursive"}
_DISKS = "/proc/diskstats"
_Fill = Callable[[pb.Metrics, str], None]


def collect(cgroups: Cgroups, disks: str = _DISKS) -> pb.Metrics:
    """Return what there is; what the kernel does not measure is left out.

    Raises:
        NotFound: there is no cgroup any more.
    """
    metrics = pb.Metrics()
    found = [
        _fill(metrics, cgroups, controller, fill)
        for controller, fill in (
            ("cpuacct", _cpu_usage),
            ("cpu", _throttling),
            ("memory", _memory),
            ("pids", _pids),
            ("blkio", lambda metrics, path: _blkio(metrics, path, disks)),
            ("hugetlb", _hugetlb),
            ("rdma", _rdma),
        )
    ]
    if not any(found):
        raise NotFound("its cgroups have been removed")
    return metrics


def _fill(metrics: pb.Metrics, cgroups: Cgroups, controller: str, fill: _Fill) -> bool:
    try:
        directory = cgroups.directory(controller)
    except NotFound:
        return False
    fill(metrics, directory)
    return True


def _cpu(metrics: pb.Metrics) -> pb.CPUStat:
    metrics.cpu = metrics.cpu or pb.CPUStat(usage=pb.CPUUsage(), throttling=pb.Throttle())
    return metrics.cpu


def _cpu_usage(metrics: pb.Metrics, path: str) -> None:
    ticks = table(f"{path}/cpuacct.stat")
    _cpu(metrics).usage = pb.CPUUsage(
        total=number(f"{path}/cpuacct.usage"),
        kernel=ticks.get("system", 0) * _NS_PER_TICK,
        user=ticks.get("user", 0) * _NS_PER_TICK,
        per_cpu=[integer(word) for word in text(f"{path}/cpuacct.usage_percpu").split()],
    )


def _throttling(metrics: pb.Metrics, path: str) -> None:
    stat = table(f"{path}/cpu.stat")
    _cpu(metrics).throttling = pb.Throttle(
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_time=stat.get("throttled_time", 0),
    )


def _memory(metrics: pb.Metrics, path: str) -> None:
    stat = {_MEMORY.get(name, name): value for name, value in table(f"{path}/memory.stat").items()}
    entries = {
        "usage": _entry(f"{path}/memory"),
        "swap": _entry(f"{path}/memory.memsw"),
        "kernel": _entry(f"{path}/memory.kmem"),
        "kernel_tcp": _entry(f"{path}/memory.kmem.tcp"),
    }
    names = (pb.MemoryStat.NAMES & stat.keys()) - entries.keys()  # memory.stat has a "swap" of its own
    metrics.memory = pb.MemoryStat(**{name: stat[name] for name in names}, **entries)
    control = table(f"{path}/memory.oom_control")
    metrics.memory_oom_control = pb.MemoryOomControl(
        **{name: control[name] for name in pb.MemoryOomControl.NAMES & control.keys()}
    )


def _entry(prefix: str) -> pb.MemoryEntry | None:
    if not os.access(f"{prefix}.usage_in_bytes", os.F_OK):
        return None  # swap is not accounted for everywhere
    return pb.MemoryEntry(
        limit=number(f"{prefix}.limit_in_bytes"),
        usage=number(f"{prefix}.usage_in_bytes"),
        max=number(f"{prefix}.max_usage_in_bytes"),
        failcnt=number(f"{prefix}.failcnt"),
    )


def _pids(metrics: pb.Metrics, path: str) -> None:
    # No limit is 0 here, as with containerd, where version 2 has the largest number.
    metrics.pids = pb.PidsStat(current=number(f"{path}/pids.current"), limit=number(f"{path}/pids.max", 0))


def _blkio(metrics: pb.Metrics, path: str, disks: str) -> None:
    names = {line[0] + ":" + line[1]: line[2] for line in map(str.split, text(disks).splitlines()) if len(line) > 2}
    metrics.blkio = pb.BlkIOStat()
    for scheduler in ("", "bfq.", "throttle."):  # one that is not in use has empty files
        for name in pb.BlkIOStat.NAMES:
            entries = _blkio_entries(f"{path}/blkio.{scheduler}{_BLKIO.get(name, name)}", names)
            if entries:
                setattr(metrics.blkio, name, entries)
        if metrics.blkio.io_serviced_recursive:
            return


def _blkio_entries(path: str, names: dict[str, str]) -> list[pb.BlkIOEntry]:
    """Return the lines ``MAJOR:MINOR [OPERATION] VALUE``."""
    entries = []
    for line in map(str.split, text(path).splitlines()):
        major, _, minor = line[0].partition(":") if len(line) > 1 else ("", "", "")
        if minor:
            entries.append(
                pb.BlkIOEntry(
                    op=line[1] if len(line) > 2 else "",
                    device=f"/dev/{names[line[0]]}" if line[0] in names else "",
                    major=integer(major),
                    minor=integer(minor),
                    value=integer(line[-1]),
                )
            )
    return entries


def _hugetlb(metrics: pb.Metrics, path: str) -> None:
    metrics.hugetlb = [
        pb.HugetlbStat(
            usage=number(f"{path}/hugetlb.{size}.usage_in_bytes"),
            max=number(f"{path}/hugetlb.{size}.max_usage_in_bytes"),
            failcnt=number(f"{path}/hugetlb.{size}.failcnt"),
            pagesize=size,
        )
        for size in page_sizes(path, "usage_in_bytes")
    ]


def _rdma(metrics: pb.Metrics, path: str) -> None:
    metrics.rdma = pb.RdmaStat(current=_rdma_entries(f"{path}/rdma.current"), limit=_rdma_entries(f"{path}/rdma.max"))


def _rdma_entries(path: str) -> list[pb.RdmaEntry]:
    return [
        pb.RdmaEntry(device=device, hca_handles=uses.get("hca_handle", 0), hca_objects=uses.get("hca_object", 0))
        for device, uses in nested(path, _UNLIMITED_RDMA)
    ]
