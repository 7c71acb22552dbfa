"""Sandboxes: what groups of containers run in. A record has no state; its controller knows that.

Records are kept until they are deleted. What their labels refer to is held against garbage collection meanwhile.
"""

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
from runtimed.metadata.opaque import Opaque, packed, unpacked, with_one

_COLUMNS = (
    "id, sandboxer, runtime, runtime_options_type, runtime_options, spec_type, spec, extensions, labels,"
    " created_at, updated_at"
)
_SETTERS = ", ".join(f"{column.strip()} = ?" for column in _COLUMNS.split(",")[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Times are nanoseconds since the epoch, UTC."""

    id: str
    runtime: str = ""  # the name of a shim, "io.containerd.runc.v2"
    runtime_options: Opaque | None = None
    spec: Opaque | None = None
    sandboxer: str = ""  # which controller it is of
    extensions: Mapping[str, Opaque] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def create(tx: Tx, namespace: str, sandbox: Sandbox) -> Sandbox:
    """Add *sandbox* and return it as stored, with both timestamps set.

    Raises:
        AlreadyExists: the ID is taken in *namespace*.
        InvalidArgument: the ID, a label or the name of an extension is not valid.
    """
    now = time.time_ns()
    stored = replace(_checked(sandbox), created_at=now, updated_at=now)
    namespaces.ensure(tx, namespace)
    try:
        tx.execute(
            f"INSERT INTO sandboxes (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, *_row(stored)),
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"sandbox {sandbox.id!r}") from None
    return stored


def get(tx: Tx, namespace: str, id: str) -> Sandbox:
    """Return the sandbox. Raises NotFound."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id)).fetchone()
    if row is None:
        raise NotFound(f"sandbox {id!r}")
    return _from_row(row)


def list(tx: Tx, namespace: str, filters: Sequence[str] = ()) -> Sequence[Sandbox]:
    """Return the sandboxes that match, by ID. Raises InvalidArgument.

    Filters see ``id`` and ``labels`` as containerd's do, and ``sandboxer`` and ``runtime.name``.
    """
    rows = tx.execute(f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? ORDER BY id", (namespace,))
    return parse(filters).select(map(_from_row, rows), _field)


def everywhere(tx: Tx) -> Sequence[tuple[str, Sandbox]]:
    """Return the sandboxes of all namespaces, each with its namespace."""
    rows = tx.execute(f"SELECT namespace, {_COLUMNS} FROM sandboxes")
    return [(namespace, _from_row(tuple(row))) for namespace, *row in rows]


def update(tx: Tx, namespace: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
    """Change what *paths* names and return the result; no paths: everything that can be changed.

    That is ``labels``, ``labels.<key>``, ``extensions``, ``extensions.<key>``, ``spec`` and ``runtime``. Without
    paths the name of the runtime must be what it is.

    Raises:
        NotFound: no such sandbox.
        InvalidArgument: an immutable or unknown field, or a value that is not valid.
    """
    identifiers.validate(sandbox.id, "sandbox id")
    current = get(tx, namespace, sandbox.id)
    if not paths:
        if sandbox.runtime != current.runtime:
            raise InvalidArgument(f"sandbox {sandbox.id!r}: field runtime.name is immutable")
        paths = ("labels", "extensions", "spec", "runtime")
    changed = current
    for path in paths:
        changed = _masked(changed, sandbox, path)
    stored = replace(_checked(changed), updated_at=time.time_ns())
    tx.execute(
        f"UPDATE sandboxes SET {_SETTERS} WHERE namespace = ? AND id = ?", (*_row(stored)[1:], namespace, stored.id)
    )
    return stored


@frees
def delete(tx: Tx, namespace: str, id: str) -> None:
    """Remove the record. Raises NotFound."""
    if not tx.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id)).rowcount:
        raise NotFound(f"sandbox {id!r}")


def _masked(current: Sandbox, given: Sandbox, path: str) -> Sandbox:
    match path.split(".", 1):
        case ["labels", *_]:
            return replace(current, labels=labels.updated(current.labels, given.labels, [path]))
        case ["extensions"]:
            return replace(current, extensions=given.extensions)
        case ["extensions", key] if key:
            return replace(current, extensions=with_one(current.extensions, given.extensions, key))
        case ["spec"]:
            return replace(current, spec=given.spec)
        case ["runtime"]:
            return replace(current, runtime=given.runtime, runtime_options=given.runtime_options)
    raise InvalidArgument(f"sandbox {current.id!r}: cannot update {path!r}")


def _checked(sandbox: Sandbox) -> Sandbox:
    identifiers.validate(sandbox.id, "sandbox id")
    if "" in sandbox.extensions:
        raise InvalidArgument(f"sandbox {sandbox.id!r}: extension names must not be empty")
    return replace(sandbox, labels=labels.checked(sandbox.labels))


def _row(sandbox: Sandbox) -> tuple[object, ...]:
    options, spec = sandbox.runtime_options or Opaque("", b""), sandbox.spec or Opaque("", b"")
    return (
        sandbox.id, sandbox.sandboxer, sandbox.runtime, options.type_url, options.value, spec.type_url, spec.value,
        packed(sandbox.extensions), json.dumps(dict(sandbox.labels)), sandbox.created_at, sandbox.updated_at,
    )  # fmt: skip


def _from_row(row: tuple[str, str, str, str, bytes, str, bytes, str, str, int, int]) -> Sandbox:
    id, sandboxer, runtime, options_type, options, spec_type, spec, extensions, text, created_at, updated_at = row
    return Sandbox(
        id=id,
        sandboxer=sandboxer,
        runtime=runtime,
        runtime_options=Opaque(options_type, options) if options_type or options else None,
        spec=Opaque(spec_type, spec) if spec_type or spec else None,
        extensions=unpacked(extensions),
        labels=json.loads(text),
        created_at=created_at,
        updated_at=updated_at,
    )


def _field(sandbox: Sandbox, path: Sequence[str]) -> str | None:
    match path:
        case ["id"]:
            return sandbox.id
        case ["sandboxer"]:
            return sandbox.sandboxer or None
        case ["runtime", "name"]:
            return sandbox.runtime or None
        case ["labels", *key]:
            return sandbox.labels.get(".".join(key))
    return None
