"""Containers: what a client wants to run. A record has no state; tasks have."""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from runtimed import identifiers, labels
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.filters import parse
from runtimed.metadata import namespaces
from runtimed.metadata.db import Tx, frees
from runtimed.metadata.opaque import Opaque as Opaque
from runtimed.metadata.opaque import packed, unpacked, with_one

_COLUMNS = (
    "id, image, runtime, runtime_options_type, runtime_options, spec_type, spec, snapshotter, snapshot_key, sandbox,"
    " extensions, labels, created_at, updated_at"
)
_SETTERS = ", ".join(f"{column.strip()} = ?" for column in _COLUMNS.split(",")[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Times are nanoseconds since the epoch, UTC."""

    id: str
    runtime: str  # the name of a shim, "io.containerd.runc.v2"
    spec: Opaque
    runtime_options: Opaque | None = None
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: str = ""
    extensions: Mapping[str, Opaque] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def create(tx: Tx, namespace: str, container: Container) -> Container:
    """Add *container* and return it as stored, with both timestamps set.

    Raises:
        AlreadyExists: the ID is taken in *namespace*.
        InvalidArgument: a field is missing or not valid.
    """
    now = time.time_ns()
    stored = replace(_checked(container), created_at=now, updated_at=now)
    namespaces.ensure(tx, namespace)
    try:
        tx.execute(
            f"INSERT INTO containers (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, *_row(stored)),
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"container {container.id!r}") from None
    return stored


def get(tx: Tx, namespace: str, id: str) -> Container:
    """Return the container. Raises NotFound."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id = ?", (namespace, id)).fetchone()
    if row is None:
        raise NotFound(f"container {id!r}")
    return _from_row(row)


def list(tx: Tx, namespace: str, filters: Sequence[str] = ()) -> Sequence[Container]:
    """Return the containers that match, by ID. Raises InvalidArgument.

    Filters see ``id``, ``image``, ``runtime.name`` and ``labels``.
    """
    rows = tx.execute(f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? ORDER BY id", (namespace,))
    return parse(filters).select(map(_from_row, rows), _field)


def labelled(tx: Tx, label: str) -> Sequence[tuple[str, Container]]:
    """Return the containers of all namespaces that have *label*, each with its namespace."""
    # Most have not, and are not to be decoded for that.
    rows = tx.execute(f"SELECT namespace, {_COLUMNS} FROM containers WHERE instr(labels, ?)", (json.dumps(label),))
    found = ((namespace, _from_row(tuple(row))) for namespace, *row in rows)
    return [(namespace, container) for namespace, container in found if label in container.labels]


def update(tx: Tx, namespace: str, container: Container, paths: Sequence[str] = ()) -> Container:
    """Change what *paths* names and return the result; no paths: everything that can be changed.

    That is ``labels``, ``labels.<key>``, ``spec``, ``extensions``, ``extensions.<key>``, ``image`` and
    ``snapshotkey`` (also written ``snapshot_key``). Without paths the others must be what they are.

    Raises:
        NotFound: no such container.
        InvalidArgument: an immutable or unknown field, or a value that is not valid.
    """
    identifiers.validate(container.id, "container id")
    current = get(tx, namespace, container.id)
    if not paths:
        for name in ("snapshotter", "runtime"):
            if getattr(container, name) != getattr(current, name):
                raise InvalidArgument(f"container {container.id!r}: field {name} is immutable")
        paths = ("labels", "spec", "extensions", "image", "snapshotkey")
    changed = current
    for path in paths:
        changed = _masked(changed, container, path)
    stored = replace(_checked(changed), updated_at=time.time_ns())
    tx.execute(
        f"UPDATE containers SET {_SETTERS} WHERE namespace = ? AND id = ?", (*_row(stored)[1:], namespace, stored.id)
    )
    return stored


@frees
def delete(tx: Tx, namespace: str, id: str) -> None:
    """Remove the record. Raises NotFound."""
    if not tx.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, id)).rowcount:
        raise NotFound(f"container {id!r}")


def _masked(current: Container, given: Container, path: str) -> Container:
    match path.split(".", 1):
        case ["labels", *_]:
            return replace(current, labels=labels.updated(current.labels, given.labels, [path]))
        case ["spec"]:
            return replace(current, spec=given.spec)
        case ["extensions"]:
            return replace(current, extensions=given.extensions)
        case ["extensions", key] if key:
            return replace(current, extensions=with_one(current.extensions, given.extensions, key))
        case ["image"]:
            return replace(current, image=given.image)
        case ["snapshotkey" | "snapshot_key"]:
            return replace(current, snapshot_key=given.snapshot_key)
    raise InvalidArgument(f"container {current.id!r}: cannot update {path!r}")


def _checked(container: Container) -> Container:
    identifiers.validate(container.id, "container id")
    subject = f"container {container.id!r}"
    if not container.runtime:
        raise InvalidArgument(f"{subject}: runtime name must be set")
    if not container.spec.type_url and not container.spec.value:
        raise InvalidArgument(f"{subject}: spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument(f"{subject}: snapshotter must be set if the snapshot key is")
    if "" in container.extensions:
        raise InvalidArgument(f"{subject}: extension names must not be empty")
    return replace(container, labels=labels.checked(container.labels))


def _row(container: Container) -> tuple[object, ...]:
    options = container.runtime_options or Opaque("", b"")
    return (
        container.id, container.image, container.runtime, options.type_url, options.value,
        container.spec.type_url, container.spec.value, container.snapshotter, container.snapshot_key,
        container.sandbox, packed(container.extensions), json.dumps(dict(container.labels)),
        container.created_at, container.updated_at,
    )  # fmt: skip


def _from_row(row: tuple[str, str, str, str, bytes, str, bytes, str, str, str, str, str, int, int]) -> Container:
    (id, image, runtime, options_type, options, spec_type, spec, snapshotter, snapshot_key, sandbox,
     extensions, text, created_at, updated_at) = row  # fmt: skip
    return Container(
        id=id,
        image=image,
        runtime=runtime,
        runtime_options=Opaque(options_type, options) if options_type or options else None,
        spec=Opaque(spec_type, spec),
        snapshotter=snapshotter,
        snapshot_key=snapshot_key,
        sandbox=sandbox,
        extensions=unpacked(extensions),
        labels=json.loads(text),
        created_at=created_at,
        updated_at=updated_at,
    )


def _field(container: Container, path: Sequence[str]) -> str | None:
    match path:
        case ["id"]:
            return container.id
        case ["image"]:
            return container.image or None
        case ["runtime", "name"]:
            return container.runtime
        case ["labels", *key]:
            return container.labels.get(".".join(key))
    return None
