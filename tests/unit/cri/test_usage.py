"""What a cgroup uses, from files as both versions have them."""

from pathlib import Path

import pytest

from runtimed.cri import usage
from runtimed.cri.usage import Disk, Pressure
from runtimed.linux.cgroups import Cgroup

V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 4\nnr_throttled 1\nthrottled_usec 70\n",
    "cpu.max": "50000 100000\n",
    "cpu.weight": "39\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.25 total=123\nfull avg10=0 avg60=0 avg300=0 total=0\n",
    "memory.current": "1000\n",
    "memory.max": "max\n",
    "memory.peak": "1500\n",
    "memory.stat": "anon 300\nfile 600\ninactive_file 400\nactive_file 200\npgfault 9\npgmajfault 2\nkernel 50\n",
    "memory.events": "low 0\nmax 3\noom 1\noom_kill 2\n",
    "memory.swap.current": "7\n",
    "memory.swap.max": "100\n",
    "pids.current": "5\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
    "hugetlb.2MB.current": "0\n",
    "hugetlb.2MB.max": "4096\n",
    "hugetlb.2MB.rsvd.current": "0\n",
}
V1 = {
    "cpuacct/cpuacct.usage": "5000000\n",
    "cpuacct/cpuacct.stat": "user 3\nsystem 2\n",
    "cpu/cpu.stat": "nr_periods 4\nnr_throttled 1\nthrottled_time 70000\n",
    "cpu/cpu.shares": "1024\n",
    "cpu/cpu.cfs_quota_us": "-1\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "1000\n",
    "memory/memory.limit_in_bytes": "2000\n",
    "memory/memory.memsw.limit_in_bytes": "2100\n",
    "memory/memory.max_usage_in_bytes": "1500\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/memory.stat": "total_rss 300\ntotal_cache 600\ntotal_inactive_file 400\ntotal_active_file 200\n"
    "total_pgfault 9\ntotal_pgmajfault 2\ntotal_swap 7\n",
    "pids/pids.current": "5\n",
    "pids/pids.max": "max\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
    "blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n",
}


@pytest.fixture
def make(tmp_path: Path):
    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        if "cpu.stat" in files:
            return Cgroup({"": str(tmp_path)})
        return Cgroup({path.name: str(path) for path in tmp_path.iterdir()})

    return make


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_both_versions_tell_the_same(make, files):
    found = usage.read(make(files))
    assert found is not None
    assert found.cpu == 5_000_000
    assert (found.periods, found.throttled_periods, found.throttled) == (4, 1, 70_000)
    assert (found.memory, found.working_set, found.rss, found.cache) == (1000, 600, 300, 600)
    assert (found.active_file, found.inactive_file, found.faults, found.major_faults) == (200, 400, 9, 2)
    assert (found.memory_max, found.failures, found.oom_kills, found.swap, found.swap_limit) == (1500, 3, 2, 7, 100)
    assert (found.tasks, found.tasks_limit) == (5, 0)
    assert found.disks == (Disk(8, 0, 10, 20, 1, 2),)
    assert found.cpu_period == 100_000


def test_what_only_version_2_tells(make):
    found = usage.read(make(V2))
    assert found is not None
    assert found.pressure["cpu"]["some"] == Pressure(1.5, 0.0, 0.25, 123)
    assert found.pressure["io"] == {}
    assert (found.cpu_user, found.cpu_system) == (3_000_000, 2_000_000)
    assert (found.memory_limit, found.cpu_quota, found.cpu_shares) == (0, 50_000, 998)
    assert found.hugepages == {"2MB": (0, 4096)}


def test_no_quota_is_none_with_version_1(make):
    found = usage.read(make(V1))
    assert found is not None
    assert (found.memory_limit, found.cpu_quota, found.cpu_shares) == (2000, 0, 1024)


def test_a_cgroup_that_is_gone_has_no_usage(tmp_path):
    assert usage.read(Cgroup({"": str(tmp_path / "gone")})) is None


def test_files_that_hold_nonsense_count_as_nothing(make):
    files = {name: "what\nis this 1 2 3\nx y\n" for name in V2}
    found = usage.read(make(files))
    assert found is not None
    assert (found.cpu, found.memory, found.tasks, found.memory_limit) == (0, 0, 0, 0)
