"""The table of snapshots: which key of which namespace is which of a snapshotter's. `metadata/snapshots.py` uses it."""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from runtimed.errors import AlreadyExists, NotFound
from runtimed.labels import updated
from runtimed.metadata import leases, namespaces
from runtimed.metadata.db import Tx, frees
from runtimed.metadata.leases import Resource
from runtimed.snapshots.snapshotter import Info, Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One snapshot of one namespace. Times are nanoseconds since the epoch, UTC."""

    namespace: str
    key: str
    backend_key: str  # the snapshotter's
    parent: str  # a key of the same namespace; "" is none
    labels: dict[str, str]
    created_at: int
    updated_at: int

    def info(self, kind: Kind) -> Info:
        """Return the record as a client sees it; the snapshotter knows the kind."""
        return Info(
            name=self.key,
            parent=self.parent,
            kind=kind,
            labels=self.labels,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


_COLUMNS = "namespace, key, backend_key, parent, labels, created_at, updated_at"


def insert(tx: Tx, snapshotter: str, row: Row, lease: str) -> None:
    """Add a row, held by *lease*. Raises AlreadyExists, NotFound for a parent or lease that has gone meanwhile."""
    namespaces.ensure(tx, row.namespace)
    if row.parent:
        get(tx, snapshotter, row.namespace, row.parent, "parent snapshot")
    try:
        tx.execute(
            f"INSERT INTO snapshots (snapshotter, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                snapshotter,
                row.namespace,
                row.key,
                row.backend_key,
                row.parent,
                json.dumps(row.labels),
                row.created_at,
                row.updated_at,
            ),
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"snapshot {row.key!r}") from None
    if lease:
        leases.add_resource(tx, row.namespace, lease, Resource(f"snapshots/{snapshotter}", row.key))


@frees
def delete(tx: Tx, snapshotter: str, row: Row, lease: str) -> bool:
    """Delete exactly this row and let *lease* go of it; return whether it was there."""
    if lease:
        with suppress(NotFound):
            leases.remove_resource(tx, row.namespace, lease, Resource(f"snapshots/{snapshotter}", row.key))
    deleted = tx.execute(
        "DELETE FROM snapshots WHERE snapshotter = ? AND backend_key = ?", (snapshotter, row.backend_key)
    )
    return deleted.rowcount > 0


def update(tx: Tx, snapshotter: str, namespace: str, key: str, labels: Mapping[str, str], paths: Sequence[str]) -> Row:
    """Change labels as *paths* says and return the result. Raises NotFound, InvalidArgument."""
    row = get(tx, snapshotter, namespace, key)
    row = replace(row, labels=updated(row.labels, labels, paths), updated_at=time.time_ns())
    tx.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE snapshotter = ? AND backend_key = ?",
        (json.dumps(row.labels), row.updated_at, snapshotter, row.backend_key),
    )
    return row


def find(tx: Tx, snapshotter: str, namespace: str, key: str) -> Row | None:
    """Return the row, or None."""
    found = tx.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE snapshotter = ? AND namespace = ? AND key = ?",
        (snapshotter, namespace, key),
    ).fetchone()
    return _from_row(found) if found else None


def get(tx: Tx, snapshotter: str, namespace: str, key: str, what: str = "snapshot") -> Row:
    """Return the row. Raises NotFound, of *what*."""
    row = find(tx, snapshotter, namespace, key)
    if row is None:
        raise NotFound(f"{what} {key!r}")
    return row


def find_child(tx: Tx, snapshotter: str, row: Row) -> str | None:
    """Return the key of one snapshot whose parent is *row*, or None."""
    found = tx.execute(
        "SELECT key FROM snapshots WHERE snapshotter = ? AND namespace = ? AND parent = ? LIMIT 1",
        (snapshotter, row.namespace, row.key),
    ).fetchone()
    return found[0] if found else None


def every(tx: Tx, snapshotter: str, namespace: str | None = None) -> list[Row]:
    """Return the rows of one namespace, or of all, by namespace and key."""
    where, values = ("AND namespace = ?", (namespace,)) if namespace is not None else ("", ())
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE snapshotter = ? {where} ORDER BY namespace, key",
        (snapshotter, *values),
    )
    return [_from_row(row) for row in rows]


def _from_row(row: tuple[Any, ...]) -> Row:
    namespace, key, backend_key, parent, labels, created_at, updated_at = row
    return Row(namespace, key, backend_key, parent, json.loads(labels), created_at, updated_at)
