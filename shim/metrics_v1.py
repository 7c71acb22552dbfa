"""What a container uses: the messages of io.containerd.cgroups.v1, as far as its cgroups can fill them."""

from shim.proto import Message, message, messages, string, unsigned, unsigneds


class HugetlbStat(Message, full_name="io.containerd.cgroups.v1.HugetlbStat"):
    usage: int = unsigned(1)
    max: int = unsigned(2)
    failcnt: int = unsigned(3)
    pagesize: str = string(4)


class PidsStat(Message, full_name="io.containerd.cgroups.v1.PidsStat"):
    current: int = unsigned(1)
    limit: int = unsigned(2)


class CPUUsage(Message, full_name="io.containerd.cgroups.v1.CPUUsage"):
    total: int = unsigned(1)
    kernel: int = unsigned(2)
    user: int = unsigned(3)
    per_cpu: list[int] = unsigneds(4)


class Throttle(Message, full_name="io.containerd.cgroups.v1.Throttle"):
    periods: int = unsigned(1)
    throttled_periods: int = unsigned(2)
    throttled_time: int = unsigned(3)


class CPUStat(Message, full_name="io.containerd.cgroups.v1.CPUStat"):
    usage: CPUUsage | None = message(1, CPUUsage)
    throttling: Throttle | None = message(2, Throttle)


class MemoryEntry(Message, full_name="io.containerd.cgroups.v1.MemoryEntry"):
    limit: int = unsigned(1)
    usage: int = unsigned(2)
    max: int = unsigned(3)
    failcnt: int = unsigned(4)


class MemoryStat(Message, full_name="io.containerd.cgroups.v1.MemoryStat"):
    cache: int = unsigned(1)
    rss: int = unsigned(2)
    rss_huge: int = unsigned(3)
    mapped_file: int = unsigned(4)
    dirty: int = unsigned(5)
    writeback: int = unsigned(6)
    pg_pg_in: int = unsigned(7)
    pg_pg_out: int = unsigned(8)
    pg_fault: int = unsigned(9)
    pg_maj_fault: int = unsigned(10)
    inactive_anon: int = unsigned(11)
    active_anon: int = unsigned(12)
    inactive_file: int = unsigned(13)
    active_file: int = unsigned(14)
    unevictable: int = unsigned(15)
    hierarchical_memory_limit: int = unsigned(16)
    hierarchical_swap_limit: int = unsigned(17)
    total_cache: int = unsigned(18)
    total_rss: int = unsigned(19)
    total_rss_huge: int = unsigned(20)
    total_mapped_file: int = unsigned(21)
    total_dirty: int = unsigned(22)
    total_writeback: int = unsigned(23)
    total_pg_pg_in: int = unsigned(24)
    total_pg_pg_out: int = unsigned(25)
    total_pg_fault: int = unsigned(26)
    total_pg_maj_fault: int = unsigned(27)
    total_inactive_anon: int = unsigned(28)
    total_active_anon: int = unsigned(29)
    total_inactive_file: int = unsigned(30)
    total_active_file: int = unsigned(31)
    total_unevictable: int = unsigned(32)
    usage: MemoryEntry | None = message(33, MemoryEntry)
    swap: MemoryEntry | None = message(34, MemoryEntry)
    kernel: MemoryEntry | None = message(35, MemoryEntry)
    kernel_tcp: MemoryEntry | None = message(36, MemoryEntry)


class BlkIOEntry(Message, full_name="io.containerd.cgroups.v1.BlkIOEntry"):
    op: str = string(1)
    device: str = string(2)
    major: int = unsigned(3)
    minor: int = unsigned(4)
    value: int = unsigned(5)


class BlkIOStat(Message, full_name="io.containerd.cgroups.v1.BlkIOStat"):
    io_service_bytes_recursive: list[BlkIOEntry] = messages(1, BlkIOEntry)
    io_serviced_recursive: list[BlkIOEntry] = messages(2, BlkIOEntry)
    io_queued_recursive: list[BlkIOEntry] = messages(3, BlkIOEntry)
    io_service_time_recursive: list[BlkIOEntry] = messages(4, BlkIOEntry)
    io_wait_time_recursive: list[BlkIOEntry] = messages(5, BlkIOEntry)
    io_merged_recursive: list[BlkIOEntry] = messages(6, BlkIOEntry)
    io_time_recursive: list[BlkIOEntry] = messages(7, BlkIOEntry)
    sectors_recursive: list[BlkIOEntry] = messages(8, BlkIOEntry)


class RdmaEntry(Message, full_name="io.containerd.cgroups.v1.RdmaEntry"):
    device: str = string(1)
    hca_handles: int = unsigned(2)
    hca_objects: int = unsigned(3)


class RdmaStat(Message, full_name="io.containerd.cgroups.v1.RdmaStat"):
    current: list[RdmaEntry] = messages(1, RdmaEntry)
    limit: list[RdmaEntry] = messages(2, RdmaEntry)


class MemoryOomControl(Message, full_name="io.containerd.cgroups.v1.MemoryOomControl"):
    oom_kill_disable: int = unsigned(1)
    under_oom: int = unsigned(2)
    oom_kill: int = unsigned(3)


class Metrics(Message, full_name="io.containerd.cgroups.v1.Metrics"):
    hugetlb: list[HugetlbStat] = messages(1, HugetlbStat)
    pids: PidsStat | None = message(2, PidsStat)
    cpu: CPUStat | None = message(3, CPUStat)
    memory: MemoryStat | None = message(4, MemoryStat)
    blkio: BlkIOStat | None = message(5, BlkIOStat)
    rdma: RdmaStat | None = message(6, RdmaStat)
    memory_oom_control: MemoryOomControl | None = message(9, MemoryOomControl)
