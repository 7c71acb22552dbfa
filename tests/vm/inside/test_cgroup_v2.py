"""The daemon end to end where cgroup v2 is all there is, with runc and with crun."""

from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon

pytestmark = pytest.mark.root


def test_this_guest_has_cgroup_v2_alone():
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [words[2] for words in mounts if words[2].startswith("cgroup")] == ["cgroup2"]
    assert {"cpu", "io", "memory", "pids"} <= set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())


def test_a_container_runs_to_its_exit_status_in_a_cgroup_with_its_limits(daemon: PrivateDaemon, image, runtime):
    limits = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; exit 7"
    options = ["--rm", "--runtime", runtime, "--pids-limit", "64", "--memory", "64m", "--cpus", "0.5"]
    done = daemon.run(*options, image, "--", "sh", "-c", limits, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == ["64", str(64 << 20), "50000", "100000"]


def test_a_container_over_its_memory_is_killed(daemon: PrivateDaemon, image, runtime):
    eat = "x=x; while :; do x=$x$x; done"
    done = daemon.run("--rm", "--runtime", runtime, "--memory", "32m", image, "--", "sh", "-c", eat, check=False)
    assert done.returncode == 137, done.stderr


def test_a_container_over_its_pids_cannot_fork(daemon: PrivateDaemon, image, runtime):
    # crun and runc are counted until the container's process is executed.
    fork = "for n in 1 2 3 4 5 6 7 8 9; do sleep 9 & done; echo all"
    done = daemon.run("--rm", "--runtime", runtime, "--pids-limit", "8", image, "--", "sh", "-c", fork, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "fork" in done.stderr


def test_a_container_outlives_the_daemon_and_takes_an_exec(daemon: PrivateDaemon, image, runtime):
    daemon.run("-d", "--runtime", runtime, image, "outlives", "sleep", "600")
    daemon.kill()
    daemon.start()
    done = daemon.rctl("exec", "outlives", "sh", "-c", "cat /proc/1/comm; exit 5", check=False)
    assert (done.returncode, done.stdout) == (5, "sleep\n"), done.stderr
    daemon.rctl("rm", "-f", "outlives")
    left = Path(f"/sys/fs/cgroup{daemon.cgroup_parent}")
    assert [path.name for path in left.iterdir() if path.is_dir()] == []
