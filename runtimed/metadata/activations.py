"""Activated mounts: a name, what the daemon has mounted under it, and what is left for whoever asked to mount.

A record is written once everything is mounted, and removed before anything is taken off. Nothing keeps it but its
lease and the labels that say what it belongs to: without those the next garbage collection takes it.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from runtimed import identifiers, labels
from runtimed.errors import AlreadyExists, NotFound
from runtimed.filters import parse
from runtimed.metadata import namespaces
from runtimed.metadata.db import Tx, frees
from runtimed.mounts import Mount

_COLUMNS = "name, directory, lease, active, system, labels, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveMount:
    """A mount that is made. `mounted_at` is nanoseconds since the epoch, UTC."""

    mount: Mount
    mount_point: str
    mounted_at: int
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """`system` are mounts still to be made, with the active ones for sources; times as above."""

    name: str
    directory: str  # where the mount points are, a name of its own
    lease: str = ""
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def create(tx: Tx, namespace: str, activation: Activation) -> Activation:
    """Add *activation* and return it as stored.

    Raises:
        AlreadyExists: the name is taken in *namespace*.
        NotFound: there is no such lease.
        InvalidArgument: a label is not valid.
    """
    now = time.time_ns()
    stored = replace(activation, labels=labels.checked(activation.labels), created_at=now, updated_at=now)
    identifiers.validate_name(stored.name, "mount name")
    namespaces.ensure(tx, namespace)
    at = (namespace, stored.lease)
    if stored.lease and not tx.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", at).fetchone():
        raise NotFound(f"lease {stored.lease!r}")
    try:
        tx.execute(
            f"INSERT INTO mounts (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, *_row(stored)),
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"mount {stored.name!r}") from None
    return stored


def get(tx: Tx, namespace: str, name: str) -> Activation:
    """Raises NotFound."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM mounts WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
    if row is None:
        raise NotFound(f"mount {name!r}")
    return _from_row(row)


def list(tx: Tx, namespace: str, filters: Sequence[str] = ()) -> Sequence[Activation]:
    """Return those that match, by name. Filters see ``name`` and ``labels``. Raises InvalidArgument."""
    rows = tx.execute(f"SELECT {_COLUMNS} FROM mounts WHERE namespace = ? ORDER BY name", (namespace,))
    return parse(filters).select(map(_from_row, rows), _field)


def everywhere(tx: Tx) -> Sequence[tuple[str, Activation]]:
    """Return the activations of all namespaces, each with its namespace."""
    rows = tx.execute(f"SELECT namespace, {_COLUMNS} FROM mounts")
    return [(namespace, _from_row(tuple(row))) for namespace, *row in rows]


def update(tx: Tx, namespace: str, name: str, given: Mapping[str, str], paths: Sequence[str] = ()) -> Activation:
    """Change labels as *paths* says and return the result. Raises NotFound, InvalidArgument."""
    current = get(tx, namespace, name)
    stored = replace(current, labels=labels.updated(current.labels, given, paths), updated_at=time.time_ns())
    tx.execute(
        "UPDATE mounts SET labels = ?, updated_at = ? WHERE namespace = ? AND name = ?",
        (json.dumps(stored.labels), stored.updated_at, namespace, name),
    )
    return stored


@frees
def delete(tx: Tx, namespace: str, name: str) -> Activation:
    """Remove the record and return it. Raises NotFound."""
    found = get(tx, namespace, name)
    tx.execute("DELETE FROM mounts WHERE namespace = ? AND name = ?", (namespace, name))
    return found


def _row(activation: Activation) -> tuple[object, ...]:
    return (
        activation.name, activation.directory, activation.lease, json.dumps([asdict(one) for one in activation.active]),
        json.dumps([asdict(one) for one in activation.system]), json.dumps(dict(activation.labels)),
        activation.created_at, activation.updated_at,
    )  # fmt: skip


def _from_row(row: tuple[str, str, str, str, str, str, int, int]) -> Activation:
    name, directory, lease, active, system, text, created_at, updated_at = row
    return Activation(
        name=name,
        directory=directory,
        lease=lease,
        active=[ActiveMount(**{**one, "mount": _mount(one["mount"])}) for one in json.loads(active)],
        system=[_mount(one) for one in json.loads(system)],
        labels=json.loads(text),
        created_at=created_at,
        updated_at=updated_at,
    )


def _mount(fields: Mapping[str, object]) -> Mount:
    return Mount(**{**fields, "options": tuple(fields["options"])})  # type: ignore[arg-type]


def _field(activation: Activation, path: Sequence[str]) -> str | None:
    match path:
        case ["name"]:
            return activation.name
        case ["labels", *key]:
            return activation.labels.get(".".join(key))
    return None
