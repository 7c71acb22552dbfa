"""What goes with a snapshot, and what one takes."""

import os

import pytest

from runtimed.errors import FailedPrecondition, NotFound
from runtimed.mounts import Mount, mounted, mounted_temporarily
from runtimed.snapshots.conformance.tools import commit_layer, files, nest
from runtimed.snapshots.snapshotter import Kind


def test_children_are_removed_before_their_parents(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    commit_layer(snapshotter, "top", "base", {})
    snapshotter.view("v", "top", {})
    for key in ("base", "top"):
        with pytest.raises(FailedPrecondition, match=key):
            snapshotter.remove(key)
    for key in ("v", "top", "base"):
        snapshotter.remove(key)
    assert list(snapshotter.list()) == []
    with pytest.raises(NotFound):
        snapshotter.remove("base")


def test_a_removed_snapshot_leaves_nothing_on_disk(snapshotter, root):
    snapshotter.prepare("first", "", {})
    before = files(root)
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        nest(mountpoint, 60)
        (mountpoint / "file").write_text("x" * 100_000)
        (mountpoint / "link").symlink_to("/etc")
    snapshotter.remove("a")
    assert files(root) == before


def test_nothing_is_deleted_through_a_mount(snapshotter, root, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        (mountpoint / "inner").mkdir()
    (inner,) = [path for path in root.rglob("inner") if path.is_dir()]
    with mounted([Mount("bind", str(precious), options=("rbind",))], inner):
        with pytest.raises(FailedPrecondition, match="inner"):
            snapshotter.remove("a")
        assert snapshotter.stat("a").kind is Kind.ACTIVE
        assert (precious / "file").read_text() == "kept"
    snapshotter.remove("a")
    assert (precious / "file").read_text() == "kept"


def test_a_tree_deeper_than_a_path_may_be_is_committed_measured_and_removed(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        nest(mountpoint, 60)
    assert snapshotter.usage("a").inodes >= 61
    snapshotter.commit("base", "a", {})
    snapshotter.prepare("child", "base", {})
    snapshotter.remove("child")
    snapshotter.remove("base")


def test_usage_counts_inodes_and_blocks_and_a_hard_link_once(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        empty = snapshotter.usage("a")
        (root / "file").write_bytes(os.urandom(1 << 20))
        os.sync()
        os.link(root / "file", root / "again")
        (root / "sparse").touch()
        os.truncate(root / "sparse", 1 << 30)
        (root / "directory").mkdir()
        measured = snapshotter.usage("a")
    assert measured.inodes == empty.inodes + 3
    assert 1 << 20 <= measured.size - empty.size < (1 << 20) + 65536
    snapshotter.commit("base", "a", {})
    assert snapshotter.usage("base") == measured
    assert snapshotter.usage("base").size > 0


def test_usage_of_a_view_is_nothing(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1" * 10_000})
    snapshotter.view("v", "base", {})
    assert snapshotter.usage("v").size == 0
