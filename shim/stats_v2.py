"""What a container uses, from the files of cgroup version 2 (kernel: admin-guide/cgroup-v2.rst)."""

from shim import metrics_v2 as pb
from shim.hierarchies import Cgroups
from shim.proto import Message
from shim.statfiles import integer, nested, number, page_sizes, table, text

_UNLIMITED_RDMA = (1 << 32) - 1


def collect(cgroups: Cgroups) -> pb.Metrics:
    """Return what there is; what the kernel does not measure is left out.

    Raises:
        NotFound: there is no cgroup any more.
    """
    path = cgroups.directory("")
    return pb.Metrics(
        pids=pb.PidsStat(current=number(f"{path}/pids.current"), limit=number(f"{path}/pids.max")),
        cpu=pb.CPUStat(**_named(pb.CPUStat, table(f"{path}/cpu.stat")), psi=_pressure(f"{path}/cpu.pressure")),
        memory=_memory(path),
        rdma=pb.RdmaStat(current=_rdma(f"{path}/rdma.current"), limit=_rdma(f"{path}/rdma.max")),
        io=pb.IOStat(usage=_io(f"{path}/io.stat"), psi=_pressure(f"{path}/io.pressure")),
        hugetlb=[_hugetlb(f"{path}/hugetlb.{size}", size) for size in page_sizes(path, "current")],
        memory_events=pb.MemoryEvents(**_named(pb.MemoryEvents, table(f"{path}/memory.events"))),
    )


def _named(kind: type[Message], values: dict[str, int]) -> dict[str, int]:
    """Return those of the kernel's values that the message has a field for: the names are the same."""
    return {name: values[name] for name in kind.NAMES & values.keys()}


def _memory(path: str) -> pb.MemoryStat:
    stat = table(f"{path}/memory.stat")
    for name in ("workingset_refault", "workingset_activate"):  # in two parts from Linux 5.9 on
        if name not in stat:
            stat[name] = stat.get(f"{name}_anon", 0) + stat.get(f"{name}_file", 0)
    return pb.MemoryStat(
        **_named(pb.MemoryStat, stat),
        usage=number(f"{path}/memory.current"),
        usage_limit=number(f"{path}/memory.max"),
        swap_usage=number(f"{path}/memory.swap.current"),
        swap_limit=number(f"{path}/memory.swap.max"),
        max_usage=number(f"{path}/memory.peak"),
        swap_max_usage=number(f"{path}/memory.swap.peak"),
        psi=_pressure(f"{path}/memory.pressure"),
    )


def _pressure(path: str) -> pb.PSIStats | None:
    """Return pressure stall information; None where the kernel keeps none."""
    stats = pb.PSIStats()
    for line in map(str.split, text(path).splitlines()):
        if line and line[0] in {"some", "full"}:
            values = {key: value for key, _, value in (pair.partition("=") for pair in line[1:])}
            data = pb.PSIData(
                avg10=float(values.get("avg10", 0)),
                avg60=float(values.get("avg60", 0)),
                avg300=float(values.get("avg300", 0)),
                total=integer(values.get("total", "")),
            )
            setattr(stats, line[0], data)
    return stats if stats.some or stats.full else None


def _rdma(path: str) -> list[pb.RdmaEntry]:
    return [
        pb.RdmaEntry(device=device, hca_handles=uses.get("hca_handle", 0), hca_objects=uses.get("hca_object", 0))
        for device, uses in nested(path, _UNLIMITED_RDMA)
    ]


def _io(path: str) -> list[pb.IOEntry]:
    entries = []
    for device, values in nested(path):
        major, _, minor = device.partition(":")
        entries.append(pb.IOEntry(major=integer(major), minor=integer(minor), **_named(pb.IOEntry, values)))
    return entries


def _hugetlb(prefix: str, size: str) -> pb.HugeTlbStat:
    return pb.HugeTlbStat(
        current=number(f"{prefix}.current"),
        max=number(f"{prefix}.max"),
        pagesize=size,
        failcnt=table(f"{prefix}.events").get("max", 0),
    )
