"""The bookkeeping that snapshotters share: keys, parents, kinds.

``<root>/records.db`` is SQLite in WAL mode, written with ``synchronous=FULL``: one row per snapshot. Its id is a small
number that is never given twice, and names the snapshot's directory, so that paths are short and a key's characters do
not matter.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimed.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from runtimed.snapshots.snapshotter import Info, Kind, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key        TEXT NOT NULL UNIQUE,
    parent     INTEGER REFERENCES snapshots (id),
    kind       TEXT NOT NULL,
    labels     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    size       INTEGER NOT NULL DEFAULT 0,   -- bytes; set at commit
    inodes     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS snapshots_by_parent ON snapshots (parent);
"""

_BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as its snapshotter sees it: ids instead of keys."""

    id: str
    kind: Kind
    parent_ids: tuple[str, ...]  # the nearest first


class Records:
    """The rows of one snapshotter. Any thread may call; one at a time gets through."""

    def __init__(self, root: Path) -> None:
        """Open (or make) *root*/records.db.

        Raises:
            DataLoss: the file is damaged, or not a database.
        """
        self._lock = threading.RLock()
        self._conn = sqlite3.connect(
            root / "records.db", timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            with _sqlite_errors():
                self._conn.execute("PRAGMA journal_mode = WAL")
                self._conn.execute("PRAGMA synchronous = FULL")
                self._conn.execute("PRAGMA foreign_keys = ON")
                self._conn.executescript(_SCHEMA)
                (self._last_id,) = self._conn.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        except BaseException:
            self._conn.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._conn.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold a transaction open: what is written in the block is on disk after it, or never was if it raises."""
        with self._lock, _sqlite_errors():
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._conn.execute("COMMIT")
            finally:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads away from the records, and from what goes by them."""
        with self._lock:
            yield

    def create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        """Add an active snapshot or view; with :meth:`writing` open. Raises as Snapshotter.prepare."""
        parent_id = self.creatable(key, parent)
        now = time.time_ns()
        # Counted here, because a transaction that is rolled back would give its id to the next one, while its
        # directory may still be there.
        self._last_id += 1
        self._conn.execute(
            "INSERT INTO snapshots (id, key, parent, kind, labels, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._last_id, key, parent_id, kind, json.dumps(dict(labels)), now, now),
        )
        return self.get(key)

    def creatable(self, key: str, parent: str) -> int | None:
        """Return the parent's id if *key* can be made now. Raises as Snapshotter.prepare."""
        if not key:
            raise InvalidArgument("snapshot key must not be empty")
        with self._lock, _sqlite_errors():
            if self._conn.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)).fetchone():
                raise AlreadyExists(f"snapshot {key!r}")
            if not parent:
                return None
            id, kind = self._row("parent snapshot", parent, "id", "kind")
        if kind != Kind.COMMITTED:
            raise InvalidArgument(f"parent snapshot {parent!r} is not committed")
        return int(id)

    def commit(self, name: str, key: str, labels: Mapping[str, str], usage: Usage) -> None:
        """Make the active *key* the committed *name*; with :meth:`writing` open. Raises as Snapshotter.commit."""
        id = int(self.committable(name, key).id)
        now = time.time_ns()
        self._conn.execute(
            "UPDATE snapshots SET key = ?, kind = ?, labels = ?, created_at = ?, updated_at = ?, size = ?, inodes = ?"
            " WHERE id = ?",
            (name, Kind.COMMITTED, json.dumps(dict(labels)), now, now, usage.size, usage.inodes, id),
        )

    def replace(self, name: str, key: str, usage: Usage) -> None:
        """Delete the row of the active *key*, whose content *name* has now; with :meth:`writing` open."""
        self._conn.execute("UPDATE snapshots SET size = ?, inodes = ? WHERE key = ?", (usage.size, usage.inodes, name))
        self._conn.execute("DELETE FROM snapshots WHERE key = ?", (key,))

    def replaceable(self, name: str, key: str) -> tuple[Snapshot, Snapshot]:
        """Return the committed *name* and the active *key*, if that can replace it. Raises as Checkable.replace."""
        with self._lock:
            committed, active = self.get(name), self.get(key)
        if committed.kind is not Kind.COMMITTED or active.kind is not Kind.ACTIVE:
            raise FailedPrecondition(
                f"snapshot {name!r} must be committed and {key!r} active for one to replace the other"
            )
        if committed.parent_ids != active.parent_ids:
            raise FailedPrecondition(f"snapshots {name!r} and {key!r} have different parents")
        return committed, active

    def committable(self, name: str, key: str) -> Snapshot:
        """Return the active snapshot *key* if it can be committed as *name* now. Raises as Snapshotter.commit."""
        if not name:
            raise InvalidArgument("snapshot name must not be empty")
        with self._lock, _sqlite_errors():
            if self._conn.execute("SELECT 1 FROM snapshots WHERE key = ?", (name,)).fetchone():
                raise AlreadyExists(f"snapshot {name!r}")
            snapshot = self.get(key)
        if snapshot.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key!r} is not active, it is {_described(snapshot.kind)}")
        return snapshot

    def remove(self, key: str) -> str:
        """Delete the row of *key* and return its id; with :meth:`writing` open.

        Raises NotFound, and FailedPrecondition if it has children.
        """
        (id,) = self._row("snapshot", key, "id")
        child = self._conn.execute("SELECT key FROM snapshots WHERE parent = ? LIMIT 1", (id,)).fetchone()
        if child:
            raise FailedPrecondition(f"snapshot {key!r} has a child, {child[0]!r}: remove that first")
        self._conn.execute("DELETE FROM snapshots WHERE id = ?", (id,))
        return str(id)

    def get(self, key: str) -> Snapshot:
        """Return the snapshot *key* of any kind. Raises NotFound."""
        with self._lock, _sqlite_errors():
            id, kind = self._row("snapshot", key, "id", "kind")
            ancestors = self._conn.execute(
                "WITH RECURSIVE up (id, parent, depth) AS ("
                " SELECT id, parent, 0 FROM snapshots WHERE id = ?"
                " UNION ALL SELECT s.id, s.parent, up.depth + 1 FROM snapshots s JOIN up ON s.id = up.parent)"
                " SELECT id FROM up WHERE depth > 0 ORDER BY depth",
                (id,),
            )
            return Snapshot(str(id), Kind(kind), tuple(str(ancestor) for (ancestor,) in ancestors))

    def mountable(self, key: str) -> Snapshot:
        """Return the active snapshot or view *key*. Raises NotFound, and FailedPrecondition if it is committed."""
        snapshot = self.get(key)
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed: make a view of it, or prepare one upon it")
        return snapshot

    def info(self, key: str) -> Info:
        """Return the record of *key*. Raises NotFound."""
        with self._lock, _sqlite_errors():
            for row in self._conn.execute(f"{_SELECT_INFO} WHERE s.key = ?", (key,)):
                return _info(row)
        raise NotFound(f"snapshot {key!r}")

    def update(self, key: str, labels: Mapping[str, str]) -> Info:
        """Replace the labels of *key* and return its record. Raises NotFound."""
        with self.writing():
            self._conn.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE key = ?",
                (json.dumps(dict(labels)), time.time_ns(), key),
            )
            return self.info(key)

    def recorded_usage(self, key: str) -> Usage | None:
        """Return what *key* took when it was committed, nothing for a view, None if it is active. Raises NotFound."""
        with self._lock, _sqlite_errors():
            kind, size, inodes = self._row("snapshot", key, "kind", "size", "inodes")
        return None if kind == Kind.ACTIVE else Usage(size, inodes)

    def check_usage(self, name: str, found: Usage | None) -> None:
        """Compare what there is of the committed *name* (None: nothing) with what there was when it was committed.

        Raises DataLoss if it is less. More is no damage: a copy on another file system may take more.
        """
        recorded = self.recorded_usage(name) or Usage(0, 0)
        if found is None:
            raise DataLoss(f"snapshot {name!r} is gone from the disk")
        if found.inodes != recorded.inodes or found.size < recorded.size:
            raise DataLoss(
                f"of snapshot {name!r} there are {found.inodes} inodes and {found.size} bytes on disk, where there were"
                f" {recorded.inodes} and {recorded.size}"
            )

    def ids(self, kind: Kind | None = None) -> set[str]:
        """Return the id of every snapshot, or of every one of a kind."""
        with self._lock, _sqlite_errors():
            found = self._conn.execute("SELECT id FROM snapshots WHERE ? IS NULL OR kind = ?", (kind, kind))
            return {str(id) for (id,) in found}

    def names(self) -> dict[str, str]:
        """Return the id of each committed snapshot by its name."""
        with self._lock, _sqlite_errors():
            found = self._conn.execute("SELECT key, id FROM snapshots WHERE kind = ?", (Kind.COMMITTED,))
            return {name: str(id) for name, id in found}

    def needed(self) -> set[str]:
        """Return the ids that a mount of an active snapshot or view is made of: themselves and those below."""
        with self._lock, _sqlite_errors():
            found = self._conn.execute(
                "WITH RECURSIVE up (id) AS ("
                " SELECT id FROM snapshots WHERE kind <> ?"
                " UNION SELECT s.parent FROM snapshots s JOIN up ON s.id = up.id WHERE s.parent IS NOT NULL)"
                " SELECT id FROM up",
                (Kind.COMMITTED,),
            )
            return {str(id) for (id,) in found}

    def active(self, id: str) -> Info | None:
        """Return the record of the active snapshot with *id*; None if there is none, or it is something else."""
        with self._lock, _sqlite_errors():
            found = self._conn.execute(f"{_SELECT_INFO} WHERE s.id = ? AND s.kind = ?", (id, Kind.ACTIVE)).fetchone()
        return _info(found) if found else None

    def list(self) -> Iterator[Info]:
        """Yield every record as of now, parents before their children."""
        with self._lock, _sqlite_errors():
            rows = self._conn.execute(f"{_SELECT_INFO} ORDER BY s.id").fetchall()  # a child is always made later
        return map(_info, rows)

    def _row(self, what: str, key: str, *columns: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._conn.execute(
            f"SELECT {', '.join(columns)} FROM snapshots WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            raise NotFound(f"{what} {key!r}")
        return row


_SELECT_INFO = (
    "SELECT s.key, p.key, s.kind, s.labels, s.created_at, s.updated_at"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"
)


def _info(row: tuple[Any, ...]) -> Info:
    key, parent, kind, labels, created_at, updated_at = row
    return Info(
        name=key,
        parent=parent or "",
        kind=Kind(kind),
        labels=json.loads(labels),
        created_at=created_at,
        updated_at=updated_at,
    )


def _described(kind: Kind) -> str:
    return "a view" if kind is Kind.VIEW else kind.value


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    """Raise what SQLite says of the disk as our own errors."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise ResourceExhausted("snapshot records: no space left on the device; free some and try again") from exc
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise DataLoss(f"snapshot records: {exc}") from exc
        raise Internal(f"snapshot records: {exc}") from exc
