import pytest

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from runtimed.metadata import containers, images, leases, namespaces
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.metadata.leases import Lease
from runtimed.metadata.namespaces import Namespace
from runtimed.oci import digest
from runtimed.oci.descriptor import Descriptor


@pytest.fixture
def tx(tmp_path):
    """A transaction that is rolled back after the test."""
    database = Database(tmp_path / "metadata.db")
    with database.reading() as tx:
        yield tx
    database.close()


def test_a_namespace_is_created_once(tx):
    assert namespaces.create(tx, Namespace("moby", {"a": "1", "b": ""})) == Namespace("moby", {"a": "1"})
    with pytest.raises(AlreadyExists, match="'moby'"):
        namespaces.create(tx, Namespace("moby"))


def test_a_namespace_that_was_never_written_to_has_no_labels(tx):
    assert namespaces.get(tx, "moby") == Namespace("moby", {})
    assert namespaces.list(tx) == []


def test_anything_that_is_written_makes_its_namespace(tx):
    leases.create(tx, "moby", Lease(id="x"))
    assert [one.name for one in namespaces.list(tx)] == ["moby"]
    with pytest.raises(AlreadyExists):
        namespaces.create(tx, Namespace("moby"))


def test_namespaces_are_listed_by_name_and_filtered(tx):
    for name, labels in (("b", {}), ("a", {"x.y": "1"})):
        namespaces.create(tx, Namespace(name, labels))
    assert [one.name for one in namespaces.list(tx)] == ["a", "b"]
    assert [one.name for one in namespaces.list(tx, ["labels.x.y==1"])] == ["a"]
    assert [one.name for one in namespaces.list(tx, ["name==b"])] == ["b"]


def test_labels_are_updated_by_mask(tx):
    namespaces.create(tx, Namespace("a", {"x": "1", "y": "2"}))
    assert namespaces.update(tx, Namespace("a", {"x": "3"}), ["labels.x"]).labels == {"x": "3", "y": "2"}
    assert namespaces.update(tx, Namespace("a", {}), ["labels.x"]).labels == {"y": "2"}
    assert namespaces.update(tx, Namespace("a", {"z": "1"})).labels == {"z": "1"}
    with pytest.raises(InvalidArgument, match="cannot update 'name'"):
        namespaces.update(tx, Namespace("a"), ["name"])


def test_updating_a_namespace_that_is_not_there_makes_it(tx):
    namespaces.update(tx, Namespace("a", {"x": "1"}))
    assert namespaces.list(tx) == [Namespace("a", {"x": "1"})]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 77])
def test_a_name_that_is_not_valid_is_refused(tx, name):
    with pytest.raises(InvalidArgument):
        namespaces.create(tx, Namespace(name))
    with pytest.raises(InvalidArgument):
        namespaces.update(tx, Namespace(name))


def test_an_empty_namespace_is_deleted_with_its_leases(tx):
    leases.create(tx, "a", Lease(id="x"))
    leases.add_resource(tx, "a", "x", leases.Resource("ingests", "ref"))
    namespaces.delete(tx, "a")
    assert namespaces.list(tx) == []
    with pytest.raises(NotFound):
        leases.get(tx, "a", "x")
    with pytest.raises(NotFound):
        namespaces.delete(tx, "a")


def test_a_namespace_that_holds_something_stays_and_says_what(tx):
    blob = digest.of(b"x")
    containers.create(tx, "a", Container(id="c", runtime="r", spec=Opaque("t", b"v")))
    images.create(tx, "a", Image(name="i", target=Descriptor(media_type="m", digest=blob, size=1)))
    tx.execute("INSERT INTO blobs (namespace, digest, size, created_at, updated_at) VALUES ('a', ?, 1, 0, 0)", (blob,))
    tx.execute(
        "INSERT INTO snapshots (namespace, snapshotter, key, backend_key, created_at, updated_at)"
        " VALUES ('a', 'overlayfs', 'k', 'b', 0, 0)"
    )
    with pytest.raises(FailedPrecondition) as refused:
        namespaces.delete(tx, "a")
    assert str(refused.value) == (
        "namespace 'a' must be empty, but it still has images, blobs, containers,"
        ' snapshots on "overlayfs" snapshotter'
    )
