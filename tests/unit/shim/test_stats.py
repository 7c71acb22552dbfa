"""Statistics from trees of files as kernels have written them."""

import pytest

from runtimed.api import cgroups_v1_pb2, cgroups_v2_pb2
from runtimed.errors import NotFound
from shim import stats_v1, stats_v2
from shim.hierarchies import Cgroups
from shim.stats import stats

MAX = 2**64 - 1
V1 = {
    "cpuacct/c/cpuacct.usage": "123456789\n",
    "cpuacct/c/cpuacct.usage_percpu": "100000000 23456789 \n",
    "cpuacct/c/cpuacct.stat": "user 7\nsystem 5\n",
    "cpu/c/cpu.stat": "nr_periods 10\nnr_throttled 3\nthrottled_time 4000000\nnr_bursts 0\nburst_time 0\n",
    "memory/c/memory.stat": "cache 4096\nrss 8192\nswap 77\n"
    "pgpgin 33\npgmajfault 1\nhierarchical_memory_limit 67108864\n"
    "hierarchical_memsw_limit 9223372036854771712\ntotal_cache 5000\ntotal_pgfault 44\nnew_in_some_kernel 1\n",
    "memory/c/memory.usage_in_bytes": "12288\n",
    "memory/c/memory.max_usage_in_bytes": "20480\n",
    "memory/c/memory.limit_in_bytes": "67108864\n",
    "memory/c/memory.failcnt": "2\n",
    "memory/c/memory.kmem.usage_in_bytes": "1024\n",
    "memory/c/memory.kmem.limit_in_bytes": "9223372036854771712\n",
    "memory/c/memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n",
    "pids/c/pids.current": "3\n",
    "pids/c/pids.max": "max\n",
    "blkio/c/blkio.bfq.io_serviced_recursive": "Total 0\n",
    "blkio/c/blkio.throttle.io_serviced_recursive": "8:0 Read 11\n8:0 Write 12\n8:0 Total 23\nTotal 23\n",
    "blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1100\n9:1 Write 12\nTotal 1112\n",
    "hugetlb/c/hugetlb.2MB.usage_in_bytes": "2097152\n",
    "hugetlb/c/hugetlb.2MB.max_usage_in_bytes": "4194304\n",
    "hugetlb/c/hugetlb.2MB.failcnt": "1\n",
    "hugetlb/c/hugetlb.2MB.rsvd.usage_in_bytes": "9\n",
    "rdma/c/rdma.current": "mlx4_0 hca_handle=2 hca_object=20\n",
    "rdma/c/rdma.max": "mlx4_0 hca_handle=max hca_object=2000\n",
}
V2 = {
    "pids.current": "3\n",
    "pids.max": "64\n",
    "cpu.stat": "usage_usec 500\nuser_usec 300\nsystem_usec 200\ncore_sched.force_idle_usec 0\nnr_periods 5\n"
    "nr_throttled 2\nthrottled_usec 90\nnr_bursts 1\nburst_usec 7\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=56\n",
    "memory.stat": "anon 8192\nfile 4096\nkernel_stack 100\nslab_reclaimable 5\nworkingset_refault_anon 3\n"
    "workingset_refault_file 4\nworkingset_activate_anon 1\nworkingset_activate_file 0\npgfault 77\nzswapped 1\n",
    "memory.current": "12288\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "1048576\n",
    "memory.peak": "99999\n",
    "memory.events": "low 0\nhigh 1\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
    "io.stat": "8:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n7:0 \n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 6\n",
    "hugetlb.2MB.rsvd.current": "0\n",
    "hugetlb.1GB.current": "0\n",
    "hugetlb.1GB.max": "0\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=20\n",
}


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mounts = root / "mounts"
    mounts.touch()
    return str(root), str(mounts)


def of_v1(tmp_path, files=None):
    files = V1 if files is None else files
    controllers = sorted({name.partition("/")[0] for name in files})
    text = "".join(f"{number}:{name}:/c\n" for number, name in enumerate(controllers, 1)) or "1:memory:/c\n"
    root, mounts = tree(tmp_path, files)
    (tmp_path / "disks").write_text("   8       0 sda 100 1 2 3\n   8       1 sda1 1 1 1 1\n")
    metrics = stats_v1.collect(Cgroups(text, root, mounts), str(tmp_path / "disks"))
    return cgroups_v1_pb2.Metrics.FromString(metrics.SerializeToString())


def of_v2(tmp_path, files=None):
    root, mounts = tree(tmp_path, {f"c/{name}": text for name, text in (V2 if files is None else files).items()})
    metrics = stats_v2.collect(Cgroups("0::/c\n", root, mounts))
    return cgroups_v2_pb2.Metrics.FromString(metrics.SerializeToString())


def test_version_1_cpu(tmp_path):
    cpu = of_v1(tmp_path).cpu
    assert (cpu.usage.total, list(cpu.usage.per_cpu)) == (123456789, [100000000, 23456789])
    assert (cpu.usage.user, cpu.usage.kernel) == (70_000_000, 50_000_000)  # ticks of 10 ms
    assert (cpu.throttling.periods, cpu.throttling.throttled_periods, cpu.throttling.throttled_time) == (10, 3, 4000000)


def test_version_1_memory(tmp_path):
    metrics = of_v1(tmp_path)
    memory = metrics.memory
    assert (memory.cache, memory.rss, memory.pg_pg_in, memory.pg_maj_fault) == (4096, 8192, 33, 1)
    assert (memory.total_cache, memory.total_pg_fault) == (5000, 44)
    assert memory.hierarchical_memory_limit == 64 << 20
    assert memory.hierarchical_swap_limit == 9223372036854771712
    usage = memory.usage
    assert (usage.usage, usage.max, usage.limit, usage.failcnt) == (12288, 20480, 64 << 20, 2)
    assert memory.kernel.usage == 1024
    assert not memory.HasField("swap")  # this kernel does not account for it
    control = metrics.memory_oom_control
    assert (control.oom_kill_disable, control.under_oom, control.oom_kill) == (0, 1, 4)


def test_version_1_pids_have_no_limit_as_0(tmp_path):
    assert (of_v1(tmp_path).pids.current, of_v1(tmp_path).pids.limit) == (3, 0)


def test_version_1_blkio_is_of_the_scheduler_that_counts_with_the_names_of_devices(tmp_path):
    blkio = of_v1(tmp_path).blkio
    found = [(entry.op, entry.device, entry.major, entry.minor, entry.value) for entry in blkio.io_serviced_recursive]
    assert found == [("Read", "/dev/sda", 8, 0, 11), ("Write", "/dev/sda", 8, 0, 12), ("Total", "/dev/sda", 8, 0, 23)]
    bytes_ = [(entry.op, entry.device, entry.value) for entry in blkio.io_service_bytes_recursive]
    assert bytes_ == [("Read", "/dev/sda", 1100), ("Write", "", 12)]


def test_version_1_huge_pages_and_rdma(tmp_path):
    metrics = of_v1(tmp_path)
    [huge] = metrics.hugetlb
    assert (huge.pagesize, huge.usage, huge.max, huge.failcnt) == ("2MB", 2097152, 4194304, 1)
    [current], [limit] = metrics.rdma.current, metrics.rdma.limit
    assert (current.device, current.hca_handles, current.hca_objects) == ("mlx4_0", 2, 20)
    assert (limit.hca_handles, limit.hca_objects) == (2**32 - 1, 2000)


def test_version_1_without_some_controllers_has_the_others(tmp_path):
    metrics = of_v1(tmp_path, {"pids/c/pids.current": "3\n"})
    assert metrics.ListFields() == [(metrics.DESCRIPTOR.fields_by_name["pids"], metrics.pids)]


def test_version_2_cpu_and_pids(tmp_path):
    metrics = of_v2(tmp_path)
    cpu = metrics.cpu
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (500, 300, 200)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec, cpu.nr_bursts, cpu.burst_usec) == (5, 2, 90, 1, 7)
    assert (cpu.psi.some.avg10, cpu.psi.some.avg60, cpu.psi.some.total, cpu.psi.full.total) == (1.5, 0.25, 1234, 56)
    assert (metrics.pids.current, metrics.pids.limit) == (3, 64)


def test_version_2_memory(tmp_path):
    metrics = of_v2(tmp_path)
    memory = metrics.memory
    assert (memory.anon, memory.file, memory.kernel_stack, memory.slab_reclaimable, memory.pgfault) == (
        8192,
        4096,
        100,
        5,
        77,
    )
    assert (memory.workingset_refault, memory.workingset_activate) == (7, 1)
    assert (memory.usage, memory.usage_limit, memory.swap_limit, memory.max_usage) == (12288, MAX, 1048576, 99999)
    assert not memory.HasField("psi")
    events = metrics.memory_events
    assert (events.high, events.max, events.oom, events.oom_kill) == (1, 5, 2, 1)


def test_version_2_io_huge_pages_and_rdma(tmp_path):
    metrics = of_v2(tmp_path)
    [entry] = metrics.io.usage
    assert (entry.major, entry.minor, entry.rbytes, entry.wbytes, entry.rios, entry.wios) == (
        8,
        0,
        1459200,
        314773504,
        192,
        353,
    )
    found = [(huge.pagesize, huge.current, huge.max, huge.failcnt) for huge in metrics.hugetlb]
    assert found == [("1GB", 0, 0, 0), ("2MB", 2097152, MAX, 6)]
    assert metrics.rdma.current[0].hca_objects == 20


GARBAGE = ["", "max\n", "-1\n", "a b c\n=\n: x\n", "8:0 Read\n", "\xff\xfe", "x y=z y\n", "٣\n"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_a_kernel_would_not_write_is_no_error(tmp_path, garbage):
    of_v1(tmp_path / "v1", dict.fromkeys(V1, garbage))
    of_v2(tmp_path / "v2", {name: garbage for name in V2 if not name.endswith("pressure")})


@pytest.mark.parametrize("text", ["0::/gone\n", "3:memory:/gone\n2:pids:/gone\n0::/\n", ""])
def test_without_any_cgroup_there_is_nothing_to_be_found(tmp_path, text):
    root, mounts = tree(tmp_path, {})
    with pytest.raises(NotFound):
        stats(Cgroups(text, root, mounts))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1:pids:/c\n", "io.containerd.cgroups.v1.Metrics"), ("0::/pids/c\n", "io.containerd.cgroups.v2.Metrics")],
)
def test_the_message_is_of_the_version_that_measures(tmp_path, text, kind):
    root, mounts = tree(tmp_path, {"pids/c/pids.current": "3\n"})
    assert stats(Cgroups(text, root, mounts)).type_url == kind
