"""Mounts of EROFS files: without a loop device, the file system reads the file (Linux 6.12 and later)."""

import os
import struct

from runtimed.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MOUNT_ATTR_RDONLY,
    fsconfig,
    fsmount,
    fsopen,
)

_LONGEST = 255  # bytes of a string that fsconfig(2) takes

# For EMPTY; Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h have the format.
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_AT = 1024
_SUPERBLOCK_SIZE = 128
_BLOCK_BITS = 9
_NID_UNIT = 32  # bytes
_FLAT_INLINE = 2
_EXTENDED = 1
_DIRECTORY = 2


def _empty() -> bytes:
    nid = _SUPERBLOCK_SIZE // _NID_UNIT  # from the block that the superblock is in
    size = 4096
    superblock = struct.pack(
        "<IIIBBHQQIIII16x16xI", _MAGIC, 0, 0, _BLOCK_BITS, 0, nid, 1, 0, 0, size >> _BLOCK_BITS,
        _SUPERBLOCK_AT >> _BLOCK_BITS, 0, 0,
    )  # fmt: skip
    entries = struct.pack("<QHBxQHBx", nid, 24, _DIRECTORY, nid, 25, _DIRECTORY) + b"..."  # "." and ".."
    form = _EXTENDED | _FLAT_INLINE << 1
    inode = struct.pack("<HHHHQIIIIQII16x", form, 0, 0o40755, 0, len(entries), 0, 1, 0, 0, 0, 0, 2)
    image = bytes(_SUPERBLOCK_AT) + superblock.ljust(_SUPERBLOCK_SIZE, b"\0") + inode + entries
    return image.ljust(size, b"\0")


EMPTY = _empty()
"""The smallest EROFS file: a root directory, in blocks of 512 bytes. To find out whether the kernel takes one."""


def mount_file(image: str) -> int:
    """Return the fd of a detached, read-only mount of the EROFS file *image*; the caller closes it.

    Each call makes a file system of its own, with a page cache of its own.

    Raises OSError: ENOTBLK where the kernel takes block devices only, or *image* lies on a file system that cannot back
    another (tmpfs, overlayfs); ENODEV without EROFS; EINVAL, EUCLEAN for a file that is none.
    """
    file = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fs = fsopen("erofs")
        try:
            source = image if len(os.fsencode(image)) <= _LONGEST else f"/proc/self/fd/{file}"
            fsconfig(fs, FSCONFIG_SET_STRING, "source", source)
            fsconfig(fs, FSCONFIG_SET_FLAG, "ro")
            fsconfig(fs, FSCONFIG_CMD_CREATE)
            return fsmount(fs, MOUNT_ATTR_RDONLY)
        finally:
            os.close(fs)
    finally:
        os.close(file)
