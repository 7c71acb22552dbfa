"""What every snapshotter promises, kept by the btrfs snapshotter; and what is its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance import *  # noqa: F403
from runtimed.snapshots.conformance import commit_layer
from runtimed.snapshots.snapshotter import NotSupported
from snapshotters.btrfs import BtrfsSnapshotter
from snapshotters.native import NativeSnapshotter
from tests.filesystems import loop_file_system

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    with loop_file_system("btrfs", tmp_path_factory.mktemp("btrfs") / "disk") as mountpoint:
        yield mountpoint


@pytest.fixture
def tmp_path(disk: Path) -> Path:
    path = disk / f"{len([*disk.iterdir()])}"
    path.mkdir()
    return path


@pytest.fixture
def implementation():
    return lambda root: BtrfsSnapshotter(root, BtrfsSnapshotter.Config())


def subvolumes(disk: Path) -> list[str]:
    listed = subprocess.run(["btrfs", "subvolume", "list", disk], check=True, capture_output=True, text=True)
    return [line.rpartition(" path ")[2] for line in listed.stdout.splitlines()]


def test_a_child_shares_what_it_has_not_changed_and_its_usage_is_what_it_has(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        (root / "large").write_bytes(os.urandom(8 << 20))
        (root / "other").write_bytes(os.urandom(1 << 20))
    snapshotter.commit("base", "a", {})
    with mounted_temporarily(snapshotter.prepare("b", "base", {})) as root:
        (root / "other").write_bytes(os.urandom(2 << 20))
        (root / "new").write_bytes(b"small")
        (root / "large").chmod(0o600)
    snapshotter.commit("top", "b", {})
    usage = snapshotter.usage("top")
    assert 2 << 20 <= usage.size < 3 << 20
    assert usage.inodes == 2  # the root, and what is new
    assert 9 << 20 <= snapshotter.usage("base").size < 10 << 20


def test_subvolumes_that_somebody_made_in_a_snapshot_go_with_it(snapshotter, disk, tmp_path):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        for path in ("one", "one/two", "three"):
            subprocess.run(["btrfs", "subvolume", "create", root / path], check=True, capture_output=True)
        (root / "one" / "two" / "file").write_text("x")
        subprocess.run(["btrfs", "property", "set", root / "one" / "two", "ro", "true"], check=True)
    own = tmp_path.name + "/"
    assert len([path for path in subvolumes(disk) if path.startswith(own)]) == 4
    snapshotter.remove("a")
    assert [path for path in subvolumes(disk) if path.startswith(own)] == []


def test_it_is_not_supported_elsewhere(tmp_path_factory):
    root = tmp_path_factory.mktemp("ext4") / "root"
    with pytest.raises(NotSupported, match="btrfs does not work on"):
        BtrfsSnapshotter(root, BtrfsSnapshotter.Config())
    assert not root.exists()


def test_the_native_snapshotter_shares_blocks_where_the_file_system_can(disk, tmp_path):
    with closing(NativeSnapshotter(tmp_path / "root", NativeSnapshotter.Config())) as native:
        commit_layer(native, "base", "", {})
        with mounted_temporarily(native.prepare("a", "base", {})) as root:
            (root / "large").write_bytes(os.urandom(32 << 20))
        native.commit("one", "a", {})
        before = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        with mounted_temporarily(native.prepare("copy", "one", {})) as root:
            assert (root / "large").stat().st_size == 32 << 20
        os.sync()
        assert before - os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize < 16 << 20
