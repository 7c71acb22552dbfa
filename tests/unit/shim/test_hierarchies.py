"""From /proc/PID/cgroup to directories, in trees that look like the kernel's."""

import os
from pathlib import Path

import pytest

from runtimed.errors import NotFound
from shim.hierarchies import Cgroups

V1 = "4:memory:/pods/c1\n3:cpu,cpuacct:/pods/c1\n2:name=systemd:/x\n0::/elsewhere\n"


@pytest.fixture
def mounts(tmp_path):
    path = tmp_path / "mountinfo"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("text", "is_unified"),
    [(V1, False), ("0::/pods/c1\n", True), ("1:name=systemd:/\n0::/a\n", True), ("2:net_cls:/a\n0::/a\n", True)],
)
def test_the_version_is_that_of_the_controllers(text, is_unified):
    assert Cgroups(text).is_unified is is_unified


def test_each_controller_has_the_directory_of_its_hierarchy(tmp_path, mounts):
    for name in ("memory", "cpu"):
        (tmp_path / name / "pods/c1").mkdir(parents=True)
    (tmp_path / "cpuacct").symlink_to("cpu")
    cgroups = Cgroups(V1, str(tmp_path), str(mounts))
    assert cgroups.directory("memory") == f"{tmp_path}/memory/pods/c1"
    assert cgroups.directory("cpuacct") == f"{tmp_path}/cpuacct/pods/c1"
    with pytest.raises(NotFound, match="'pids'"):
        cgroups.directory("pids")


def test_version_2_has_one_directory_for_all(tmp_path, mounts):
    (tmp_path / "a:b").mkdir()
    cgroups = Cgroups("0::/a:b\n", str(tmp_path), str(mounts))
    assert cgroups.directory("memory") == cgroups.directory("") == f"{tmp_path}/a:b"
    (tmp_path / "a:b").rmdir()
    with pytest.raises(NotFound):
        cgroups.directory("memory")


@pytest.mark.parametrize(
    ("text", "controller", "mount"),
    [
        ("4:memory:/docker/1/c1\n", "memory", "31 24 0:32 /docker/1 {} rw - cgroup cgroup rw,memory"),
        ("0::/docker/1/c1\n", "memory", "31 24 0:32 /docker/1 {} rw,x shared:1 - cgroup2 cgroup rw"),
        ("0::/c1\n", "memory", "31 24 0:32 / {} rw - cgroup2 cgroup2 rw"),
    ],
)
def test_where_a_part_of_the_hierarchy_is_mounted_the_path_is_below_that(tmp_path, mounts, text, controller, mount):
    place = tmp_path / "mounted"
    (place / "c1").mkdir(parents=True)
    mounts.write_text(f"20 1 0:5 / /proc rw - proc proc rw\n{mount.format(place)}\n")
    assert Cgroups(text, str(tmp_path / "none"), str(mounts)).directory(controller) == f"{place}/c1"


def test_the_root_is_nobodys_own(tmp_path):
    assert Cgroups(V1).is_own("memory")
    assert not Cgroups("4:memory:/\n0::/x\n").is_own("memory")
    assert Cgroups("0::/x\n").is_own("memory")
    assert not Cgroups("0::/\n").is_own("memory")
    assert not Cgroups("").is_own("memory")


def test_those_of_a_process_are_what_the_kernel_says():
    assert Cgroups.of(os.getpid()).text == Path("/proc/self/cgroup").read_text()
    assert Cgroups.of(2**22 + 1).text == ""
