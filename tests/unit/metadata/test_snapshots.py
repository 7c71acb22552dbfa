from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from runtimed.metadata import leases, namespaces
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Lease, Resource
from runtimed.metadata.snapshots import Snapshots
from runtimed.snapshots.snapshotter import Kind
from tests.fakes.snapshotters import Unreliable


@pytest.fixture
def db(tmp_path) -> Iterator[Database]:
    with closing(Database(tmp_path / "metadata.db")) as opened:
        yield opened


@pytest.fixture
def native(tmp_path) -> Iterator[Unreliable]:
    with closing(Unreliable(tmp_path / "native")) as made:
        yield made


@pytest.fixture
def snapshots(db, native) -> Snapshots:
    return Snapshots(db, "native", native)


def commit(snapshots: Snapshots, name: str, parent: str = "", namespace: str = "one") -> None:
    snapshots.prepare(namespace, "active", parent, {})
    snapshots.commit(namespace, name, "active", {})


def keys(snapshots: Snapshots) -> list[str]:
    """Return the client's part of every key that the snapshotter itself has."""
    return sorted(info.name.split("/", 2)[2] for info in snapshots.snapshotter.list())


def test_namespaces_do_not_see_each_others_snapshots(snapshots):
    commit(snapshots, "base", namespace="one")
    commit(snapshots, "base", namespace="two")
    assert [info.name for info in snapshots.list("one")] == ["base"]
    with pytest.raises(NotFound, match="'base'"):
        snapshots.stat("three", "base")
    with pytest.raises(NotFound, match="parent snapshot 'base'"):
        snapshots.prepare("three", "a", "base", {})
    snapshots.remove("one", "base")
    assert snapshots.stat("two", "base").kind is Kind.COMMITTED


def test_a_namespace_comes_into_being_with_its_first_snapshot(snapshots, db):
    snapshots.prepare("new", "a", "", {})
    with db.reading() as tx:
        assert [namespace.name for namespace in namespaces.list(tx)] == ["new"]


def test_records_have_the_clients_keys_and_labels(snapshots):
    commit(snapshots, "sha256:aa")
    labels = {"mine": "1", "containerd.io/snapshot/cri.layer": "2", "containerd.io/snapshot.ref": "later", "empty": ""}
    snapshots.prepare("one", "extract-1 sha256:bb", "sha256:aa", labels)
    info = snapshots.stat("one", "extract-1 sha256:bb")
    assert (info.name, info.parent, info.kind) == ("extract-1 sha256:bb", "sha256:aa", Kind.ACTIVE)
    assert info.labels == {key: value for key, value in labels.items() if value}
    assert [(found.name, found.parent) for found in snapshots.list("one")] == [
        ("extract-1 sha256:bb", "sha256:aa"),
        ("sha256:aa", ""),
    ]


def test_the_snapshotter_gets_the_labels_that_are_meant_for_it(snapshots, native):
    inherited = {"containerd.io/snapshot/cri.layer": "2", "containerd.io/snapshot.ref": "later"}
    snapshots.prepare("one", "a", "", {"mine": "1", **inherited})
    (info,) = native.list()
    assert info.labels == inherited
    snapshots.update("one", "a", {"containerd.io/snapshot/x": "3", "mine": "2"})
    (info,) = native.list()
    assert info.labels == {"containerd.io/snapshot/x": "3"}


def test_commit_has_labels_of_its_own_and_keeps_the_parent(snapshots):
    commit(snapshots, "base")
    snapshots.prepare("one", "a", "base", {"active": "1"})
    snapshots.commit("one", "top", "a", {"committed": "1"})
    info = snapshots.stat("one", "top")
    assert (info.parent, info.labels, info.kind) == ("base", {"committed": "1"}, Kind.COMMITTED)
    with pytest.raises(NotFound):
        snapshots.stat("one", "a")
    assert keys(snapshots) == ["base", "top"]


def test_a_target_that_is_committed_already_exists(snapshots):
    ref = {"containerd.io/snapshot.ref": "sha256:aa"}
    snapshots.prepare("one", "extract-1", "", ref)  # nobody has it yet
    snapshots.prepare(
        "one", "sha256:aa-to-be", "", {"containerd.io/snapshot.ref": "extract-1"}
    )  # active, not committed
    snapshots.commit("one", "sha256:aa", "extract-1", {})
    with pytest.raises(AlreadyExists, match='target snapshot "sha256:aa": already exists'):
        snapshots.prepare("one", "extract-2", "", ref)
    snapshots.prepare("two", "extract-2", "", ref)


def test_a_taken_key_or_name_leaves_the_snapshotter_as_it_was(snapshots):
    commit(snapshots, "base")
    snapshots.prepare("one", "a", "base", {})
    for key in ("a", "base"):
        with pytest.raises(AlreadyExists, match=f"'{key}'"):
            snapshots.prepare("one", key, "", {})
        with pytest.raises(AlreadyExists, match=f"'{key}'"):
            snapshots.commit("one", key, "a", {})
    assert keys(snapshots) == ["a", "base"]


def test_a_commit_that_fails_leaves_the_name_free(snapshots):
    commit(snapshots, "base")
    with pytest.raises(NotFound, match="'missing'"):
        snapshots.commit("one", "name", "missing", {})
    with pytest.raises(FailedPrecondition):
        snapshots.commit("one", "name", "base", {})
    commit(snapshots, "name")


def test_a_snapshot_with_children_is_not_removed(snapshots):
    commit(snapshots, "base")
    snapshots.prepare("one", "a", "base", {})
    with pytest.raises(FailedPrecondition, match="snapshot 'base' has a child, 'a'"):
        snapshots.remove("one", "base")
    snapshots.remove("one", "a")
    snapshots.remove("one", "base")
    with pytest.raises(NotFound):
        snapshots.remove("one", "base")
    assert keys(snapshots) == []


def test_a_committed_snapshot_has_no_mounts(snapshots):
    commit(snapshots, "base")
    with pytest.raises(FailedPrecondition):
        snapshots.mounts("one", "base")
    made = snapshots.view("one", "v", "base", {})
    assert snapshots.mounts("one", "v") == made


@pytest.mark.parametrize("key", ["", "x" * 5000, "tab\t"])
def test_what_cannot_be_a_key_is_refused(snapshots, key):
    snapshots.prepare("one", "a", "", {})
    with pytest.raises(InvalidArgument):
        snapshots.prepare("one", key, "", {})
    with pytest.raises(InvalidArgument):
        snapshots.commit("one", key, "a", {})


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], ["active", "base", "view"]),
        (["kind==committed"], ["base"]),
        (["kind==active", "kind==view"], ["active", "view"]),
        (["parent==base,kind==active"], ["active"]),
        (["name~=e$"], ["active", "base"]),
        (['labels."a.b/c"==d'], ["active"]),
        (["labels.missing"], []),
    ],
)
def test_filters_see_name_parent_kind_and_labels(snapshots, filters, found):
    commit(snapshots, "base")
    snapshots.prepare("one", "active", "base", {"a.b/c": "d"})
    snapshots.view("one", "view", "base", {})
    assert [info.name for info in snapshots.list("one", filters)] == found


def test_an_update_follows_its_paths(snapshots):
    snapshots.prepare("one", "a", "", {"keep": "1", "change": "1"})
    before = snapshots.stat("one", "a")
    after = snapshots.update("one", "a", {"change": "2", "ignored": "3"}, ["labels.change"])
    assert after.labels == {"keep": "1", "change": "2"}
    assert after.updated_at > before.updated_at
    assert snapshots.stat("one", "a") == after
    with pytest.raises(InvalidArgument, match="parent"):
        snapshots.update("one", "a", {}, ["parent"])
    with pytest.raises(NotFound):
        snapshots.update("one", "missing", {})


def test_a_lease_holds_what_is_made_with_it(snapshots, db):
    db.submit(leases.create, "one", Lease(id="lease")).result()
    snapshots.prepare("one", "a", "", {}, "lease")
    snapshots.view("one", "v", "", {}, "lease")
    snapshots.commit("one", "base", "a", {}, "lease")
    with db.reading() as tx:
        held = leases.resources(tx, "one", "lease")
    assert held == [Resource("snapshots/native", "base"), Resource("snapshots/native", "v")]


def test_a_lease_that_is_not_there_makes_nothing(snapshots):
    with pytest.raises(NotFound, match="lease 'gone'"):
        snapshots.prepare("one", "a", "", {}, "gone")
    snapshots.prepare("one", "a", "", {})
    with pytest.raises(NotFound, match="lease 'gone'"):
        snapshots.commit("one", "base", "a", {}, "gone")
    assert keys(snapshots) == ["a"]
    assert [info.kind for info in snapshots.list("one")] == [Kind.ACTIVE]


def test_of_two_prepares_at_once_one_wins(snapshots):
    def prepare(_: int) -> str:
        try:
            snapshots.prepare("one", "a", "", {})
        except AlreadyExists:
            return "exists"
        return "made"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(prepare, range(8))) == ["exists"] * 7 + ["made"]
    assert keys(snapshots) == ["a"]


def disk_full() -> None:
    raise ResourceExhausted("no space left")


@pytest.mark.parametrize("when", ["before prepare", "after prepare"])
def test_a_prepare_that_fails_leaves_the_key_free(snapshots, native, when):
    native.at[when] = disk_full
    with pytest.raises(ResourceExhausted):
        snapshots.prepare("one", "a", "", {})
    native.at.clear()
    snapshots.prepare("one", "a", "", {})
    snapshots.reconcile()
    assert keys(snapshots) == ["a"]


def test_a_commit_that_fails_half_way_leaves_the_name_free_and_the_snapshot_active(snapshots, native):
    snapshots.prepare("one", "a", "", {})
    native.at["before commit"] = disk_full
    with pytest.raises(ResourceExhausted):
        snapshots.commit("one", "name", "a", {})
    native.at.clear()
    assert [(info.name, info.kind) for info in snapshots.list("one")] == [("a", Kind.ACTIVE)]
    snapshots.commit("one", "name", "a", {})
    assert keys(snapshots) == ["name"]


def test_a_name_that_is_being_committed_is_neither_a_target_nor_swept(snapshots, native):
    snapshots.prepare("one", "a", "", {})

    def meanwhile() -> None:
        snapshots.reconcile()
        snapshots.prepare("one", "b", "", {"containerd.io/snapshot.ref": "name"})

    native.at["before commit"] = native.at["after commit"] = meanwhile
    with pytest.raises(AlreadyExists, match="target"):  # of the second, which comes when it is committed
        snapshots.commit("one", "name", "a", {})
    native.at.clear()
    assert snapshots.stat("one", "b").kind is Kind.ACTIVE


def test_a_snapshot_that_is_about_to_have_its_record_is_not_swept(snapshots, native):
    native.at["after prepare"] = snapshots.cleanup
    mounts = snapshots.prepare("one", "a", "", {})
    assert snapshots.mounts("one", "a") == mounts


def test_what_has_no_record_goes_children_first(snapshots, native):
    commit(snapshots, "base")
    native.prepare("one/x/orphan", "", {})
    native.commit("one/x/orphaned parent", "one/x/orphan", {})
    native.prepare("one/x/child", "one/x/orphaned parent", {})
    snapshots.reconcile()
    assert keys(snapshots) == ["base"]


def test_a_record_without_a_snapshot_goes_and_its_name_is_free_at_once(snapshots, native):
    snapshots.prepare("one", "a", "", {})
    snapshots.prepare("one", "b", "", {})
    for info in list(native.list()):
        native.remove(info.name)
    snapshots.prepare("one", "a", "", {})
    assert [info.name for info in snapshots.list("one")] == ["a"]
    snapshots.reconcile()
    snapshots.prepare("one", "b", "", {})
    assert keys(snapshots) == ["a", "b"]


def test_snapshotters_do_not_share_their_records(db, native, tmp_path):
    with closing(Unreliable(tmp_path / "other")) as second:
        one, two = Snapshots(db, "native", native), Snapshots(db, "other", second)
        one.prepare("one", "a", "", {})
        two.prepare("one", "a", "", {})
        one.reconcile()
        two.reconcile()
        one.remove("one", "a")
        assert two.stat("one", "a").kind is Kind.ACTIVE


def test_usage_is_the_snapshotters(snapshots):
    (mount,) = snapshots.prepare("one", "a", "", {})
    (Path(mount.source) / "file").write_text("x")
    assert snapshots.usage("one", "a").inodes == 2
