"""What a container uses: the messages of io.containerd.cgroups.v2, as far as its cgroup can fill them."""

from shim.proto import Message, double, message, messages, string, unsigned


class PidsStat(Message, full_name="io.containerd.cgroups.v2.PidsStat"):
    current: int = unsigned(1)
    limit: int = unsigned(2)


class PSIData(Message, full_name="io.containerd.cgroups.v2.PSIData"):
    avg10: float = double(1)
    avg60: float = double(2)
    avg300: float = double(3)
    total: int = unsigned(4)


class PSIStats(Message, full_name="io.containerd.cgroups.v2.PSIStats"):
    some: PSIData | None = message(1, PSIData)
    full: PSIData | None = message(2, PSIData)


class CPUStat(Message, full_name="io.containerd.cgroups.v2.CPUStat"):
    usage_usec: int = unsigned(1)
    user_usec: int = unsigned(2)
    system_usec: int = unsigned(3)
    nr_periods: int = unsigned(4)
    nr_throttled: int = unsigned(5)
    throttled_usec: int = unsigned(6)
    psi: PSIStats | None = message(7, PSIStats)
    nr_bursts: int = unsigned(8)
    burst_usec: int = unsigned(9)


class MemoryStat(Message, full_name="io.containerd.cgroups.v2.MemoryStat"):
    anon: int = unsigned(1)
    file: int = unsigned(2)
    kernel_stack: int = unsigned(3)
    slab: int = unsigned(4)
    sock: int = unsigned(5)
    shmem: int = unsigned(6)
    file_mapped: int = unsigned(7)
    file_dirty: int = unsigned(8)
    file_writeback: int = unsigned(9)
    anon_thp: int = unsigned(10)
    inactive_anon: int = unsigned(11)
    active_anon: int = unsigned(12)
    inactive_file: int = unsigned(13)
    active_file: int = unsigned(14)
    unevictable: int = unsigned(15)
    slab_reclaimable: int = unsigned(16)
    slab_unreclaimable: int = unsigned(17)
    pgfault: int = unsigned(18)
    pgmajfault: int = unsigned(19)
    workingset_refault: int = unsigned(20)
    workingset_activate: int = unsigned(21)
    workingset_nodereclaim: int = unsigned(22)
    pgrefill: int = unsigned(23)
    pgscan: int = unsigned(24)
    pgsteal: int = unsigned(25)
    pgactivate: int = unsigned(26)
    pgdeactivate: int = unsigned(27)
    pglazyfree: int = unsigned(28)
    pglazyfreed: int = unsigned(29)
    thp_fault_alloc: int = unsigned(30)
    thp_collapse_alloc: int = unsigned(31)
    usage: int = unsigned(32)
    usage_limit: int = unsigned(33)
    swap_usage: int = unsigned(34)
    swap_limit: int = unsigned(35)
    max_usage: int = unsigned(36)
    swap_max_usage: int = unsigned(37)
    psi: PSIStats | None = message(38, PSIStats)


class RdmaEntry(Message, full_name="io.containerd.cgroups.v2.RdmaEntry"):
    device: str = string(1)
    hca_handles: int = unsigned(2)
    hca_objects: int = unsigned(3)


class RdmaStat(Message, full_name="io.containerd.cgroups.v2.RdmaStat"):
    current: list[RdmaEntry] = messages(1, RdmaEntry)
    limit: list[RdmaEntry] = messages(2, RdmaEntry)


class IOEntry(Message, full_name="io.containerd.cgroups.v2.IOEntry"):
    major: int = unsigned(1)
    minor: int = unsigned(2)
    rbytes: int = unsigned(3)
    wbytes: int = unsigned(4)
    rios: int = unsigned(5)
    wios: int = unsigned(6)


class IOStat(Message, full_name="io.containerd.cgroups.v2.IOStat"):
    usage: list[IOEntry] = messages(1, IOEntry)
    psi: PSIStats | None = message(2, PSIStats)


class HugeTlbStat(Message, full_name="io.containerd.cgroups.v2.HugeTlbStat"):
    current: int = unsigned(1)
    max: int = unsigned(2)
    pagesize: str = string(3)
    failcnt: int = unsigned(4)


class MemoryEvents(Message, full_name="io.containerd.cgroups.v2.MemoryEvents"):
    low: int = unsigned(1)
    high: int = unsigned(2)
    max: int = unsigned(3)
    oom: int = unsigned(4)
    oom_kill: int = unsigned(5)
    oom_group_kill: int = unsigned(6)


class Metrics(Message, full_name="io.containerd.cgroups.v2.Metrics"):
    pids: PidsStat | None = message(1, PidsStat)
    cpu: CPUStat | None = message(2, CPUStat)
    memory: MemoryStat | None = message(4, MemoryStat)
    rdma: RdmaStat | None = message(5, RdmaStat)
    io: IOStat | None = message(6, IOStat)
    hugetlb: list[HugeTlbStat] = messages(7, HugeTlbStat)
    memory_events: MemoryEvents | None = message(8, MemoryEvents)
