"""Snapshots by namespace: a client's keys, and the keys that the snapshotter knows them by.

The snapshotter's keys are ``<namespace>/<random>/<client's key>``, a new one each time, so that what a crash leaves in
a snapshotter is in nobody's way. An operation takes its steps in such an order that :meth:`Snapshots.reconcile` can
repair it wherever it stops; what no client has been told of may be lost, nothing else:

* prepare, view: the snapshot, then its row. A snapshot without a row is removed.
* commit: a row for the name, then the snapshot's commit, then the row of the key goes. A row without a snapshot is
  deleted: the name's if the commit did not happen, the key's if it did.
* remove: the snapshot, then its row.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimed import identifiers
from runtimed.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimedError, Unimplemented
from runtimed.filters import parse
from runtimed.labels import SNAPSHOT_REF, checked
from runtimed.metadata import snapshot_rows
from runtimed.metadata.db import Database
from runtimed.metadata.snapshot_rows import Row
from runtimed.snapshots.snapshotter import (
    Checkable,
    Info,
    Kind,
    LayerFiles,
    Mounts,
    RemovesMany,
    Snapshotter,
    Usage,
)

log = logging.getLogger(__name__)

Infos = list[Info]  # a name of its own, because the class has a method called `list`

_INHERITED = "containerd.io/snapshot/"  # labels with this prefix are meant for the snapshotter


class Snapshots:
    """The snapshots of one snapshotter as the namespaces see them. Blocking; any thread may call."""

    def __init__(self, db: Database, name: str, snapshotter: Snapshotter) -> None:
        self.name = name
        self.snapshotter = snapshotter
        self._db = db
        # The snapshotter's keys that a running operation is about to give a row or a snapshot.
        self._held: set[str] = set()
        self._guard = threading.Lock()

    def prepare(self, namespace: str, key: str, parent: str, labels: Mapping[str, str], lease: str = "") -> Mounts:
        """Begin an active snapshot, held by *lease* if there is one, and return its mounts.

        Raises as :meth:`Snapshotter.prepare`; NotFound also for the lease; AlreadyExists also if the label
        ``containerd.io/snapshot.ref`` names a committed snapshot: what the caller is about to make is there.
        """
        return self._create(self.snapshotter.prepare, namespace, key, parent, labels, lease)

    def view(self, namespace: str, key: str, parent: str, labels: Mapping[str, str], lease: str = "") -> Mounts:
        """Begin a view. Like :meth:`prepare`."""
        return self._create(self.snapshotter.view, namespace, key, parent, labels, lease)

    def mounts(self, namespace: str, key: str) -> Mounts:
        """Return the mounts of an active snapshot or view. Raises as :meth:`Snapshotter.mounts`."""
        return self.snapshotter.mounts(self._row(namespace, key).backend_key)

    def commit(self, namespace: str, name: str, key: str, labels: Mapping[str, str], lease: str = "") -> None:
        """Turn *key* into the committed *name*; *lease*, if given, holds that from now on and *key* no longer.

        Raises as :meth:`Snapshotter.commit`; NotFound also for the lease.
        """
        identifiers.validate_name(name, "snapshot name")
        stored = checked(labels)
        self._free_if_stale(namespace, name)
        active = self._row(namespace, key)
        committed = self._new_row(namespace, name, active.parent, stored)
        with self._holding(committed.backend_key), self._holding(active.backend_key):
            self._db.submit(snapshot_rows.insert, self.name, committed, lease).result()
            try:
                self.snapshotter.commit(committed.backend_key, active.backend_key, _inherited(stored))
            except BaseException:
                self._db.submit(snapshot_rows.delete, self.name, committed, lease).result()
                raise
            self._db.submit(snapshot_rows.delete, self.name, active, lease).result()

    def replace(self, namespace: str, name: str, key: str) -> None:
        """Give the committed *name* what the active *key* holds, which goes. Raises as :meth:`Checkable.replace`."""
        committed, active = self._row(namespace, name), self._row(namespace, key)
        if not isinstance(self.snapshotter, Checkable):
            raise Unimplemented(f"snapshotter {self.name!r} cannot replace a snapshot")
        with self._holding(committed.backend_key), self._holding(active.backend_key):
            self.snapshotter.replace(committed.backend_key, active.backend_key)
            self._db.submit(snapshot_rows.delete, self.name, active, "").result()

    def chain(self, namespace: str, key: str) -> Sequence[Row]:
        """Return the rows of *key* and all below it, the lowest first. Raises NotFound."""
        rows = [self._row(namespace, key)]
        while rows[-1].parent:
            rows.append(self._row(namespace, rows[-1].parent))
        kinds = self.snapshotter.stat(rows[0].backend_key).kind
        return list(reversed(rows if kinds is Kind.COMMITTED else rows[1:]))

    def committed(self, namespace: str) -> Sequence[Row]:
        """Return the rows of the committed snapshots of *namespace*, parents before their children."""
        order = {info.name: place for place, info in enumerate(self.snapshotter.list()) if info.kind is Kind.COMMITTED}
        with self._db.reading() as tx:
            rows = snapshot_rows.every(tx, self.name, namespace)
        return sorted((row for row in rows if row.backend_key in order), key=lambda row: order[row.backend_key])

    def remove(self, namespace: str, key: str, lease: str = "") -> None:
        """Remove a snapshot and free its disk space; *lease*, if given, lets go of it.

        Raises as :meth:`Snapshotter.remove`.
        """
        row = self._row(namespace, key)
        with self._db.reading() as tx:
            child = snapshot_rows.find_child(tx, self.name, row)
        if child is not None:
            raise FailedPrecondition(f"snapshot {key!r} has a child, {child!r}: remove that first")
        if row.backend_key in self._now_held():
            raise NotFound(f"snapshot {key!r}")  # being committed: of the name nobody has been told yet, the key goes
        removed = False
        with suppress(NotFound):  # an earlier remove got this far
            self.snapshotter.remove(row.backend_key)
            removed = True
        removed |= self._db.submit(snapshot_rows.delete, self.name, row, lease).result()
        if not removed:
            raise NotFound(f"snapshot {key!r}")

    def stat(self, namespace: str, key: str) -> Info:
        """Return the record of *key*, as the namespace sees it. Raises NotFound."""
        row = self._row(namespace, key)
        return row.info(self.snapshotter.stat(row.backend_key).kind)

    def update(self, namespace: str, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change the labels of *key* to *labels*, as *paths* (of a field mask) says, and return its record.

        Raises NotFound, and InvalidArgument for a path that is not about labels.
        """
        row = self._db.submit(snapshot_rows.update, self.name, namespace, key, labels, paths).result()
        return row.info(self.snapshotter.update(row.backend_key, _inherited(row.labels)).kind)

    def usage(self, namespace: str, key: str) -> Usage:
        """Return what *key* takes on disk without its parents; may take long for an active one. Raises NotFound."""
        return self.snapshotter.usage(self._row(namespace, key).backend_key)

    def cleanup(self) -> None:
        """Delete what no record explains, here and in the snapshotter. May take long."""
        self.reconcile()
        self.snapshotter.cleanup()

    def reconcile(self) -> None:
        """Make the rows and the snapshotter agree; at start, and whenever asked. Operations may go on meanwhile."""
        # In this order: an operation holds its key before it makes a snapshot, and until that has its row.
        present = [info.name for info in self.snapshotter.list()]
        held = self._now_held()
        with self._db.reading() as tx:
            rows = snapshot_rows.every(tx, self.name)
        existing = set(present)
        explained = {row.backend_key for row in rows} | held
        for backend_key in reversed(present):  # children first
            if backend_key not in explained:
                self.discard(backend_key)
        for row in rows:
            if row.backend_key not in existing:
                self._free_if_stale(row.namespace, row.key)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Infos:
        """Return the records that match, by key. Filters see ``name``, ``parent``, ``kind`` and ``labels``.

        Raises InvalidArgument.
        """
        wanted = parse(filters)
        with self._db.reading() as tx:
            rows = snapshot_rows.every(tx, self.name, namespace)
        kinds = {info.name: info.kind for info in self.snapshotter.list()}
        infos = [row.info(kinds[row.backend_key]) for row in rows if row.backend_key in kinds]
        return [info for info in infos if wanted.match(lambda path, info=info: _field(info, path))]  # type: ignore[misc]

    def layer_files(self) -> Sequence[tuple[str, str, str, Path]]:
        """Return namespace, name, parent and path of each committed snapshot that is a file, in all namespaces."""
        if not isinstance(self.snapshotter, LayerFiles):
            return []
        files = self.snapshotter.layer_files()
        with self._db.reading() as tx:
            rows = snapshot_rows.every(tx, self.name)
        found = [row for row in rows if row.backend_key in files]
        return [(row.namespace, row.key, row.parent, files[row.backend_key]) for row in found]

    def _create(
        self,
        make: Callable[[str, str, Mapping[str, str]], Mounts],
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        lease: str,
    ) -> Mounts:
        identifiers.validate_name(key, "snapshot key")
        stored = checked(labels)
        self._refuse_target_that_exists(namespace, stored.get(SNAPSHOT_REF, ""))
        self._free_if_stale(namespace, key)
        with self._db.reading() as tx:
            if snapshot_rows.find(tx, self.name, namespace, key):
                raise AlreadyExists(f"snapshot {key!r}")
            below = snapshot_rows.get(tx, self.name, namespace, parent, "parent snapshot").backend_key if parent else ""
        row = self._new_row(namespace, key, parent, stored)
        with self._holding(row.backend_key):
            mounts = make(row.backend_key, below, _inherited(stored))
            try:
                self._db.submit(snapshot_rows.insert, self.name, row, lease).result()
            except BaseException:
                self.discard(row.backend_key)
                raise
        return mounts

    def _refuse_target_that_exists(self, namespace: str, target: str) -> None:
        """Tell a client who is about to make *target* that it is there (containerd's `containerd.io/snapshot.ref`)."""
        with suppress(NotFound):  # no row, or a commit that is under way
            if target and self.stat(namespace, target).kind is Kind.COMMITTED:
                raise AlreadyExists(f'target snapshot "{target}": already exists')

    def _free_if_stale(self, namespace: str, key: str) -> None:
        """Delete the row of *key* if its snapshot is gone, which only a failure between two steps explains."""
        with self._db.reading() as tx:
            row = snapshot_rows.find(tx, self.name, namespace, key)
        if row is None or row.backend_key in self._now_held():
            return
        try:
            self.snapshotter.stat(row.backend_key)
        except NotFound:
            log.warning("snapshot is gone, its record goes", extra={"snapshot": key, "snapshotter": self.name})
            self._db.submit(snapshot_rows.delete, self.name, row, "").result()

    def is_busy(self, backend_key: str) -> bool:
        """Say whether an operation is about to give the snapshot another row."""
        return backend_key in self._now_held()

    def discard(self, backend_key: str) -> bool:
        """Remove a snapshot that has no row, and say whether it is gone; if not, :meth:`reconcile` tries it again."""
        try:
            self.snapshotter.remove(backend_key)
        except NotFound:
            pass
        except RuntimedError as exc:
            log.debug("left-over snapshot stays", extra={"snapshot": backend_key, "error": str(exc)})
            return False
        return True

    def discard_many(self, backend_keys: Sequence[str]) -> set[str]:
        """Do what :meth:`discard` does with several, children before their parents; return those that are not gone."""
        if not isinstance(self.snapshotter, RemovesMany):
            return {key for key in backend_keys if not self.discard(key)}
        try:
            return self.snapshotter.remove_many(backend_keys)
        except RuntimedError as exc:
            log.debug("left-over snapshots stay", extra={"snapshots": len(backend_keys), "error": str(exc)})
            return set(backend_keys)

    def _row(self, namespace: str, key: str) -> Row:
        with self._db.reading() as tx:
            return snapshot_rows.get(tx, self.name, namespace, key)

    def _new_row(self, namespace: str, key: str, parent: str, labels: dict[str, str]) -> Row:
        now = time.time_ns()
        return Row(namespace, key, f"{namespace}/{secrets.token_hex(8)}/{key}", parent, labels, now, now)

    @contextmanager
    def _holding(self, backend_key: str) -> Iterator[None]:
        with self._guard:
            self._held.add(backend_key)
        try:
            yield
        finally:
            with self._guard:
                self._held.discard(backend_key)

    def _now_held(self) -> set[str]:
        with self._guard:
            return set(self._held)


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that are meant for the snapshotter, which are the same ones as containerd's."""
    return {key: value for key, value in labels.items() if key == SNAPSHOT_REF or key.startswith(_INHERITED)}


def _field(info: Info, path: Sequence[str]) -> str | None:
    match path:
        case ["name"]:
            return info.name
        case ["parent"]:
            return info.parent
        case ["kind"]:
            return info.kind.value
        case ["labels", *key]:
            return info.labels.get(".".join(key))
    return None
