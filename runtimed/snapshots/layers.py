"""Layers that are EROFS files, each mounted once for the whole host.

Below the snapshotter's root::

    snapshots/<id>/unpacked.erofs   of an active snapshot: the layer that was applied to it
    snapshots/<id>/layer.erofs      of a committed one: the same file; never changes
    layers/<id>                     where the file is mounted; there only while it is

Once, because each mount of a file has a page cache of its own. An overlay that names such a mount as a lowerdir holds
what is mounted itself, so unmounting it here costs the overlay nothing; and the file's space is free when the file is
unlinked and nobody has it mounted. A mount point goes with its mount: a lowerdir that is an empty directory would be
an image with a layer missing, one that is not there is an error. Removing it also ends copies of the mount in other
mount namespaces.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable, Set
from contextlib import ExitStack
from pathlib import Path

from runtimed.errors import DataLoss, FailedPrecondition, RuntimedError
from runtimed.failpoints import hit
from runtimed.linux.erofs import EMPTY, mount_file
from runtimed.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, move_mount, umount2
from runtimed.mounts import Mount, lowerdirs, mounted
from runtimed.snapshots.directories import Directories
from runtimed.snapshots.snapshotter import Usage
from runtimed.snapshots.trees import BLOCK, opened

log = logging.getLogger(__name__)


class Layers:
    """The layer files of the snapshots in *directories*, and their mounts. One thread at a time may call.

    What raises, raises OSError; and of a file that cannot be mounted FailedPrecondition, if this kernel mounts none, or
    DataLoss, if the file is damaged.
    """

    def __init__(self, root: Path, directories: Directories) -> None:
        """Mount below *root*/layers. What an earlier daemon left mounted there stays."""
        self._directories = directories
        self._root = root / "layers"
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._device = self._root.stat().st_dev

    def unpacked(self, id: str) -> Path:
        """Return where the layer file of the active snapshot *id* is, if it has one."""
        return self._directories.path(id) / "unpacked.erofs"

    def committed(self, id: str) -> Path:
        """Return where the layer file of the committed snapshot *id* is, if it has one."""
        return self._directories.path(id) / "layer.erofs"

    def show(self, id: str) -> Path | None:
        """Return where the layer of the committed snapshot *id* is mounted, now if it was not; None: it is no file."""
        return self._mount(id, self.committed(id))

    def show_unpacked(self, id: str) -> Path | None:
        """Like :meth:`show`, of an active snapshot."""
        return self._mount(id, self.unpacked(id))

    def show_all(self, ids: Iterable[str]) -> None:
        """Mount the layers of *ids*; one that cannot be mounted is logged, and raises when it is asked for."""
        for id in ids:
            try:
                if self.show(id) is None:
                    self.show_unpacked(id)
            except (OSError, RuntimedError) as exc:
                log.error("layer cannot be mounted", extra={"layer": id, "error": str(exc)})

    def hide(self, id: str) -> None:
        """Unmount the layer of *id*, if it is mounted, whoever uses it; if that fails, it is logged."""
        mountpoint = self._root / id
        try:
            if self._is_mounted(mountpoint):
                umount2(str(mountpoint), MNT_DETACH | UMOUNT_NOFOLLOW)
            mountpoint.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            log.warning("layer stays mounted", extra={"path": str(mountpoint), "error": str(exc)})

    def hide_all(self, *, but: Set[str]) -> None:
        """Unmount every layer but those of the ids in *but*."""
        for mountpoint in self._root.iterdir():
            if mountpoint.name not in but:
                self.hide(mountpoint.name)

    def in_use(self) -> set[str]:
        """Return the ids of the layers that are in an overlay, as this process sees them."""
        # Of deep stacks the kernel shows short paths, relative to nobody knows what.
        return {path.name for path in lowerdirs() if not path.is_absolute() or self.holds(path)}

    def holds(self, path: Path) -> bool:
        """Say whether *path* is where a layer is mounted."""
        return path.parent == self._root

    def usage(self, id: str) -> Usage:
        """Return what the layer file of the active snapshot *id* takes on disk."""
        try:
            return Usage(self.unpacked(id).stat().st_blocks * BLOCK, 1)
        except FileNotFoundError:
            return Usage(0, 0)

    def is_all_of(self, id: str, upper: Path) -> bool:
        """Say whether the active snapshot *id*, whose changes are in *upper*, is a layer file and nothing else."""
        if not self.unpacked(id).exists():
            return False
        root, found = _root_of(self.unpacked(id)), upper.stat()
        return is_empty(upper) and (root.st_mode, root.st_uid, root.st_gid) == (
            found.st_mode,
            found.st_uid,
            found.st_gid,
        )

    def commit(self, id: str, upper: Path, *, is_all: bool) -> None:
        """Give the layer file, if there is one, the name that it has in a committed snapshot; *upper* goes if *is_all*.

        Call within the transaction that commits *id*; if that fails, :meth:`roll_back` undoes this.
        """
        if self.unpacked(id).exists():
            hit("layer.begun")
            if is_all:
                upper.rmdir()
            hit("layer.alone")
            self.unpacked(id).rename(self.committed(id))
            hit("layer.named")
            with opened(self._directories.path(id)) as fd:
                os.fsync(fd)

    def roll_back(self, id: str, upper: Path) -> None:
        """Bring the active snapshot *id* to where it was before :meth:`commit`, also after a crash."""
        for image in (self.committed(id), self.unpacked(id)):
            if image.exists():
                if not upper.exists():
                    upper.mkdir()
                    look_like(upper, _root_of(image))
                image.rename(self.unpacked(id))

    def _mount(self, id: str, image: Path) -> Path | None:
        if not image.exists():
            return None
        mountpoint = self._root / id
        if not self._is_mounted(mountpoint):
            made = _mounted(image)
            try:
                mountpoint.mkdir(mode=0o700, exist_ok=True)
                hit("layer.mountpoint")
                with opened(mountpoint) as fd:
                    move_mount(made, fd)
            finally:
                os.close(made)
        return mountpoint

    def _is_mounted(self, mountpoint: Path) -> bool:
        try:
            return mountpoint.stat().st_dev != self._device
        except FileNotFoundError:
            return False


def check_supported(scratch: Path) -> None:
    """Try a layer that is a file, below an overlay, in the empty directory *scratch*.

    Raises OSError or RuntimedError, with what the kernel says.
    """
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    image = scratch / "empty.erofs"
    image.write_bytes(EMPTY)
    made = mount_file(str(image))
    try:
        with opened(scratch / "lower") as fd:
            move_mount(made, fd)
    finally:
        os.close(made)
    try:
        options = (f"lowerdir={scratch}/lower", f"upperdir={scratch}/upper", f"workdir={scratch}/work", "xino=on")
        with mounted([Mount("overlay", "overlay", options=options)], scratch / "merged") as merged:
            (merged / "file").touch()
    finally:
        umount2(str(scratch / "lower"), MNT_DETACH | UMOUNT_NOFOLLOW)


def check_mapping(scratch: Path, *, with_file: bool) -> None:
    """Try an overlay whose layers show other owners, a directory and a file, in the empty directory *scratch*.

    Raises OSError or RuntimedError, with what the kernel says.
    """
    for name in ("directory", "lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    lowers = [scratch / "directory"]
    with ExitStack() as held:
        if with_file:
            image = scratch / "empty.erofs"
            image.write_bytes(EMPTY)
            made = mount_file(str(image))
            held.callback(os.close, made)
            with opened(scratch / "lower") as fd:
                move_mount(made, fd)
            held.callback(umount2, str(scratch / "lower"), MNT_DETACH | UMOUNT_NOFOLLOW)
            lowers.append(scratch / "lower")
        options = (
            *("uidmap=0:1000:1", "gidmap=0:1000:1"),
            f"workdir={scratch}/work",
            f"upperdir={scratch}/upper",
            f"lowerdir={':'.join(map(str, lowers))}",
        )
        with mounted([Mount("overlay", "overlay", options=options)], scratch / "merged"):
            pass


def look_like(directory: Path, other: os.stat_result) -> None:
    """Give *directory* the owner and mode of *other*."""
    os.chown(directory, other.st_uid, other.st_gid)
    directory.chmod(stat.S_IMODE(other.st_mode))


def is_empty(directory: Path) -> bool:
    """Say whether there is nothing in *directory*."""
    with os.scandir(directory) as entries:
        return next(entries, None) is None


def _root_of(image: Path) -> os.stat_result:
    """Have the kernel look at *image*, and return what its root directory is."""
    made = _mounted(image)
    try:
        return os.fstat(made)
    finally:
        os.close(made)


def _mounted(image: Path) -> int:
    try:
        return mount_file(str(image))
    except OSError as exc:
        subject = f"layer {str(image)!r}"
        if exc.errno in {errno.EINVAL, errno.EUCLEAN, errno.EIO, errno.ENODATA}:
            raise DataLoss(f"{subject} is damaged ({exc.strerror}): remove its image and pull it again") from exc
        if exc.errno in {errno.ENOTBLK, errno.ENODEV, errno.ENOSYS}:
            raise FailedPrecondition(
                f"{subject} cannot be mounted by this kernel ({exc.strerror}): boot the one that it was made with,"
                " or remove its image and pull it again"
            ) from exc
        raise
