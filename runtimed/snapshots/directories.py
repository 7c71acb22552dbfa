"""The directories of a snapshotter that keeps one per snapshot.

Below the snapshotter's root, all 0700::

    snapshots/<id>   one per row of records.db
    new/<random>     being made; renamed to snapshots/<id> within the transaction that adds the row
    trash/<random>   renamed away, being deleted

Whatever a crash leaves in `new`, and in `snapshots` without a row, goes to `trash` when the snapshotter is made again.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtimed.errors import FailedPrecondition
from runtimed.linux.rename import exchange
from runtimed.mounts import mounts_below, mounts_of
from runtimed.snapshots.records import Records
from runtimed.snapshots.trees import empty, opened

log = logging.getLogger(__name__)


class Fresh:
    """A directory that is being made; see :meth:`Directories.making`."""

    def __init__(self, path: Path) -> None:
        self.path = path


def _mkdir(path: Path) -> None:
    path.mkdir(mode=0o700)


class Directories:
    """Makes, finds and deletes the directories that belong to *records*."""

    def __init__(self, root: Path, records: Records, erase: Callable[[Path], None] = empty) -> None:
        """Make what is missing below *root* and put aside what a crash has left. Raises OSError.

        *erase* deletes everything in a directory, as :func:`runtimed.snapshots.trees.empty` does.
        """
        self._records = records
        self._erase = erase
        self._snapshots = root / "snapshots"
        self.new = root / "new"  # on the disk where the snapshots are
        self._trash = root / "trash"
        for directory in (root, self._snapshots, self.new, self._trash):
            directory.mkdir(mode=0o700, exist_ok=True)
        for left in self.new.iterdir():
            self._put_aside(left)
        self._put_unknown_aside()

    def path(self, id: str) -> Path:
        """Return the directory of the snapshot *id*."""
        return self._snapshots / id

    @contextmanager
    def making(self, make: Callable[[Path], None] = _mkdir) -> Iterator[Fresh]:
        """Hold a new directory, by *make*; :meth:`place` makes it a snapshot's. If anything raises, it goes."""
        fresh = Fresh(self.new / secrets.token_hex(8))
        try:
            make(fresh.path)
            yield fresh
        except BaseException:
            self.discard(fresh.path)
            raise

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Hold a new directory that goes when the block ends."""
        with self.making() as fresh:
            yield fresh.path
        self.discard(fresh.path)

    def place(self, fresh: Fresh, id: str) -> None:
        """Give *fresh* its place, and its name to the disk; inside the transaction that adds the row *id*."""
        fresh.path = fresh.path.rename(self.path(id))
        # SQLite's own sync brings the rename to disk on ext4 and XFS only.
        with opened(self._snapshots) as fd:
            os.fsync(fd)

    def replace(self, old: str, new: str) -> None:
        """Exchange the directories of two ids; a missing *old* is given that of *new*."""
        try:
            exchange(str(self.path(old)), str(self.path(new)))
        except FileNotFoundError:
            self.path(new).rename(self.path(old))
        with opened(self._snapshots) as fd:
            os.fsync(fd)

    def refuse_mounted(self, id: str, key: str) -> None:
        """Raise FailedPrecondition if the directory of *id*, the snapshot *key*, is mounted or has a mount in it."""
        path = self.path(id)
        mounted = mounts_below(path) or mounts_of(path)
        if mounted:
            raise FailedPrecondition(f"snapshot {key!r} is in use: unmount {str(mounted[0])!r} first")

    def discard(self, path: Path) -> None:
        """Delete *path* and all in it; what cannot be deleted now is left to :meth:`cleanup` and logged."""
        try:
            aside = self._put_aside(path)
            if aside is not None:
                self._delete(aside)
        except OSError as exc:
            log.warning("directory could not be deleted", extra={"path": str(path), "error": str(exc)})

    def cleanup(self) -> None:
        """Delete every directory without a row that nobody is making."""
        self._put_unknown_aside()
        for aside in self._trash.iterdir():
            try:
                self._delete(aside)
            except OSError as exc:
                log.warning("directory could not be deleted", extra={"path": str(aside), "error": str(exc)})

    def _put_unknown_aside(self) -> None:
        with self._records.writing():  # nobody places a directory meanwhile
            known = self._records.ids()
            unknown = [path for path in self._snapshots.iterdir() if path.name not in known]
            for path in unknown:
                try:
                    self._put_aside(path)
                except OSError as exc:
                    log.warning("directory could not be deleted", extra={"path": str(path), "error": str(exc)})

    def _put_aside(self, path: Path) -> Path | None:
        """Move *path* into a directory of its own in the trash; None if it has gone already."""
        aside = self._trash / secrets.token_hex(8)
        aside.mkdir(mode=0o700)
        try:
            path.rename(aside / "0")
        except BaseException as exc:
            aside.rmdir()
            if isinstance(exc, FileNotFoundError):
                return None
            raise
        return aside

    def _delete(self, aside: Path) -> None:
        try:
            self._erase(aside)
            aside.rmdir()
        except FileNotFoundError:
            return  # a cleanup at the same time was faster
