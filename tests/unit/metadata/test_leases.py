import pytest

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from runtimed.metadata import leases
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Lease, Resource
from runtimed.oci import digest

BLOB = digest.of(b"x")


@pytest.fixture
def tx(tmp_path):
    database = Database(tmp_path / "metadata.db")
    with database.reading() as tx:
        yield tx
    database.close()


@pytest.fixture
def lease(tx):
    return leases.create(tx, "moby", Lease(id="moby/prune.images")).id


def test_a_lease_keeps_its_labels(tx):
    labels = {"containerd.io/gc.expire": "2026-11-25T05:00:00Z", "containerd.io/gc.flat": "true"}
    stored = leases.create(tx, "moby", Lease(id="moby-image-sha256:abc", labels=labels))
    assert stored.created_at > 0
    assert leases.get(tx, "moby", "moby-image-sha256:abc") == stored
    assert stored.labels == labels


def test_a_lease_without_an_id_gets_a_random_one(tx):
    first, second = (leases.create(tx, "moby", Lease(id="")).id for _ in range(2))
    assert first
    assert first != second


def test_an_id_is_taken_only_in_its_namespace(tx, lease):
    leases.create(tx, "other", Lease(id=lease))
    with pytest.raises(AlreadyExists, match=lease):
        leases.create(tx, "moby", Lease(id=lease))


def test_leases_are_listed_by_id_and_filtered(tx):
    for id, labels in (("b", {"moby/prune.images": "1"}), ("a", {})):
        leases.create(tx, "moby", Lease(id=id, labels=labels))
    assert [one.id for one in leases.list(tx, "moby")] == ["a", "b"]
    assert [one.id for one in leases.list(tx, "moby", ["id==a"])] == ["a"]
    assert [one.id for one in leases.list(tx, "moby", ['labels."moby/prune.images"'])] == ["b"]
    assert leases.list(tx, "other") == []


def test_a_lease_is_deleted_with_what_it_holds(tx, lease):
    leases.add_resource(tx, "moby", lease, Resource("content", BLOB))
    leases.delete(tx, "moby", lease)
    with pytest.raises(NotFound):
        leases.delete(tx, "moby", lease)
    assert tx.execute("SELECT count(*) FROM lease_resources").fetchone() == (0,)


def test_a_lease_holds_each_kind_of_resource_once(tx, lease):
    held = [
        Resource("content", BLOB),
        Resource("images", "busybox:latest"),
        Resource("ingests", "layer-sha256:abc"),
        Resource("snapshots/overlayfs", "extract-1-x sha256:abc"),
    ]
    for resource in held * 2:
        leases.add_resource(tx, "moby", lease, resource)
    assert leases.resources(tx, "moby", lease) == held
    for resource in held * 2:
        leases.remove_resource(tx, "moby", lease, resource)
    assert leases.resources(tx, "moby", lease) == []


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (Resource("content", "sha256:short"), InvalidArgument),
        (Resource("content/x", BLOB), InvalidArgument),
        (Resource("snapshots", "key"), InvalidArgument),
        (Resource("snapshots/", "key"), InvalidArgument),
        (Resource("snapshots/a/b", "key"), InvalidArgument),
        (Resource("snapshots/overlayfs", ""), InvalidArgument),
        (Resource("tasks", "x"), Unimplemented),
        (Resource("", "x"), Unimplemented),
    ],
)
def test_a_resource_of_no_known_type_is_refused(tx, lease, resource, error):
    with pytest.raises(error):
        leases.add_resource(tx, "moby", lease, resource)
    with pytest.raises(error):
        leases.remove_resource(tx, "moby", lease, resource)


def test_resources_of_a_lease_that_is_not_there(tx):
    for call in (leases.add_resource, leases.remove_resource):
        with pytest.raises(NotFound, match="'nothing'"):
            call(tx, "moby", "nothing", Resource("content", BLOB))
    with pytest.raises(NotFound):
        leases.resources(tx, "moby", "nothing")


@pytest.mark.parametrize("id", ["a\nb", "x" * 5000])
def test_an_id_that_is_not_valid_is_refused(tx, id):
    with pytest.raises(InvalidArgument):
        leases.create(tx, "moby", Lease(id=id))
