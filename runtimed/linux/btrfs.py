"""btrfs's own calls (linux/btrfs.h): subvolumes, snapshots of them, and the search in its trees.

A subvolume is a directory with inode number 256, and a tree of its own whose number is its id. Everything raises
OSError; ENOTTY is another file system. Needs CAP_SYS_ADMIN.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

ROOT_TREE = 1  # the tree of trees
FIRST_FREE_OBJECTID = 256  # the number of the root directory in every subvolume
INODE_ITEM_KEY = 1
EXTENT_DATA_KEY = 108
ROOT_REF_KEY = 156

_SUBVOL_CREATE = 0x5000940E
_SNAP_CREATE_V2 = 0x50009417
_SNAP_DESTROY_V2 = 0x5000943F
_GET_SUBVOL_INFO = 0x81F8943C
_TREE_SEARCH_V2 = 0xC0709411

_SPEC_BY_ID = 1 << 4
_VOL_ARGS = struct.Struct("<q4088s")
_VOL_ARGS_V2 = struct.Struct("<qQQ32x4040s")
_INFO_SIZE = 504
_SEARCH = struct.Struct("<7Q4I32xQ")  # the key, then the size of the buffer after it
_FOUND = struct.Struct("<QQQII")
_BUFFER = 65536
_MAX = (1 << 64) - 1


class Item(NamedTuple):
    """An item of a tree: its key, and what is stored under it."""

    objectid: int
    type: int
    offset: int
    data: bytes


def create_subvolume(directory: int, name: str) -> None:
    """Make the empty subvolume *name* in the open *directory*, with mode 0777 less the umask."""
    _call(directory, _SUBVOL_CREATE, _VOL_ARGS.pack(0, os.fsencode(name)))


def create_snapshot(source: int, directory: int, name: str) -> None:
    """Make *name* in *directory* a writable subvolume that shares all that the subvolume *source* holds."""
    _call(directory, _SNAP_CREATE_V2, _VOL_ARGS_V2.pack(source, 0, 0, os.fsencode(name)))


def destroy_subvolume(fd: int, id: int) -> None:
    """Delete the subvolume *id* of the file system of *fd*, whatever is in it; ENOTEMPTY: another subvolume is.

    Its space is freed by the kernel, in the background. Since Linux 5.7.
    """
    _call(fd, _SNAP_DESTROY_V2, _VOL_ARGS_V2.pack(0, 0, _SPEC_BY_ID, id.to_bytes(8, "little")))


def subvolume(fd: int) -> tuple[int, int]:
    """Return the id of the subvolume that *fd* lies in, and the transaction that made it."""
    info = bytearray(_INFO_SIZE)
    fcntl.ioctl(fd, _GET_SUBVOL_INFO, info)
    (id,) = struct.unpack_from("<Q", info, 0)
    (made,) = struct.unpack_from("<Q", info, 352)  # otransid
    return id, made


def search(
    fd: int, tree: int, *, objectid: int | None = None, type: int | None = None, after: int = 0
) -> Iterator[Item]:
    """Yield the items of *tree*, of one *objectid* and *type* or of all, in nodes written *after* a transaction.

    Nodes, so that older items are among them. What is not on disk yet may be missing: syncfs(2) first.
    """
    first = (objectid or 0, type or 0, 0)
    last = (_MAX if objectid is None else objectid, 0xFF if type is None else type, _MAX)
    while True:
        buffer = bytearray(_SEARCH.size + _BUFFER)
        key = (tree, first[0], last[0], first[2], last[2], after + 1, _MAX, first[1], last[1], 0xFFFFFFFF, 0)
        _SEARCH.pack_into(buffer, 0, *key, _BUFFER)
        fcntl.ioctl(fd, _TREE_SEARCH_V2, buffer)
        (count,) = struct.unpack_from("<I", buffer, 64)
        if not count:
            return
        at = _SEARCH.size
        for _ in range(count):
            _, id, offset, kind, length = _FOUND.unpack_from(buffer, at)
            at += _FOUND.size
            yield Item(id, kind, offset, bytes(buffer[at : at + length]))
            at += length
        first = _next(id, kind, offset)


def _call(fd: int, request: int, arguments: bytes) -> None:
    fcntl.ioctl(fd, request, bytearray(arguments))  # Python takes no more than 1024 bytes that it must not change


def _next(objectid: int, type: int, offset: int) -> tuple[int, int, int]:
    """Return the key after this one: keys are compared number by number."""
    if offset < _MAX:
        return objectid, type, offset + 1
    if type < 0xFF:
        return objectid, type + 1, 0
    return objectid + 1, 0, 0
