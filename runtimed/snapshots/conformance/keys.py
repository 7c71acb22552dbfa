"""Keys, kinds, parents and records of snapshots."""

from collections.abc import Callable

import pytest

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance.tools import commit_layer
from runtimed.snapshots.snapshotter import Kind


@pytest.mark.parametrize("key", ["a/b/../c", "extract-1-aBc sha256:00ff", "..", "moby/12/ä:b", "x" * 3000])
def test_a_key_is_any_text(snapshotter, key):
    with mounted_temporarily(snapshotter.prepare(key, "", {})) as root:
        (root / "file").write_text(key)
    assert snapshotter.stat(key).name == key
    snapshotter.commit(f"{key} committed", key, {})
    with mounted_temporarily(snapshotter.view(key, f"{key} committed", {})) as root:
        assert (root / "file").read_text() == key


def test_an_empty_key_is_refused(snapshotter):
    with pytest.raises(InvalidArgument):
        snapshotter.prepare("", "", {})
    snapshotter.prepare("a", "", {})
    with pytest.raises(InvalidArgument):
        snapshotter.commit("", "a", {})


def test_a_key_that_is_taken_is_refused_and_stays_as_it_is(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    with mounted_temporarily(snapshotter.prepare("taken", "base", {})) as root:
        (root / "mine").write_text("kept")
    for make in (snapshotter.prepare, snapshotter.view):
        for key in ("taken", "base"):
            with pytest.raises(AlreadyExists, match=key):
                make(key, "", {})
    with mounted_temporarily(snapshotter.mounts("taken")) as root:
        assert (root / "mine").read_text() == "kept"


def test_a_parent_must_be_there_and_committed(snapshotter):
    snapshotter.prepare("active", "", {})
    snapshotter.view("view", "", {})
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(NotFound, match="missing"):
            make("child", "missing", {})
        for parent in ("active", "view"):
            with pytest.raises(InvalidArgument, match=parent):
                make("child", parent, {})
    assert {info.name for info in snapshotter.list()} == {"active", "view"}


def test_only_an_active_snapshot_is_committed(snapshotter):
    commit_layer(snapshotter, "base", "", {})
    snapshotter.view("view", "base", {})
    for key in ("base", "view"):
        with pytest.raises(FailedPrecondition, match=key):
            snapshotter.commit("name", key, {})
    with pytest.raises(NotFound, match="missing"):
        snapshotter.commit("name", "missing", {})


def test_a_commit_to_a_taken_name_is_refused_and_the_snapshot_goes_on(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        (root / "mine").write_text("kept")
    for name in ("base", "a"):
        with pytest.raises(AlreadyExists, match=name):
            snapshotter.commit(name, "a", {})
    with mounted_temporarily(snapshotter.mounts("a")) as root:
        assert (root / "mine").read_text() == "kept"


def test_a_committed_snapshot_has_no_mounts_and_its_key_is_free_again(snapshotter):
    commit_layer(snapshotter, "base", "", {})
    with pytest.raises(FailedPrecondition, match="base"):
        snapshotter.mounts("base")
    with pytest.raises(NotFound):
        snapshotter.mounts("active base")
    snapshotter.prepare("active base", "base", {})


def test_a_record_tells_kind_parent_labels_and_times(snapshotter):
    mark = {"containerd.io/snapshot/mark": "1"}
    snapshotter.prepare("a", "", mark)
    made = snapshotter.stat("a")
    assert (made.kind, made.parent, dict(made.labels)) == (Kind.ACTIVE, "", mark)
    assert made.created_at == made.updated_at > 1_600_000_000 * 10**9
    snapshotter.commit("base", "a", {"containerd.io/snapshot/other": "2"})
    committed = snapshotter.stat("base")
    assert (committed.kind, dict(committed.labels)) == (Kind.COMMITTED, {"containerd.io/snapshot/other": "2"})
    snapshotter.view("v", "base", {})
    assert (snapshotter.stat("v").kind, snapshotter.stat("v").parent) == (Kind.VIEW, "base")


def test_an_update_replaces_the_labels_and_nothing_else(snapshotter):
    snapshotter.prepare("a", "", {"one": "1", "two": "2"})
    before = snapshotter.stat("a")
    after = snapshotter.update("a", {"two": "3"})
    assert dict(after.labels) == {"two": "3"}
    assert (after.created_at, after.kind) == (before.created_at, before.kind)
    assert after.updated_at > before.updated_at
    assert snapshotter.stat("a") == after


def test_a_list_has_parents_before_their_children(snapshotter):
    commit_layer(snapshotter, "z", "", {})
    commit_layer(snapshotter, "m", "z", {})
    snapshotter.prepare("a", "m", {})
    assert [(info.name, info.parent) for info in snapshotter.list()] == [("z", ""), ("m", "z"), ("a", "m")]


def test_what_is_missing_is_not_found(snapshotter):
    calls: list[Callable[[], object]] = [
        lambda: snapshotter.stat("x"),
        lambda: snapshotter.mounts("x"),
        lambda: snapshotter.usage("x"),
        lambda: snapshotter.update("x", {}),
        lambda: snapshotter.remove("x"),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="'x'"):
            call()
