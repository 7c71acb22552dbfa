import subprocess
import sys
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, NotFound, Unimplemented
from runtimed.mounts import Mount, mount_all, mounts_below


@pytest.mark.parametrize("option", ["loop", "X-containerd.uidmap=0:100000:65536"])
def test_an_option_that_asks_for_more_than_a_mount_is_named(tmp_path, option):
    with pytest.raises(Unimplemented, match=option):
        Mount("ext4", "/image", options=("ro", option)).attach(tmp_path)


@pytest.mark.parametrize("option", ["remount", "mode=7\0"])
def test_an_option_that_no_new_mount_has_is_refused(tmp_path, option):
    with pytest.raises(InvalidArgument):
        Mount("tmpfs", "tmpfs", options=(option,)).attach(tmp_path)


@pytest.mark.parametrize("target", ["../outside", "a/../../b", "a\0b"])
def test_a_target_that_leaves_its_root_is_refused(tmp_path, target):
    with pytest.raises(InvalidArgument, match="must not leave"):
        mount_all([Mount("tmpfs", "tmpfs", target=target)], tmp_path)


@pytest.mark.parametrize("target", ["link", "link/below", "directory/link"])
def test_a_link_in_a_target_is_refused(tmp_path, target):
    (tmp_path / "elsewhere" / "below").mkdir(parents=True)
    (tmp_path / "root" / "directory").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "directory" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgument, match="symbolic link"):
        mount_all([Mount("tmpfs", "tmpfs", target=target)], tmp_path / "root")


def test_a_mount_point_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidArgument, match="symbolic link"):
        Mount("tmpfs", "tmpfs").attach(tmp_path / "link")


def test_a_missing_mount_point_is_named(tmp_path):
    with pytest.raises(NotFound, match="missing"):
        mount_all([Mount("tmpfs", "tmpfs", target="missing")], tmp_path)


def test_a_bind_mount_takes_no_other_options(tmp_path):
    with pytest.raises(InvalidArgument, match="size=1"):
        Mount("bind", "/", options=("bind", "size=1")).attach(tmp_path)


def test_mount_points_are_found_by_path():
    assert Path("/proc") in mounts_below(Path("/proc"))
    assert mounts_below(Path("/proc/self/fd")) == []


def test_the_shim_gets_no_more_than_it_needs():
    code = "import sys, runtimed.mounts; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "msgspec", "tempfile", "sqlite3", "logging"} & set(loaded)
