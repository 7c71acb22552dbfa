from dataclasses import replace

import pytest

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.metadata import sandboxes
from runtimed.metadata.db import Database
from runtimed.metadata.opaque import Opaque
from runtimed.metadata.sandboxes import Sandbox

WHOLE = Sandbox(
    id="pod1",
    sandboxer="pause",
    runtime="io.containerd.runc.v2",
    runtime_options=Opaque("containerd.runc.v1.Options", b"\x00\xff"),
    spec=Opaque("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}"),
    extensions={"io.x/e": Opaque("t/e", b"\x80"), "empty": Opaque("", b"")},
    labels={"a": "1", "b.c/d": "2"},
)


@pytest.fixture
def tx(tmp_path):
    database = Database(tmp_path / "metadata.db")
    with database.reading() as tx:
        yield tx
    database.close()


@pytest.fixture
def sandbox(tx):
    return sandboxes.create(tx, "ns", WHOLE)


def test_a_sandbox_is_read_as_it_was_created(tx, sandbox):
    assert sandbox.created_at == sandbox.updated_at > 0
    assert replace(sandbox, created_at=0, updated_at=0) == WHOLE
    assert sandboxes.get(tx, "ns", "pod1") == sandbox
    assert sandboxes.list(tx, "ns") == [sandbox]


def test_an_id_is_all_that_a_sandbox_needs(tx):
    sandboxes.create(tx, "ns", Sandbox(id="s"))
    stored = sandboxes.get(tx, "ns", "s")
    assert replace(stored, created_at=0, updated_at=0) == Sandbox(id="s")


def test_an_id_is_taken_only_in_its_namespace(tx, sandbox):
    with pytest.raises(AlreadyExists, match="sandbox 'pod1'"):
        sandboxes.create(tx, "ns", WHOLE)
    sandboxes.create(tx, "other", WHOLE)


@pytest.mark.parametrize(
    "change", [{"id": ""}, {"id": "../x"}, {"extensions": {"": Opaque("t", b"")}}, {"labels": {"k": "v" * 5000}}]
)
def test_what_is_not_a_sandbox_is_refused(tx, change):
    with pytest.raises(InvalidArgument):
        sandboxes.create(tx, "ns", replace(WHOLE, **change))


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("id==pod1", True),
        ("id==pod2", False),
        ('labels."b.c/d"==2', True),
        ("labels.z", False),
        ("sandboxer==pause,runtime.name~=runc", True),
        ("spec", False),
    ],
)
def test_filters(tx, sandbox, filter, found):
    assert sandboxes.list(tx, "ns", [filter]) == ([sandbox] if found else [])


def test_an_update_without_a_mask_replaces_what_can_change(tx, sandbox):
    given = Sandbox(id="pod1", runtime=WHOLE.runtime, spec=Opaque("t", b"new"), labels={"z": "9"}, sandboxer="other")
    stored = sandboxes.update(tx, "ns", given)
    assert stored == replace(given, sandboxer="pause", created_at=sandbox.created_at, updated_at=stored.updated_at)
    assert stored.updated_at > sandbox.updated_at
    assert sandboxes.get(tx, "ns", "pod1") == stored


@pytest.mark.parametrize(
    ("paths", "change"),
    [
        (["labels.a"], {"labels": {"a": "new", "b.c/d": "2"}}),
        (["labels"], {"labels": {"a": "new"}}),
        (["extensions.empty"], {"extensions": {**WHOLE.extensions, "empty": Opaque("t", b"new")}}),
        (["extensions.io.x/e"], {"extensions": {"empty": Opaque("", b"")}}),
        (["extensions"], {"extensions": {"empty": Opaque("t", b"new")}}),
        (["spec", "runtime"], {"spec": None, "runtime": "other", "runtime_options": None}),
    ],
)
def test_an_update_changes_what_its_mask_names(tx, sandbox, paths, change):
    given = Sandbox(id="pod1", runtime="other", labels={"a": "new"}, extensions={"empty": Opaque("t", b"new")})
    stored = sandboxes.update(tx, "ns", given, paths)
    assert stored == replace(sandbox, updated_at=stored.updated_at, **change)


@pytest.mark.parametrize("path", ["id", "sandboxer", "created_at", "extensions.", "nonsense"])
def test_a_mask_that_names_something_else_is_refused(tx, sandbox, path):
    with pytest.raises(InvalidArgument, match=path):
        sandboxes.update(tx, "ns", WHOLE, [path])


def test_the_name_of_the_runtime_changes_only_if_the_mask_says_so(tx, sandbox):
    with pytest.raises(InvalidArgument, match="immutable"):
        sandboxes.update(tx, "ns", replace(WHOLE, runtime="other"))


def test_what_is_not_there(tx, sandbox):
    with pytest.raises(NotFound):
        sandboxes.update(tx, "other", WHOLE)
    with pytest.raises(NotFound):
        sandboxes.get(tx, "other", "pod1")
    sandboxes.delete(tx, "ns", "pod1")
    with pytest.raises(NotFound, match="pod1"):
        sandboxes.delete(tx, "ns", "pod1")
    assert sandboxes.list(tx, "ns") == []
