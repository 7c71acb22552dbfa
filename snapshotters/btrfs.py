"""The btrfs snapshotter: every snapshot is a subvolume that shares with its parent all that has not changed.

Making one takes a moment whatever it holds, and deleting one too: the kernel frees the space in the background. The
mounts are bind mounts of the subvolumes. A subvolume that is made inside a snapshot goes with it, but its children see
an empty directory there, as btrfs has it.
"""

import errno
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runtimed.linux import btrfs
from runtimed.linux.syncfs import syncfs
from runtimed.snapshots.snapshotter import NotSupported, Usage
from runtimed.snapshots.trees import empty, opened
from runtimed.snapshots.whole import WholeTrees

# linux/btrfs_tree.h: of an inode, the transaction that made it; of an extent of a file, that, the length in memory, how
# it is stored, and where.
_INODE = struct.Struct("<Q")
_EXTENT = struct.Struct("<QQ4xB")
_PLACE = struct.Struct("<21xQQ")
_INLINE = 0


class BtrfsSnapshotter(WholeTrees):
    """One subvolume per snapshot, a snapshot of its parent's to begin with."""

    capabilities: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The ``[snapshotters.btrfs]`` table, which has no keys."""

    def __init__(self, root: Path, config: Config) -> None:
        """Open the snapshotter on *root*. Raises NotSupported: it is not on btrfs, or the kernel is before 5.7."""
        super().__init__(root)

    def _check_supported(self) -> None:
        """Make and delete a subvolume, for which this is the place: nothing else shows that both can be done."""
        probe = "probe"
        try:
            with opened(self._root) as fd:
                with suppress(FileExistsError):  # of a start that was cut short
                    btrfs.create_subvolume(fd, probe)
                with opened(self._root / probe) as made:
                    btrfs.destroy_subvolume(fd, btrfs.subvolume(made)[0])
        except OSError as exc:
            if exc.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM}:
                raise
            raise NotSupported(f"btrfs does not work on {str(self._root)!r}: {exc.strerror}") from exc

    def _make(self, parent: Path | None, path: Path) -> None:
        with opened(path.parent) as directory:
            if parent:
                with opened(parent) as source:
                    btrfs.create_snapshot(source, directory, path.name)
            else:
                btrfs.create_subvolume(directory, path.name)
                path.chmod(0o755)  # whatever the umask

    def _measure(self, path: Path) -> Usage:
        """Count what was written since the snapshot was made of its parent.

        Extents that are shared with others, by reflink, count as if they were its own.
        """
        size, inodes = 0, 1  # the root
        places = set()
        with opened(path) as fd:
            syncfs(fd)
            id, made = btrfs.subvolume(fd)
            for item in btrfs.search(fd, id, after=made):
                if item.type == btrfs.INODE_ITEM_KEY:
                    (since,) = _INODE.unpack_from(item.data)
                    inodes += since > made and item.objectid > btrfs.FIRST_FREE_OBJECTID
                elif item.type == btrfs.EXTENT_DATA_KEY:
                    since, length, kind = _EXTENT.unpack_from(item.data)
                    if since <= made:
                        continue
                    if kind == _INLINE:
                        size += length
                        continue
                    place, taken = _PLACE.unpack_from(item.data)
                    if place and place not in places:  # 0 is a hole
                        places.add(place)
                        size += taken
        return Usage(size, inodes)

    def _erase(self, directory: Path) -> None:
        with opened(directory) as fd:
            for path in directory.iterdir():
                if path.lstat().st_ino == btrfs.FIRST_FREE_OBJECTID:
                    with opened(path) as made:
                        id, _ = btrfs.subvolume(made)
                    for below in _with_those_below(fd, id):
                        btrfs.destroy_subvolume(fd, below)
        empty(directory)


def _with_those_below(fd: int, id: int) -> Iterator[int]:
    """Yield the subvolume *id* and those that somebody made within it, children first."""
    found = [id]
    for one in found:  # grows while it is gone through
        items = btrfs.search(fd, btrfs.ROOT_TREE, objectid=one, type=btrfs.ROOT_REF_KEY)
        found += [item.offset for item in items]
    return reversed(found)
