"""The rows of content: which namespace sees which blob, and which ingest a ref means. Functions of a transaction.

:mod:`runtimed.metadata.content` calls them, and keeps them in step with the files.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence

from runtimed import labels
from runtimed.content.ingest import Writer
from runtimed.content.store import Info
from runtimed.errors import NotFound
from runtimed.filters import Filter
from runtimed.metadata import leases, namespaces
from runtimed.metadata.db import Tx, frees

Row = tuple[str, str, str, int, int]  # of an ingest: ref, directory, expected digest, total bytes, when it was started

_BLOB = "digest, size, labels, created_at, updated_at"
_INGEST = "ref, directory, expected, total, started_at"


def get_blob(tx: Tx, namespace: str, digest: str) -> Info:
    """Return the blob as *namespace* sees it. Raises NotFound."""
    row = tx.execute(f"SELECT {_BLOB} FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)).fetchone()
    if row is None:
        raise NotFound(f"content {digest}")
    return _info(row)


def list_blobs(tx: Tx, namespace: str, wanted: Filter) -> Sequence[Info]:
    """Return the blobs that are *wanted*, by digest. Filters see ``digest``, ``size`` and ``labels``."""
    rows = tx.execute(f"SELECT {_BLOB} FROM blobs WHERE namespace = ? ORDER BY digest", (namespace,))
    return wanted.select(map(_info, rows), _field)


def update_blob(tx: Tx, namespace: str, digest: str, given: Mapping[str, str], paths: Sequence[str]) -> Info:
    """Change labels and return the result. Raises NotFound, and InvalidArgument as :func:`runtimed.labels.updated`."""
    text = json.dumps(labels.updated(get_blob(tx, namespace, digest).labels, given, paths))
    tx.execute(
        "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
        (text, time.time_ns(), namespace, digest),
    )
    return get_blob(tx, namespace, digest)


@frees
def delete_blob(tx: Tx, namespace: str, digest: str) -> bool:
    """Remove the row; say whether another namespace still has one. Raises NotFound."""
    if not tx.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)).rowcount:
        raise NotFound(f"content {digest}")
    return is_named(tx, digest)


def is_named(tx: Tx, digest: str) -> bool:
    """Say whether any namespace has the blob."""
    return tx.execute("SELECT 1 FROM blobs WHERE digest = ? LIMIT 1", (digest,)).fetchone() is not None


def named(tx: Tx) -> set[str]:
    """Return the digests of all blobs of all namespaces."""
    return {digest for (digest,) in tx.execute("SELECT DISTINCT digest FROM blobs")}


def share(tx: Tx, namespace: str, digest: str, size: int, lease: str) -> bool:
    """Add a row for a blob that is in the store with *size* bytes; False if its row elsewhere says another size.

    What other namespaces' labels say of the blob itself is taken over: a client that learns that the blob is there
    does not come to the commit that would set them.
    """
    rows = tx.execute("SELECT size, labels FROM blobs WHERE digest = ?", (digest,)).fetchall()
    if any(recorded != size for recorded, _ in rows):
        return False  # the file is damaged: let it be written again
    inherited: dict[str, str] = {}
    for _, text in rows:
        inherited |= {key: value for key, value in json.loads(text).items() if _follows_from_bytes(key)}
    _add_blob(tx, namespace, digest, size, inherited)
    _hold(tx, namespace, lease, "content", digest)
    return True


def begin(tx: Tx, namespace: str, ref: str, total: int, expected: str, lease: str) -> Row:
    """Return the ingest *ref*, added if it is not there, with what is now known of it. Raises NotFound (the lease)."""
    namespaces.ensure(tx, namespace)
    tx.execute(
        "INSERT INTO ingests (namespace, ref, directory, expected, total, started_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (namespace, ref) DO UPDATE SET"
        " expected = iif(excluded.expected = '', expected, excluded.expected),"
        " total = iif(excluded.total = 0, total, excluded.total)",
        (namespace, ref, secrets.token_hex(8), expected, total, time.time_ns()),
    )
    _hold(tx, namespace, lease, "ingests", ref)
    return get_ingest(tx, namespace, ref)


def commit(
    tx: Tx, namespace: str, writer: Writer, digest: str, stored: Mapping[str, str], lease: str
) -> tuple[Info, bool]:
    """Turn the ingest's row into the blob's; return that, and whether it is new here. Raises NotFound for the lease."""
    is_new = _add_blob(tx, namespace, digest, writer.offset, stored)
    # By directory: the ref may have been aborted and begun anew.
    tx.execute("DELETE FROM ingests WHERE namespace = ? AND directory = ?", (namespace, writer.directory.name))
    _hold(tx, namespace, lease, "content", digest)
    if lease:
        leases.remove_resource(tx, namespace, lease, leases.Resource("ingests", writer.ref))
    return get_blob(tx, namespace, digest), is_new


def get_ingest(tx: Tx, namespace: str, ref: str) -> Row:
    """Return the ingest. Raises NotFound."""
    row: Row | None = tx.execute(
        f"SELECT {_INGEST} FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
    ).fetchone()
    if row is None:
        raise NotFound(f"ingest {ref!r}")
    return row


def list_ingests(tx: Tx, namespace: str) -> Sequence[Row]:
    """Return the ingests of *namespace*, by ref."""
    return tx.execute(f"SELECT {_INGEST} FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,)).fetchall()


def all_ingests(tx: Tx) -> Sequence[Row]:
    """Return the ingests of all namespaces."""
    return tx.execute(f"SELECT {_INGEST} FROM ingests").fetchall()


@frees
def delete_ingest(tx: Tx, namespace: str, ref: str) -> tuple[str, str] | None:
    """Remove the row and return the directory of the ingest and the digest it expected; None if there was none."""
    row: tuple[str, str] | None = tx.execute(
        "DELETE FROM ingests WHERE namespace = ? AND ref = ? RETURNING directory, expected", (namespace, ref)
    ).fetchone()
    return row


@frees
def drop_ingests(tx: Tx, directories: Sequence[str]) -> None:
    """Remove the rows of these directories."""
    tx.executemany("DELETE FROM ingests WHERE directory = ?", [(directory,) for directory in directories])


def _add_blob(tx: Tx, namespace: str, digest: str, size: int, stored: Mapping[str, str]) -> bool:
    namespaces.ensure(tx, namespace)
    now = time.time_ns()
    added = tx.execute(
        "INSERT INTO blobs (namespace, digest, size, labels, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (namespace, digest, size, json.dumps(dict(stored)), now, now),
    )
    return added.rowcount == 1


def _follows_from_bytes(label: str) -> bool:
    """Whether a label is true of a blob in every namespace: what it refers to, its diff ID."""
    return label == labels.UNCOMPRESSED or label.startswith(labels.GC_REF_CONTENT)


def _hold(tx: Tx, namespace: str, lease: str, type: str, id: str) -> None:
    if lease:
        leases.add_resource(tx, namespace, lease, leases.Resource(type, id))


def _info(row: tuple[str, int, str, int, int]) -> Info:
    digest, size, text, created_at, updated_at = row
    return Info(digest=digest, size=size, labels=json.loads(text), created_at=created_at, updated_at=updated_at)


def _field(info: Info, path: Sequence[str]) -> str | None:
    match path:
        case ["digest"]:
            return info.digest
        case ["size"]:
            return str(info.size)
        case ["labels", *key]:
            return info.labels.get(".".join(key))
    return None
