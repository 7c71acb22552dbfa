"""Namespaces: what separates the records of one client from another's.

A namespace comes into being with the first thing written to it: every store calls :func:`ensure`, and clients such as
dockerd rely on it. One that was never written to is the same as one without labels.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtimed import identifiers, labels
from runtimed.errors import AlreadyExists, FailedPrecondition, NotFound
from runtimed.filters import parse
from runtimed.metadata.db import Tx, frees

_CONTENTS = {
    "images": "images",
    "blobs": "blobs",
    "containers": "containers",
    "sandboxes": "sandboxes",
}  # table -> what messages call it


@dataclass(frozen=True, slots=True)
class Namespace:
    """A name with labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


def ensure(tx: Tx, namespace: str) -> None:
    """Make *namespace* if it is not there; for every function that is about to write to it."""
    tx.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (namespace,))


def create(tx: Tx, namespace: Namespace) -> Namespace:
    """Add *namespace* and return it as stored.

    Raises:
        InvalidArgument: the name or a label is not valid.
        AlreadyExists: it is there.
    """
    identifiers.validate(namespace.name, "namespace")
    stored = Namespace(namespace.name, labels.checked(namespace.labels))
    try:
        tx.execute("INSERT INTO namespaces (name, labels) VALUES (?, ?)", (stored.name, json.dumps(stored.labels)))
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"namespace {namespace.name!r}") from None
    return stored


def get(tx: Tx, name: str) -> Namespace:
    """Return the namespace; without labels if nothing was ever written to it."""
    row = tx.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return Namespace(name, json.loads(row[0]) if row else {})


def list(tx: Tx, filters: Sequence[str] = ()) -> Sequence[Namespace]:
    """Return the namespaces that match, by name. Filters see ``name`` and ``labels``. Raises InvalidArgument."""
    rows = tx.execute("SELECT name, labels FROM namespaces ORDER BY name")
    found = (Namespace(name, json.loads(text)) for name, text in rows)
    return parse(filters).select(found, _field)


def update(tx: Tx, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
    """Change labels as *paths* says and return the result. One that is not there is made, as containerd does it.

    Raises:
        InvalidArgument: a path that is not about labels, or a label that is not valid.
    """
    identifiers.validate(namespace.name, "namespace")
    ensure(tx, namespace.name)
    stored = Namespace(namespace.name, labels.updated(get(tx, namespace.name).labels, namespace.labels, paths))
    tx.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (json.dumps(stored.labels), stored.name))
    return stored


@frees
def delete(tx: Tx, name: str) -> None:
    """Remove an empty namespace, with the leases in it and the ingests that nobody committed.

    Raises:
        NotFound: it is not there.
        FailedPrecondition: there are images, blobs, containers, sandboxes, mounts or snapshots in it.
    """
    if not tx.execute("SELECT 1 FROM namespaces WHERE name = ?", (name,)).fetchone():
        raise NotFound(f"namespace {name!r}")
    left = [
        what
        for table, what in _CONTENTS.items()
        if tx.execute(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()
    ]
    rows = tx.execute("SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY 1", (name,))
    left += [f'snapshots on "{snapshotter}" snapshotter' for (snapshotter,) in rows]
    if left:
        raise FailedPrecondition(f"namespace {name!r} must be empty, but it still has {', '.join(left)}")
    # The directories of the ingests are swept at the next start.
    for table in ("leases", "ingests"):
        tx.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))
    tx.execute("DELETE FROM namespaces WHERE name = ?", (name,))


def _field(namespace: Namespace, path: Sequence[str]) -> str | None:
    match path:
        case ["name"]:
            return namespace.name
        case ["labels", *key]:
            return namespace.labels.get(".".join(key))
    return None
