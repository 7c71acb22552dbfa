import time
from dataclasses import replace

import pytest

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.db import Database

SPEC = Opaque("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0.2"}')
WHOLE = Container(
    id="c1",
    runtime="io.containerd.runc.v2",
    runtime_options=Opaque("containerd.runc.v1.Options", b"\x00\xff"),
    spec=SPEC,
    image="docker.io/library/busybox:latest",
    snapshotter="overlayfs",
    snapshot_key="c1-key",
    sandbox="pod",
    extensions={"io.x/e": Opaque("t/e", b"\x80"), "empty": Opaque("", b"")},
    labels={"com.docker/engine.bundle.path": "/x", "a": "1"},
)


@pytest.fixture
def tx(tmp_path):
    database = Database(tmp_path / "metadata.db")
    with database.reading() as tx:
        yield tx
    database.close()


@pytest.fixture
def container(tx):
    return containers.create(tx, "ns", WHOLE)


def test_a_container_is_read_as_it_was_created(tx, container):
    assert container.created_at == container.updated_at > 0
    assert replace(container, created_at=0, updated_at=0) == WHOLE
    assert containers.get(tx, "ns", "c1") == container
    assert containers.list(tx, "ns") == [container]


def test_what_was_not_given_stays_absent(tx):
    containers.create(tx, "ns", Container(id="c", runtime="r", spec=SPEC))
    stored = containers.get(tx, "ns", "c")
    assert (stored.runtime_options, stored.extensions, stored.labels) == (None, {}, {})


def test_options_that_are_empty_but_have_a_type_are_kept(tx):
    options = Opaque("containerd.runc.v1.Options", b"")  # what buildkitd sends
    containers.create(tx, "ns", Container(id="c", runtime="r", spec=SPEC, runtime_options=options))
    assert containers.get(tx, "ns", "c").runtime_options == options


def test_an_id_is_taken_only_in_its_namespace(tx, container):
    with pytest.raises(AlreadyExists, match="container 'c1'"):
        containers.create(tx, "ns", WHOLE)
    containers.create(tx, "other", WHOLE)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": ""}, "id"),
        ({"id": "../x"}, "id"),
        ({"id": "x" * 77}, "id"),
        ({"runtime": ""}, "runtime"),
        ({"spec": Opaque("", b"")}, "spec"),
        ({"snapshotter": ""}, "snapshotter"),
        ({"extensions": {"": SPEC}}, "extension"),
        ({"labels": {"k": "v" * 5000}}, "label"),
    ],
)
def test_what_is_not_a_container_is_refused(tx, change, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        containers.create(tx, "ns", replace(WHOLE, **change))


@pytest.mark.parametrize(
    "expression",
    ["id==c1", "image==docker.io/library/busybox:latest", "runtime.name==io.containerd.runc.v2", "labels.a==1"],
)
def test_filters_see_the_fields_that_clients_use(tx, container, expression):
    containers.create(tx, "ns", Container(id="other", runtime="r", spec=SPEC))
    assert containers.list(tx, "ns", [expression]) == [container]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("labels", "labels", {"b": "2"}),
        ("labels.b", "labels", {**WHOLE.labels, "b": "2"}),
        ("spec", "spec", Opaque("t", b"new")),
        ("image", "image", "new"),
        ("snapshotkey", "snapshot_key", "new"),
        ("snapshot_key", "snapshot_key", "new"),
        ("extensions", "extensions", {"n": Opaque("t", b"n")}),
        ("extensions.n", "extensions", {**WHOLE.extensions, "n": Opaque("t", b"n")}),
        ("extensions.io.x/e", "extensions", {"empty": Opaque("", b"")}),
    ],
)
def test_a_mask_changes_only_what_it_names(tx, container, path, field, value):
    given = Container(
        id="c1",
        runtime="not meant",
        spec=Opaque("t", b"new"),
        image="new",
        snapshot_key="new",
        extensions={"n": Opaque("t", b"n")},
        labels={"b": "2"},
    )
    changed = containers.update(tx, "ns", given, [path])
    assert changed.updated_at > container.updated_at
    assert changed == replace(container, updated_at=changed.updated_at, **{field: value})
    assert containers.get(tx, "ns", "c1") == changed


def test_no_mask_replaces_what_can_be_changed(tx, container):
    given = replace(WHOLE, image="new", labels={}, extensions={}, runtime_options=None, sandbox="not meant")
    changed = containers.update(tx, "ns", given)
    assert (changed.image, changed.labels, changed.extensions) == ("new", {}, {})
    assert (changed.runtime_options, changed.sandbox) == (WHOLE.runtime_options, "pod")


@pytest.mark.parametrize("change", [{"snapshotter": "native"}, {"runtime": "other"}])
def test_without_a_mask_the_immutable_fields_must_be_what_they_are(tx, container, change):
    with pytest.raises(InvalidArgument, match="immutable"):
        containers.update(tx, "ns", replace(WHOLE, **change))


@pytest.mark.parametrize(
    "path", ["id", "runtime", "runtime.name", "snapshotter", "sandbox", "extensions.", "labels.", "x"]
)
def test_other_paths_are_refused(tx, container, path):
    with pytest.raises(InvalidArgument, match="cannot update"):
        containers.update(tx, "ns", WHOLE, [path])
    assert containers.get(tx, "ns", "c1") == container


def test_an_update_may_not_leave_what_is_no_container(tx, container):
    with pytest.raises(InvalidArgument, match="spec"):
        containers.update(tx, "ns", replace(WHOLE, spec=Opaque("", b"")), ["spec"])


def test_a_container_that_is_not_there(tx):
    for call in (containers.get, containers.delete):
        with pytest.raises(NotFound, match="container 'c1'"):
            call(tx, "ns", "c1")
    with pytest.raises(NotFound):
        containers.update(tx, "ns", WHOLE)


def test_a_deleted_container_leaves_its_id_free(tx, container):
    containers.delete(tx, "ns", "c1")
    containers.create(tx, "ns", WHOLE)


def test_ten_thousand_containers_are_listed_at_once(tx):
    for number in range(10_000):
        containers.create(tx, "ns", replace(WHOLE, id=f"c{number}"))
    queries: list[str] = []
    tx.set_trace_callback(queries.append)
    started = time.monotonic()
    assert len(containers.list(tx, "ns", ["labels.a==1,image~=busybox"])) == 10_000
    assert time.monotonic() - started < 5
    assert len(queries) == 1
