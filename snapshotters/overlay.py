"""The overlayfs snapshotter.

On disk, below the snapshotter's root (`runtimed/snapshots/directories.py` has the rest)::

    records.db            keys, parents, kinds
    snapshots/<id>/fs     this snapshot's changes: upperdir while active, a lowerdir of its children once committed
    snapshots/<id>/work   workdir; active snapshots only
    layers/<id>           where a layer that is an EROFS file is mounted (`runtimed/snapshots/layers.py` has the file)

A committed snapshot is a directory, an EROFS file, or a directory over a file, and a chain may mix them. Clients mount
what they are given, with lowerdir in one page of options: ids are small numbers for that reason.

Options of overlayfs (kernel: overlayfs.rst) that are set, where the host's default for them differs:

* ``index=off``: with an index, a directory that was an upperdir cannot be mounted as a lowerdir beside another lower
  stack (ESTALE), nor be an upperdir in two mounts one after the other while the first lingers (EBUSY).
* ``metacopy=off``, ``redirect_dir=off``: a layer must be whole in itself, with the data of its files, and without
  directories that are a reference to another layer, for whoever compares or copies it.

* ``xino=on`` where a layer is a file, which is a file system of its own: without it st_dev would differ between files,
  and what compares it (``du -x``) would leave some out. Directories of one file system need nothing.
"""

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimedError, os_errors
from runtimed.labels import SNAPSHOT_GID_MAPPING, SNAPSHOT_REF, SNAPSHOT_UID_MAPPING
from runtimed.linux import idmap
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import Mount, mounted
from runtimed.snapshots.directories import Directories
from runtimed.snapshots.layers import Layers, check_mapping, check_supported, is_empty, look_like
from runtimed.snapshots.records import Records, Snapshot
from runtimed.snapshots.snapshotter import Info, Kind, Mounts, NotSupported, Usage
from runtimed.snapshots.trees import BLOCK, disk_usage, opened

log = logging.getLogger(__name__)

# How clients of containerd name a snapshot that they make for unpacking, if they do not label it.
_UNPACK_KEY = re.compile(r"(^|/)extract-\S+ sha256:[0-9a-f]{64}$")

_ERASERS = 4  # threads that delete what snapshots are made of

_PARAMETERS = Path("/sys/module/overlay/parameters")


class OverlaySnapshotter:
    """A directory or an EROFS file per snapshot, stacked by the kernel."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The ``[snapshotters.overlayfs]`` table."""

        mount_options: tuple[str, ...] = ()  # added to every overlay mount
        # A layer that is unpacked becomes one EROFS file, or is extracted to a directory; "auto" is "erofs" where the
        # kernel can mount such a file. What there is already is used either way.
        layers: Literal["auto", "erofs", "directories"] = "auto"

    def __init__(self, root: Path, config: Config) -> None:
        """Open the snapshotter on *root*.

        Raises:
            NotSupported: overlayfs does not work on *root*'s file system, or not for this user; or layers are to be
                EROFS files, which does not work there.
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
                self._layers = Layers(root, self._dirs)
                with self._dirs.scratch() as probe:
                    _check_supported(root, probe)
                self._takes_files = self._try_files(config)
                for id in self._records.ids(Kind.ACTIVE):
                    self._layers.roll_back(id, self._upper(id))
                self._layers.show_all(self._records.needed())
                self.capabilities = ("remap-ids",) if self._try_mapping() else ()
                # After the first mount, which loads the kernel's module if need be.
                self._options = (*_needed_options(), *config.mount_options)
            except BaseException:
                self._records.close()
                raise

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        return self._mounts(self._create(Kind.ACTIVE, key, parent, labels), _maps(labels))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        return self._mounts(self._create(Kind.VIEW, key, parent, labels), _maps(labels))

    def mounts(self, key: str) -> Mounts:
        return self._mounts(self._records.mountable(key), _maps(self._records.info(key).labels))

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        id = self._records.committable(name, key).id
        upper = self._upper(id)
        with os_errors(f"snapshot {key!r}"):
            is_layer = self._layers.is_all_of(id, upper)
            if not is_layer:  # which is on disk
                with opened(self._root) as fd:
                    syncfs(fd)
            usage = self._layers.usage(id) if is_layer else self._usage(id)
            with self._records.locked():
                try:
                    with self._records.writing():
                        self._records.commit(name, key, labels, usage)
                        self._layers.commit(id, upper, is_all=is_layer)
                except BaseException:
                    self._layers.roll_back(id, upper)
                    raise
        self._dirs.discard(self._work(id))

    def check(self, name: str) -> None:
        id = self._records.get(name).id
        layer, upper = self._layers.committed(id), self._upper(id)
        with os_errors(f"snapshot {name!r}"):
            found = disk_usage(upper) if upper.is_dir() else None
            if layer.exists():
                there = found or Usage(0, 0)
                found = Usage(there.size + layer.stat().st_blocks * BLOCK, there.inodes + 1)
            self._records.check_usage(name, found)

    def replace(self, name: str, key: str) -> None:
        old, new = self._records.replaceable(name, key)
        upper = self._upper(new.id)
        with os_errors(f"snapshot {name!r}"):
            is_layer = self._layers.is_all_of(new.id, upper)
            with opened(self._root) as fd:
                syncfs(fd)
            usage = self._layers.usage(new.id) if is_layer else self._usage(new.id)
            with self._records.locked():
                self._layers.hide(new.id)
                self._layers.hide(old.id)
                self._layers.commit(new.id, upper, is_all=is_layer)
                self._dirs.replace(old.id, new.id)
                with self._records.writing():
                    self._records.replace(name, key, usage)
        self._dirs.discard(self._work(old.id))
        self._dirs.discard(self._dirs.path(new.id))

    def remove(self, key: str) -> None:
        self._dirs.refuse_mounted(self._records.get(key).id, key)
        with self._records.writing():
            id = self._records.remove(key)
        # After the transaction: a key that is gone must not come back because its directory was slow or failed to go.
        self._layers.hide(id)
        self._dirs.discard(self._dirs.path(id))

    def remove_many(self, keys: Sequence[str]) -> set[str]:
        refused: set[str] = set()
        gone: list[str] = []
        for key in keys:
            try:
                self._dirs.refuse_mounted(self._records.get(key).id, key)
            except NotFound:
                continue
            except FailedPrecondition:
                refused.add(key)
        with self._records.writing():  # one sync for all
            for key in keys:
                if key not in refused:
                    try:
                        gone.append(self._records.remove(key))
                    except NotFound:
                        continue
                    except FailedPrecondition:
                        refused.add(key)
        for id in gone:
            self._layers.hide(id)
        # What takes time is the kernel's giving back of memory and blocks.
        with ThreadPoolExecutor(_ERASERS, thread_name_prefix="erase") as threads:
            list(threads.map(lambda id: self._dirs.discard(self._dirs.path(id)), gone))
        return refused

    def stat(self, key: str) -> Info:
        return self._records.info(key)

    def update(self, key: str, labels: Mapping[str, str]) -> Info:
        return self._records.update(key, labels)

    def usage(self, key: str) -> Usage:
        recorded = self._records.recorded_usage(key)
        if recorded is not None:
            return recorded
        with os_errors(f"snapshot {key!r}"):
            return self._usage(self._records.get(key).id)

    def cleanup(self) -> None:
        with os_errors("snapshot directories"):
            with self._records.locked():
                self._layers.hide_all(but=self._records.needed())
            self._dirs.cleanup()

    def close(self) -> None:
        """Let go of everything; a layer stays mounted if a container runs on it, so that the next start shares it."""
        with self._records.locked():
            self._layers.hide_all(but=self._layers.in_use())
        self._records.close()

    def list(self) -> Iterator[Info]:
        return self._records.list()

    def layer_target(self, mounts: Sequence[Mount]) -> Path | None:
        id = self._id_of(mounts)
        with self._records.locked():
            info = self._records.active(id) if id and self._takes_files else None
            if info is None or not (SNAPSHOT_REF in info.labels or _UNPACK_KEY.search(info.name)):
                return None
            with os_errors(f"snapshot {info.name!r}"):
                unpacked = self._layers.unpacked(id)
                return unpacked if is_empty(self._upper(id)) and not unpacked.exists() else None

    @property
    def layer_directory(self) -> Path | None:
        return self._dirs.new if self._takes_files else None

    def layer_files(self) -> Mapping[str, Path]:
        return {
            name: file for name, id in self._records.names().items() if (file := self._layers.committed(id)).exists()
        }

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        maps = _maps(labels)
        if maps and not self.capabilities:
            raise FailedPrecondition(f"snapshot {key!r}: this kernel or file system cannot map the IDs of layers")
        # The directory gets its place last, so that whatever is in `snapshots` is either whole or unknown.
        with os_errors(f"snapshot {key!r}"), self._dirs.making() as fresh:
            upper = fresh.path / "fs"
            upper.mkdir()
            upper.chmod(0o755)  # whatever the umask
            if kind is Kind.ACTIVE:
                (fresh.path / "work").mkdir(mode=0o711)
            with self._records.writing():
                snapshot = self._records.create(kind, key, parent, labels)
                if snapshot.parent_ids:
                    # The root of the merged tree is the upperdir's; the others' do not show.
                    look_like(upper, self._lowers(snapshot.parent_ids)[0].stat())
                if maps:
                    found = upper.stat()
                    os.chown(upper, _shown(found.st_uid, maps[0]), _shown(found.st_gid, maps[1]))
                self._dirs.place(fresh, snapshot.id)
        return snapshot

    def _mounts(self, snapshot: Snapshot, maps: tuple[str, str] | None) -> Mounts:
        with self._records.locked(), os_errors("layers"):
            own = self._layers.show_unpacked(snapshot.id) if snapshot.kind is Kind.ACTIVE else None
            lower = [*([own] if own else []), *self._lowers(snapshot.parent_ids)]
        upper = str(self._upper(snapshot.id))
        match snapshot.kind, lower:
            case Kind.ACTIVE, []:
                return [_bind(upper, "rw")]
            case Kind.VIEW, []:
                return [_bind(upper, "ro")]
            case Kind.VIEW, [only]:  # overlayfs needs an upperdir or two lowerdirs
                return [_bind(str(only), "ro", *_options(maps))]
        options = [*self._options, *_options(maps)]
        if any(self._layers.holds(path) for path in lower):
            options.insert(0, "xino=on")
        if snapshot.kind is Kind.ACTIVE:
            options += [f"workdir={self._work(snapshot.id)}", f"upperdir={upper}"]
        options.append(f"lowerdir={':'.join(map(str, lower))}")
        return [Mount("overlay", "overlay", options=tuple(options))]

    def _lowers(self, ids: Iterable[str]) -> tuple[Path, ...]:
        """Return the directories that show the committed layers *ids*; those that are files are mounted."""
        lowers = []
        for id in ids:
            layer, directory = self._layers.show(id), self._upper(id)
            if layer is None:
                lowers.append(directory)
            else:
                lowers += [directory, layer] if directory.exists() else [layer]
        return tuple(lowers)

    def _usage(self, id: str) -> Usage:
        """Measure an active snapshot."""
        changes, layer = disk_usage(self._upper(id)), self._layers.usage(id)
        return Usage(changes.size + layer.size, changes.inodes + layer.inodes)

    def _try_files(self, config: Config) -> bool:
        if config.layers == "directories":
            return False
        try:
            with self._dirs.scratch() as probe:
                check_supported(probe)
        except (OSError, RuntimedError) as exc:
            if config.layers == "erofs":
                raise NotSupported(
                    f'layers = "erofs": the kernel mounts no EROFS file on {str(self._root)!r} ({exc}): it takes Linux'
                    ' 6.12, and a disk file system; or set layers = "directories"'
                ) from exc
            log.info("layers are extracted", extra={"snapshotter": "overlayfs", "reason": str(exc)})
            return False
        return True

    def _try_mapping(self) -> bool:
        """Say whether layers, be they files or directories, can be mounted with other owners."""
        try:
            with self._dirs.scratch() as probe:
                check_mapping(probe, with_file=self._takes_files)
        except (OSError, RuntimedError) as exc:
            log.info("IDs of layers cannot be mapped", extra={"snapshotter": "overlayfs", "reason": str(exc)})
            return False
        return True

    def _id_of(self, mounts: Sequence[Mount]) -> str:
        """Return the id of the active snapshot whose mounts these may be, "" for others."""
        match mounts:
            case [Mount(type="bind", source=upper, target="")]:
                pass
            case [Mount(type="overlay", target="", options=options)]:
                upper = next((option[9:] for option in options if option.startswith("upperdir=")), "")
            case _:
                return ""
        id = Path(upper).parent.name
        return id if upper and Path(upper) == self._upper(id) else ""

    def _upper(self, id: str) -> Path:
        return self._dirs.path(id) / "fs"

    def _work(self, id: str) -> Path:
        return self._dirs.path(id) / "work"


def _bind(source: str, mode: str, *others: str) -> Mount:
    return Mount("bind", source, options=(*others, mode, "rbind"))


def _maps(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the maps of user and group IDs that a snapshot's labels ask for. Raises InvalidArgument."""
    uids, gids = labels.get(SNAPSHOT_UID_MAPPING, ""), labels.get(SNAPSHOT_GID_MAPPING, "")
    if not uids and not gids:
        return None
    try:
        idmap.parse(uids)
        idmap.parse(gids)
    except ValueError as exc:
        raise InvalidArgument(f"labels {SNAPSHOT_UID_MAPPING} and {SNAPSHOT_GID_MAPPING}: {exc}") from None
    return uids, gids


def _options(maps: tuple[str, str] | None) -> tuple[str, ...]:
    return (f"uidmap={maps[0]}", f"gidmap={maps[1]}") if maps else ()


def _shown(id: int, map: str) -> int:
    try:
        return idmap.shown(id, idmap.parse(map))
    except ValueError as exc:
        raise InvalidArgument(f"the root directory's owner cannot be mapped: {exc}") from None


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
