"""What a cgroup and a network namespace use, read from the kernel's files (admin-guide/cgroup-v1, cgroup-v2.rst)."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtimed.linux import cgroups
from runtimed.linux.cgroups import Cgroup, integer

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pressure:
    """A line of a pressure file (accounting/psi.rst): averages in percent, the total in microseconds."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """What went to and from a device, in bytes and requests."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """As of ``at`` (ns since the epoch, UTC) and ``clock`` (monotonic). Times are ns, sizes bytes; 0 is no limit."""

    at: int
    clock: int
    cpu: int = 0
    cpu_user: int = 0
    cpu_system: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0
    memory: int = 0
    memory_limit: int = 0
    memory_soft_limit: int = 0
    memory_max: int = 0
    working_set: int = 0
    rss: int = 0
    cache: int = 0
    mapped: int = 0
    kernel: int = 0
    active_file: int = 0
    inactive_file: int = 0
    faults: int = 0
    major_faults: int = 0
    failures: int = 0  # attempts to use more memory than the limit
    oom_kills: int = 0
    swap: int = 0
    swap_limit: int = 0
    tasks: int = 0
    tasks_limit: int = 0
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    disks: tuple[Disk, ...] = ()
    pressure: Mapping[str, Mapping[str, Pressure]] = field(default_factory=dict)  # cpu, memory, io: some, full
    hugepages: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by page size: usage, maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A line of /proc/PID/net/dev."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def read(cgroup: Cgroup) -> Usage | None:
    """Return what is used now; None if the cgroup is gone. Blocks."""
    if not os.path.isdir(cgroup.path("memory", "")):  # noqa: PTH112  a string all the way
        return None
    return _read_v2(cgroup) if cgroup.is_unified else _read_v1(cgroup)


def interfaces(pid: int) -> list[Interface]:
    """Return the network interfaces that a process sees, without the loopback one. Blocks."""
    found = []
    for line in cgroups.text(f"/proc/{pid}/net/dev").splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = [integer(word) for word in rest.split()]
        if len(values) >= 16 and name.strip() != "lo":
            rx, tx = values[:4], values[8:12]
            found.append(
                Interface(
                    name=name.strip(),
                    rx_bytes=rx[0],
                    rx_packets=rx[1],
                    rx_errors=rx[2],
                    rx_dropped=rx[3],
                    tx_bytes=tx[0],
                    tx_packets=tx[1],
                    tx_errors=tx[2],
                    tx_dropped=tx[3],
                )  # fmt: skip
            )
    return found


def _read_v2(cgroup: Cgroup) -> Usage:
    cpu, memory, events = (cgroup.table("", name) for name in ("cpu.stat", "memory.stat", "memory.events"))
    usage = cgroup.number("", "memory.current")
    quota, _, period = cgroup.text("", "cpu.max").strip().partition(" ")
    return Usage(
        at=time.time_ns(),
        clock=time.monotonic_ns(),
        cpu=cpu.get("usage_usec", 0) * 1000,
        cpu_user=cpu.get("user_usec", 0) * 1000,
        cpu_system=cpu.get("system_usec", 0) * 1000,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled=cpu.get("throttled_usec", 0) * 1000,
        memory=usage,
        memory_limit=cgroup.number("", "memory.max"),
        memory_soft_limit=cgroup.number("", "memory.low"),
        memory_max=cgroup.number("", "memory.peak"),
        working_set=max(usage - memory.get("inactive_file", 0), 0),
        rss=memory.get("anon", 0),
        cache=memory.get("file", 0),
        mapped=memory.get("file_mapped", 0),
        kernel=memory.get("kernel", 0),
        active_file=memory.get("active_file", 0),
        inactive_file=memory.get("inactive_file", 0),
        faults=memory.get("pgfault", 0),
        major_faults=memory.get("pgmajfault", 0),
        failures=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
        swap=cgroup.number("", "memory.swap.current"),
        swap_limit=cgroup.number("", "memory.swap.max"),
        tasks=cgroup.number("", "pids.current"),
        tasks_limit=cgroup.number("", "pids.max"),
        cpu_shares=_shares(cgroup.number("", "cpu.weight")),
        cpu_quota=integer(quota) if quota != "max" else 0,
        cpu_period=integer(period),
        disks=tuple(_disks_v2(cgroup.text("", "io.stat"))),
        pressure={what: _pressure(cgroup.text("", f"{what}.pressure")) for what in ("cpu", "memory", "io")},
        hugepages=_hugepages(cgroup, "current", "max"),
    )


def _read_v1(cgroup: Cgroup) -> Usage:
    ticks = cgroup.table("cpuacct", "cpuacct.stat")
    cpu = cgroup.table("cpu", "cpu.stat")
    memory = cgroup.table("memory", "memory.stat")
    usage = cgroup.number("memory", "memory.usage_in_bytes")
    limit = cgroup.number("memory", "memory.limit_in_bytes")
    both_limit = cgroup.number("memory", "memory.memsw.limit_in_bytes")
    return Usage(
        at=time.time_ns(),
        clock=time.monotonic_ns(),
        cpu=cgroup.number("cpuacct", "cpuacct.usage"),
        cpu_user=ticks.get("user", 0) * _NS_PER_TICK,
        cpu_system=ticks.get("system", 0) * _NS_PER_TICK,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled=cpu.get("throttled_time", 0),
        memory=usage,
        memory_limit=limit,
        memory_soft_limit=cgroup.number("memory", "memory.soft_limit_in_bytes"),
        memory_max=cgroup.number("memory", "memory.max_usage_in_bytes"),
        working_set=max(usage - memory.get("total_inactive_file", 0), 0),
        rss=memory.get("total_rss", 0),
        cache=memory.get("total_cache", 0),
        mapped=memory.get("total_mapped_file", 0),
        kernel=cgroup.number("memory", "memory.kmem.usage_in_bytes"),
        active_file=memory.get("total_active_file", 0),
        inactive_file=memory.get("total_inactive_file", 0),
        faults=memory.get("total_pgfault", 0),
        major_faults=memory.get("total_pgmajfault", 0),
        failures=cgroup.number("memory", "memory.failcnt"),
        oom_kills=cgroup.table("memory", "memory.oom_control").get("oom_kill", 0),
        swap=memory.get("total_swap", 0),
        swap_limit=max(both_limit - limit, 0) if both_limit and limit else 0,
        tasks=cgroup.number("pids", "pids.current"),
        tasks_limit=cgroup.number("pids", "pids.max"),
        cpu_shares=cgroup.number("cpu", "cpu.shares"),
        cpu_quota=cgroup.number("cpu", "cpu.cfs_quota_us"),
        cpu_period=cgroup.number("cpu", "cpu.cfs_period_us"),
        disks=tuple(_disks_v1(cgroup)),
        hugepages=_hugepages(cgroup, "usage_in_bytes", "max_usage_in_bytes"),
    )


def _shares(weight: int) -> int:
    """Return the shares of version 1 that a weight stands for, as runc converts them."""
    return 2 + (weight - 1) * 262142 // 9999 if weight else 0


def _disks_v2(text: str) -> list[Disk]:
    found = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = {key: integer(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        found.append(
            Disk(
                *(integer(major), integer(minor)),
                *(values.get("rbytes", 0), values.get("wbytes", 0), values.get("rios", 0), values.get("wios", 0)),
            )
        )
    return found


def _disks_v1(cgroup: Cgroup) -> list[Disk]:
    found: dict[str, dict[str, int]] = {}
    for what in ("io_service_bytes", "io_serviced"):
        for line in cgroup.text("blkio", f"blkio.throttle.{what}_recursive").splitlines():
            words = line.split()
            if len(words) == 3:
                found.setdefault(words[0], {})[f"{what}.{words[1]}"] = integer(words[2])
    disks = []
    for device, values in found.items():
        major, _, minor = device.partition(":")
        numbers = [values.get(f"{what}.{how}", 0) for what in ("io_service_bytes", "io_serviced") for how in _HOW]
        disks.append(Disk(integer(major), integer(minor), *numbers))
    return disks


_HOW = ("Read", "Write")


def _pressure(text: str) -> dict[str, Pressure]:
    found = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        averages = [float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")]
        found[kind] = Pressure(averages[0], averages[1], averages[2], integer(values.get("total", "")))
    return found


def _hugepages(cgroup: Cgroup, usage: str, most: str) -> dict[str, tuple[int, int]]:
    try:
        names = os.listdir(cgroup.path("hugetlb", ""))  # noqa: PTH208  strings all the way
    except OSError:
        return {}
    sizes = [
        parts[1] for name in names if len(parts := name.split(".")) == 3 and parts[0] == "hugetlb" and parts[2] == usage
    ]
    return {
        size: (
            cgroup.number("hugetlb", f"hugetlb.{size}.{usage}"),
            cgroup.number("hugetlb", f"hugetlb.{size}.{most}"),
        )
        for size in sorted(sizes)
    }
