"""Leases: what a client holds against garbage collection while nothing refers to it yet.

A lease lives until it is deleted or expires (label ``containerd.io/gc.expire``); what it held then goes with the next
collection if nothing else holds it. With ``containerd.io/gc.flat`` it holds only what it names.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from runtimed import identifiers, labels
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from runtimed.filters import parse
from runtimed.metadata import namespaces
from runtimed.metadata.db import Tx, frees
from runtimed.oci import digest as digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """``created_at`` is nanoseconds since the epoch, UTC."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class Resource:
    """What a lease holds. ``type`` is ``content``, ``ingests``, ``images`` or ``snapshots/<snapshotter>``."""

    type: str
    id: str


def create(tx: Tx, namespace: str, lease: Lease) -> Lease:
    """Add *lease* and return it as stored; without an ID it gets a random one.

    Raises:
        AlreadyExists: the ID is taken in *namespace*.
        InvalidArgument: the ID or a label is not valid.
    """
    stored = replace(
        lease,
        id=identifiers.validate_name(lease.id or secrets.token_hex(12), "lease id"),
        labels=labels.checked(lease.labels),
        created_at=time.time_ns(),
    )
    namespaces.ensure(tx, namespace)
    try:
        tx.execute(
            "INSERT INTO leases (namespace, id, labels, created_at) VALUES (?, ?, ?, ?)",
            (namespace, stored.id, json.dumps(stored.labels), stored.created_at),
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"lease {stored.id!r}") from None
    return stored


def get(tx: Tx, namespace: str, id: str) -> Lease:
    """Return the lease. Raises NotFound."""
    row = tx.execute(
        "SELECT id, labels, created_at FROM leases WHERE namespace = ? AND id = ?", (namespace, id)
    ).fetchone()
    if row is None:
        raise NotFound(f"lease {id!r}")
    return _from_row(row)


def list(tx: Tx, namespace: str, filters: Sequence[str] = ()) -> Sequence[Lease]:
    """Return the leases that match, by ID. Filters see ``id`` and ``labels``. Raises InvalidArgument."""
    rows = tx.execute("SELECT id, labels, created_at FROM leases WHERE namespace = ? ORDER BY id", (namespace,))
    return parse(filters).select(map(_from_row, rows), _field)


@frees
def delete(tx: Tx, namespace: str, id: str) -> None:
    """Remove the lease; what it held is free to be collected. Raises NotFound."""
    if not tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, id)).rowcount:
        raise NotFound(f"lease {id!r}")


def add_resource(tx: Tx, namespace: str, lease: str, resource: Resource) -> None:
    """Let *lease* hold *resource*, which need not exist yet. Twice is as good as once.

    Raises:
        NotFound: there is no such lease.
        InvalidArgument, Unimplemented: no such type of resource, or an ID that cannot be of that type.
    """
    get(tx, namespace, lease)
    _check(resource)
    tx.execute(
        "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (namespace, lease, resource.type, resource.id),
    )


@frees
def remove_resource(tx: Tx, namespace: str, lease: str, resource: Resource) -> None:
    """Let *lease* hold *resource* no longer; it need not have. Raises as :func:`add_resource`."""
    get(tx, namespace, lease)
    _check(resource)
    tx.execute(
        "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
        (namespace, lease, resource.type, resource.id),
    )


def resources(tx: Tx, namespace: str, lease: str) -> Sequence[Resource]:
    """Return what *lease* holds, by type and ID. Raises NotFound."""
    get(tx, namespace, lease)
    rows = tx.execute(
        "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, id", (namespace, lease)
    )
    return [Resource(type, id) for type, id in rows]


def _check(resource: Resource) -> None:
    match resource.type.split("/"):
        case ["content"]:
            digests.validate(resource.id)
        case ["ingests" | "images"]:
            identifiers.validate_name(resource.id, f"{resource.type} resource")
        case ["snapshots", snapshotter] if snapshotter:
            identifiers.validate_name(resource.id, "snapshot resource")
        case ["content" | "ingests" | "images" | "snapshots", *_]:
            raise InvalidArgument(f"lease resource type {resource.type!r}")
        case _:
            raise Unimplemented(
                f"lease resource type {resource.type!r}: content, ingests, images and snapshots/<snapshotter> are known"
            )


def _from_row(row: tuple[str, str, int]) -> Lease:
    id, text, created_at = row
    return Lease(id=id, labels=json.loads(text), created_at=created_at)


def _field(lease: Lease, path: Sequence[str]) -> str | None:
    match path:
        case ["id"]:
            return lease.id
        case ["labels", *key]:
            return lease.labels.get(".".join(key))
    return None
