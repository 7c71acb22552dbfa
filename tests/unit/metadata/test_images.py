import pytest

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.metadata import images, leases
from runtimed.metadata.db import Database
from runtimed.metadata.images import REF_NAME, Image
from runtimed.metadata.leases import Lease, Resource
from runtimed.oci import digest
from runtimed.oci.descriptor import Descriptor

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def target(content=b"x", **annotations):
    return Descriptor(media_type=MANIFEST, digest=digest.of(content), size=7, annotations=annotations)


@pytest.fixture
def tx(tmp_path):
    database = Database(tmp_path / "metadata.db")
    with database.reading() as tx:
        yield tx
    database.close()


@pytest.fixture
def image(tx):
    labels = {"a": "1", "org.mobyproject.image.parent": "p"}
    return images.create(tx, "ns", Image(name="docker.io/library/busybox:latest", target=target(k="v"), labels=labels))


def test_an_image_is_read_as_it_was_created(tx, image):
    assert image.created_at == image.updated_at > 0
    assert images.get(tx, "ns", image.name) == image
    assert images.list(tx, "ns") == [image]


def test_a_name_is_taken_only_in_its_namespace(tx, image):
    with pytest.raises(AlreadyExists, match="busybox"):
        images.create(tx, "ns", image)
    images.create(tx, "other", image)
    with pytest.raises(NotFound):
        images.get(tx, "third", image.name)


def test_a_client_may_set_the_time(tx):
    image = images.create(tx, "ns", Image(name="a", target=target()), now=42)
    assert (image.created_at, image.updated_at) == (42, 42)
    assert images.update(tx, "ns", image, now=43).updated_at == 43


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a\x1b[2J"},
        {"target": Descriptor(media_type=MANIFEST, digest="sha256:../../x", size=1)},
        {"target": Descriptor(media_type=MANIFEST, digest=digest.of(b"x"), size=0)},
        {"target": Descriptor(media_type=MANIFEST, digest=digest.of(b"x"), size=-1)},
        {"target": Descriptor(digest=digest.of(b"x"), size=1)},
        {"labels": {"k": "v" * 5000}},
    ],
)
def test_what_is_not_an_image_is_refused(tx, change):
    with pytest.raises(InvalidArgument):
        images.create(tx, "ns", Image(**{"name": "a", "target": target()} | change))


@pytest.mark.parametrize(
    "expression",
    [
        "name==docker.io/library/busybox:latest",
        f"target.digest=={target().digest}",
        f"target.digest=={target().digest},labels.org.mobyproject.image.parent",
        f"target.mediatype=={MANIFEST}",
        "annotations.k==v",
        "name~=busybox",
    ],
)
def test_filters_see_the_fields_that_clients_use(tx, image, expression):
    images.create(tx, "ns", Image(name="other", target=Descriptor(media_type="m", digest=digest.of(b"o"), size=1)))
    assert images.list(tx, "ns", [expression]) == [image]


def test_a_mask_changes_only_what_it_names(tx, image):
    given = Image(name=image.name, target=target(b"new", n="w"), labels={"a": "2"})
    changed = images.update(tx, "ns", given, ["labels.a"])
    assert changed.labels == {**image.labels, "a": "2"}
    assert changed.target == image.target
    assert changed.created_at == image.created_at
    assert changed.updated_at > image.updated_at
    assert images.update(tx, "ns", given, ["annotations.n"]).target.annotations == {"k": "v", "n": "w"}
    assert images.update(tx, "ns", given, ["annotations"]).target.annotations == {"n": "w"}
    assert images.update(tx, "ns", given, ["target", "labels"]).target == target(b"new", n="w")
    assert images.get(tx, "ns", image.name).labels == {"a": "2"}


def test_no_mask_replaces_everything_but_the_age(tx, image):
    given = Image(name=image.name, target=target(b"new"))
    changed = images.update(tx, "ns", given)
    assert (changed.target, changed.labels, changed.created_at) == (target(b"new"), {}, image.created_at)


@pytest.mark.parametrize("path", ["name", "created_at", "target.digest", "labels.", "x"])
def test_other_paths_are_refused(tx, image, path):
    with pytest.raises(InvalidArgument, match="cannot update"):
        images.update(tx, "ns", image, [path])
    assert images.get(tx, "ns", image.name) == image


def test_an_image_that_is_not_there_cannot_be_updated_or_deleted(tx, image):
    with pytest.raises(NotFound):
        images.update(tx, "ns", Image(name="other", target=target()))
    with pytest.raises(NotFound):
        images.delete(tx, "ns", "other")
    with pytest.raises(NotFound):
        images.delete(tx, "other", image.name)


def test_an_image_is_deleted_only_if_it_points_where_the_client_thinks(tx, image):
    with pytest.raises(NotFound, match="not sha256:"):
        images.delete(tx, "ns", image.name, digest.of(b"other"))
    images.delete(tx, "ns", image.name, image.target.digest)
    assert images.list(tx, "ns") == []


def test_an_image_that_expires_is_held_by_the_lease(tx):
    leases.create(tx, "ns", Lease(id="l"))
    images.create(tx, "ns", Image(name="stays", target=target()), lease="l")
    expiring = Image(name="expires", target=target(), labels={"containerd.io/gc.expire": "2026-11-25T05:00:00Z"})
    images.create(tx, "ns", expiring, lease="l")
    assert leases.resources(tx, "ns", "l") == [Resource("images", "expires")]


def test_the_index_has_each_name_once_with_the_latest_target(tx, image):
    images.create(tx, "other", Image(name=image.name, target=target(b"newer")))
    images.create(tx, "other", Image(name="a", target=target()))
    assert [(one.annotations[REF_NAME], one.digest) for one in images.index(tx)] == [
        ("a", target().digest),
        (image.name, target(b"newer").digest),
    ]
