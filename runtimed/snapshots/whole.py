"""A snapshotter that keeps the whole tree of each snapshot, whatever it costs to make one like another.

On disk, below the snapshotter's root (`runtimed/snapshots/directories.py` has the rest)::

    records.db        keys, parents, kinds
    snapshots/<id>    the tree; empty for a view, which shows its parent's
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from runtimed.errors import Aborted, NotFound, os_errors
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import Mount
from runtimed.snapshots.directories import Directories
from runtimed.snapshots.records import Records, Snapshot
from runtimed.snapshots.snapshotter import Info, Kind, Mounts, NotSupported, Usage
from runtimed.snapshots.trees import opened


class WholeTrees(ABC):
    """All of :class:`runtimed.snapshots.snapshotter.Snapshotter` but how a tree is made, measured and deleted."""

    def __init__(self, root: Path) -> None:
        """Open (or make) the store in *root*. Raises DataLoss, and what an OSError stands for."""
        with os_errors(f"snapshotter root {str(root)!r}"):
            self._root = root.resolve()
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._check_supported()
            except NotSupported:
                with suppress(OSError):  # there is something in it, from a time when it was supported
                    self._root.rmdir()
                raise
            self._records = Records(self._root)
            try:
                self._dirs = Directories(self._root, self._records, erase=self._erase)
            except BaseException:
                self._records.close()
                raise

    @abstractmethod
    def _make(self, parent: Path | None, path: Path) -> None:
        """Make *path* a directory that is like *parent* in all; without one an empty directory, of mode 0755.

        Raises OSError; FileNotFoundError if *parent* has gone. What it leaves of *path* is erased.
        """

    @abstractmethod
    def _measure(self, path: Path) -> Usage:
        """Return what the tree takes on disk by itself. Raises OSError."""

    @abstractmethod
    def _erase(self, directory: Path) -> None:
        """Delete everything in *directory*, through no link and no mount. Raises OSError for what is left."""

    def _check_supported(self) -> None:  # noqa: B027  not every file system is asked
        """Raise NotSupported if the root's file system will not do."""

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
            usage = self._measure(self._dirs.path(snapshot.id))
            with self._records.writing():
                self._records.commit(name, key, labels, usage)

    def check(self, name: str) -> None:
        path = self._dirs.path(self._records.get(name).id)
        with os_errors(f"snapshot {name!r}"):
            self._records.check_usage(name, self._measure(path) if path.is_dir() else None)

    def replace(self, name: str, key: str) -> None:
        old, new = self._records.replaceable(name, key)
        with os_errors(f"snapshot {name!r}"):
            self._sync()
            usage = self._measure(self._dirs.path(new.id))
            with self._records.locked():
                self._dirs.replace(old.id, new.id)
                with self._records.writing():
                    self._records.replace(name, key, usage)
        self._dirs.discard(self._dirs.path(new.id))

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
            return self._measure(self._dirs.path(self._records.get(key).id))

    def cleanup(self) -> None:
        with os_errors("snapshot directories"):
            self._dirs.cleanup()

    def close(self) -> None:
        self._records.close()

    def list(self) -> Iterator[Info]:
        return self._records.list()

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        self._records.creatable(key, parent)  # before the copy, which may take its time
        copied_from: tuple[str, ...] = ()

        def make(path: Path) -> None:
            nonlocal copied_from
            if kind is Kind.VIEW:
                path.mkdir(mode=0o700)
                path.chmod(0o755)
            elif not parent:
                self._make(None, path)
            else:
                copied_from = (self._records.get(parent).id,)
                try:
                    self._make(self._dirs.path(copied_from[0]), path)
                except FileNotFoundError:
                    raise NotFound(f"parent snapshot {parent!r}") from None
                self._sync()

        with os_errors(f"snapshot {key!r}"), self._dirs.making(make) as fresh, self._records.writing():
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
