"""The native snapshotter: every snapshot is a whole copy. For file systems that overlayfs does not work on.

On disk, below the snapshotter's root (`runtimed/snapshots/directories.py` has the rest)::

    records.db        keys, parents, kinds
    snapshots/<id>    the tree; empty for a view, which shows its parent's

Where the file system can share blocks between files (btrfs, XFS), a copy costs metadata only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runtimed.errors import Aborted, NotFound, os_errors
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import Mount
from runtimed.snapshots.copying import copy_tree
from runtimed.snapshots.directories import Directories
from runtimed.snapshots.records import Records, Snapshot
from runtimed.snapshots.snapshotter import Info, Kind, Mounts, Usage
from runtimed.snapshots.trees import disk_usage, opened


class NativeSnapshotter:
    """One directory per snapshot, a copy of its parent's to begin with."""

    capabilities: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The ``[snapshotters.native]`` table, which has no keys."""

    def __init__(self, root: Path, config: Config) -> None:
        with os_errors(f"snapshotter root {str(root)!r}"):
            self._root = root.resolve()
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._records = Records(self._root)
            try:
                self._dirs = Directories(self._root, self._records)
            except BaseException:
                self._records.close()
                raise

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        return self._mounts(self._create(Kind.ACTIVE, key, parent, labels))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        return self._mounts(self._create(Kind.VIEW, key, parent, labels))

    def mounts(self, key: str) -> Mounts:
        return self._mounts(self._records.mountable(key))

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        snapshot = self._records.committable(name, key)
        with os_errors(f"snapshot {key!r}"):
            self._sync()
            usage = disk_usage(self._dirs.path(snapshot.id))
            with self._records.writing():
                self._records.commit(name, key, labels, usage)

    def remove(self, key: str) -> None:
        self._dirs.refuse_mounted(self._records.get(key).id, key)
        with self._records.writing():
            id = self._records.remove(key)
        self._dirs.discard(self._dirs.path(id))

    def stat(self, key: str) -> Info:
        return self._records.info(key)

    def update(self, key: str, labels: Mapping[str, str]) -> Info:
        return self._records.update(key, labels)

    def usage(self, key: str) -> Usage:
        recorded = self._records.recorded_usage(key)
        if recorded is not None:
            return recorded
        with os_errors(f"snapshot {key!r}"):
            return disk_usage(self._dirs.path(self._records.get(key).id))

    def cleanup(self) -> None:
        with os_errors("snapshot directories"):
            self._dirs.cleanup()

    def close(self) -> None:
        self._records.close()

    def list(self) -> Iterator[Info]:
        return self._records.list()

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        self._records.creatable(key, parent)  # before the copy, which takes its time
        copied_from: tuple[str, ...] = ()
        with os_errors(f"snapshot {key!r}"), self._dirs.making() as fresh:
            fresh.path.chmod(0o755)
            if kind is Kind.ACTIVE and parent:
                copied_from = (self._records.get(parent).id,)
                try:
                    copy_tree(self._dirs.path(copied_from[0]), fresh.path)
                except FileNotFoundError:
                    raise NotFound(f"parent snapshot {parent!r}") from None
                self._sync()
            with self._records.writing():
                snapshot = self._records.create(kind, key, parent, labels)
                if copied_from and snapshot.parent_ids[:1] != copied_from:
                    raise Aborted(f"parent snapshot {parent!r} was replaced while it was copied: try again")
                self._dirs.place(fresh, snapshot.id)
        return snapshot

    def _sync(self) -> None:
        """Bring the trees to disk, whoever wrote them."""
        with opened(self._root) as fd:
            syncfs(fd)

    def _mounts(self, snapshot: Snapshot) -> Mounts:
        if snapshot.kind is Kind.ACTIVE:
            return [_bind(self._dirs.path(snapshot.id), "rw")]
        shown = snapshot.parent_ids[0] if snapshot.parent_ids else snapshot.id
        return [_bind(self._dirs.path(shown), "ro")]


def _bind(source: Path, mode: str) -> Mount:
    return Mount("bind", str(source), options=(mode, "rbind"))
