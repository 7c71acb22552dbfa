"""The overlayfs snapshotter.

On disk, below the snapshotter's root (`runtimed/snapshots/directories.py` has the rest)::

    records.db            keys, parents, kinds
    snapshots/<id>/fs     this snapshot's changes: upperdir while active, a lowerdir of its children once committed
    snapshots/<id>/work   workdir; active snapshots only

Clients mount what they are given, with lowerdir in one page of options: ids are small numbers for that reason.

Options of overlayfs (kernel: overlayfs.rst) that are set, where the host's default for them differs:

* ``index=off``: with an index, a directory that was an upperdir cannot be mounted as a lowerdir beside another lower
  stack (ESTALE), nor be an upperdir in two mounts one after the other while the first lingers (EBUSY).
* ``metacopy=off``, ``redirect_dir=off``: a layer must be whole in itself, with the data of its files, and without
  directories that are a reference to another layer, for whoever compares or copies it.

``xino`` is left alone: all layers are directories of one file system, so st_dev and st_ino are stable without it.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runtimed.errors import InvalidArgument, RuntimedError, os_errors
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import Mount, mounted
from runtimed.snapshots.directories import Directories
from runtimed.snapshots.records import Records, Snapshot
from runtimed.snapshots.snapshotter import Info, Kind, Mounts, NotSupported, Usage
from runtimed.snapshots.trees import disk_usage, opened

_PARAMETERS = Path("/sys/module/overlay/parameters")


class OverlaySnapshotter:
    """One directory per snapshot, stacked by the kernel."""

    capabilities: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The ``[snapshotters.overlayfs]`` table."""

        mount_options: tuple[str, ...] = ()  # added to every overlay mount

    def __init__(self, root: Path, config: Config) -> None:
        """Open the snapshotter on *root*.

        Raises:
            NotSupported: overlayfs does not work on *root*'s file system, or not for this user.
            InvalidArgument: *root* cannot be written in overlay options.
        """
        root = root.resolve()
        if any(character in str(root) for character in ':,\\"'):
            raise InvalidArgument(f'snapshotter root {str(root)!r} has one of : , \\ and " in it: choose another path')
        with os_errors(f"snapshotter root {str(root)!r}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._root = root
            self._records = Records(root)
            try:
                self._dirs = Directories(root, self._records)
                with self._dirs.scratch() as probe:
                    _check_supported(root, probe)
                # After the first mount, which loads the kernel's module if need be.
                self._options = (*_needed_options(), *config.mount_options)
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
            with opened(self._root) as fd:
                syncfs(fd)
            usage = disk_usage(self._upper(snapshot.id))
            with self._records.writing():
                self._records.commit(name, key, labels, usage)
        self._dirs.discard(self._work(snapshot.id))

    def remove(self, key: str) -> None:
        self._dirs.refuse_mounted(self._records.get(key).id, key)
        with self._records.writing():
            id = self._records.remove(key)
        # After the transaction: a key that is gone must not come back because its directory was slow or failed to go.
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
            return disk_usage(self._upper(self._records.get(key).id))

    def cleanup(self) -> None:
        with os_errors("snapshot directories"):
            self._dirs.cleanup()

    def close(self) -> None:
        self._records.close()

    def list(self) -> Iterator[Info]:
        return self._records.list()

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        # The directory gets its place last, so that whatever is in `snapshots` is either whole or unknown.
        with os_errors(f"snapshot {key!r}"), self._dirs.making() as fresh:
            upper = fresh.path / "fs"
            upper.mkdir(mode=0o755)
            upper.chmod(0o755)  # whatever the umask
            if kind is Kind.ACTIVE:
                (fresh.path / "work").mkdir(mode=0o711)
            with self._records.writing():
                snapshot = self._records.create(kind, key, parent, labels)
                if snapshot.parent_ids:
                    # The root of the merged tree is the upperdir's; the others' do not show.
                    found = self._lower(snapshot.parent_ids[0]).stat()
                    os.chown(upper, found.st_uid, found.st_gid)
                    upper.chmod(stat.S_IMODE(found.st_mode))
                self._dirs.place(fresh, snapshot.id)
        return snapshot

    def _mounts(self, snapshot: Snapshot) -> Mounts:
        lower = [str(self._lower(id)) for id in snapshot.parent_ids]
        upper = str(self._upper(snapshot.id))
        match snapshot.kind, lower:
            case Kind.ACTIVE, []:
                return [_bind(upper, "rw")]
            case Kind.VIEW, []:
                return [_bind(upper, "ro")]
            case Kind.VIEW, [only]:  # overlayfs needs an upperdir or two lowerdirs
                return [_bind(only, "ro")]
        options = [*self._options]
        if snapshot.kind is Kind.ACTIVE:
            options += [f"workdir={self._work(snapshot.id)}", f"upperdir={upper}"]
        options.append(f"lowerdir={':'.join(lower)}")
        return [Mount("overlay", "overlay", options=tuple(options))]

    def _lower(self, id: str) -> Path:
        """Return the directory that shows the committed layer *id*. Every use of a layer comes through here."""
        return self._dirs.path(id) / "fs"

    def _upper(self, id: str) -> Path:
        return self._dirs.path(id) / "fs"

    def _work(self, id: str) -> Path:
        return self._dirs.path(id) / "work"


def _bind(source: str, mode: str) -> Mount:
    return Mount("bind", source, options=(mode, "rbind"))


def _needed_options() -> tuple[str, ...]:
    return tuple(
        f"{name}=off" for name in ("index", "metacopy", "redirect_dir") if _parameter(name) not in {"", "N", "off"}
    )


def _parameter(name: str) -> str:
    """Return the overlay module's default for *name*; "" if the kernel does not know it."""
    try:
        return (_PARAMETERS / name).read_text().strip()
    except FileNotFoundError:
        return ""


def _check_supported(root: Path, probe: Path) -> None:
    """Try an overlay in *probe*: mounting says whether it can be an upperdir, a deletion whether whiteouts work.

    Raises NotSupported with the reason. A file system without d_type mounts well enough, and then shows whiteouts.
    """
    subject = f"overlayfs does not work on {str(root)!r}"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir()
    (probe / "lower" / "file").touch()
    options = (f"lowerdir={probe}/lower", f"upperdir={probe}/upper", f"workdir={probe}/work")
    try:
        with mounted([Mount("overlay", "overlay", options=options)], probe / "merged") as merged:
            (merged / "file").unlink()
            whiteouts = list(merged.iterdir())
    except RuntimedError as exc:
        raise NotSupported(f"{subject}: {exc}") from exc
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise
        raise NotSupported(f"{subject}: {exc.strerror}") from exc
    if whiteouts:
        raise NotSupported(f"{subject}: its directories have no d_type (xfs needs ftype=1)")
