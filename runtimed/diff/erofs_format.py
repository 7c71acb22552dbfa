"""EROFS on disk, as far as layers use it (Linux: fs/erofs/erofs_fs.h). Everything is little endian.

docs/erofs.md draws the file as a whole.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from runtimed.errors import DataLoss

BLOCK_BITS = 9  # a tar's own blocks, so that an inode can point at a file's data in it
BLOCK = 1 << BLOCK_BITS
MAX_BLOCKS = 2**32 - 2  # addresses are 32 bits, the last one is no address

SUPER_OFFSET = 1024
SUPER_SIZE = 128
HEADER_SIZE = 4096  # the tar follows

_MAGIC = 0xE0F5E1E2
_CHECKSUMMED = 0x1  # feature_compat: the superblock has a checksum
_MTIME = 0x2  # feature_compat: the times of inodes are of their contents
# magic, checksum, compat, blkszbits, extslots, root_nid, inos, build_time, build_time_nsec, blocks, meta_blkaddr,
# xattr_blkaddr, uuid, volume, incompat, and what stays zero
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sI44x")

# format, xattr_icount, mode, size, u, ino, uid, gid, mtime, mtime_nsec, nlink
INODE = struct.Struct("<HHH2xQIIIIqII16x")
INODE_SIZE = 64
SLOT = 32  # an inode's number (nid) counts these from meta_blkaddr on
FLAT_PLAIN = 1 | 0 << 1  # extended; data in consecutive blocks
FLAT_INLINE = 1 | 2 << 1  # extended; the last, partial block of data follows inode and attributes

DIRENT = struct.Struct("<QHBB")  # nid, offset of the name in the block, type, 0
DIRENT_SIZE = 12

# Types of directory entries
FILE, DIRECTORY, CHARACTER_DEVICE, BLOCK_DEVICE, FIFO, SOCKET, SYMLINK = range(1, 8)

_XATTR_HEADER = bytes(12)
_XATTR_ENTRY = struct.Struct("<BBH")  # length of the name, index, length of the value
_XATTR_INDEXES = {
    b"user.": 1,
    b"system.posix_acl_access": 2,
    b"system.posix_acl_default": 3,
    b"trusted.": 4,
    b"security.": 6,
}
_XATTR_PREFIXES = {index: prefix for prefix, index in _XATTR_INDEXES.items()}
MAX_XATTR_SIZE = 2**16 - 1  # of a value

# Our own, between superblock and tar: what a check needs and EROFS has no place for.
# magic, version, size of the tar in bytes, start of the metadata, its size, its crc32; a crc32 of the fields before
_OWN = struct.Struct("<16sIQQQI")
_OWN_CRC = struct.Struct("<I")
OWN_OFFSET = 2048
_OWN_MAGIC = b"runtimed layer\0\0"
_OWN_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """Where an image's parts are, in bytes: the tar from HEADER_SIZE on, the metadata, and the crc32 of the latter."""

    tar_size: int
    start: int
    size: int
    crc: int


class DoesNotFit(Exception):
    """EROFS cannot hold something, which the message names."""


def pack_super(*, root_nid: int, inodes: int, blocks: int, start: int, uuid: bytes) -> bytes:
    """Return the superblock, padded to the bytes that its checksum covers. *start* of the metadata is in bytes."""
    fields = (_CHECKSUMMED | _MTIME, BLOCK_BITS, 0, root_nid, inodes, 0, 0, blocks, start >> BLOCK_BITS, 0, uuid)
    padding = bytes(BLOCK - SUPER_SIZE)
    block = _SUPER.pack(_MAGIC, 0, *fields, b"", 0) + padding
    return _SUPER.pack(_MAGIC, crc32c(block), *fields, b"", 0) + padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Super:
    """What a superblock says."""

    root_nid: int
    inodes: int
    blocks: int
    start: int  # of the metadata, in bytes
    uuid: bytes


def unpack_super(block: bytes) -> Super:
    """Return what the superblock at the beginning of *block* says.

    Raises:
        DataLoss: it is not one of ours, or damaged.
    """
    if len(block) != BLOCK:
        raise DataLoss("no superblock: the image is cut off")
    fields = _SUPER.unpack_from(block)
    magic, checksum, compat, bits, extslots, root_nid, inodes, _, _, blocks, start, _, uuid, _, incompat = fields
    if magic != _MAGIC:
        raise DataLoss("no superblock: the image was never finished, or is no image")
    if crc32c(block[:4] + bytes(4) + block[8:]) != checksum:
        raise DataLoss("the superblock does not match its checksum")
    if (compat, bits, extslots, incompat) != (_CHECKSUMMED | _MTIME, BLOCK_BITS, 0, 0):
        raise DataLoss("the superblock has features that no layer of ours uses")
    return Super(root_nid=root_nid, inodes=inodes, blocks=blocks, start=start << BLOCK_BITS, uuid=uuid)


def pack_extent(extent: Extent) -> bytes:
    """Return our own header."""
    fields = _OWN.pack(_OWN_MAGIC, _OWN_VERSION, extent.tar_size, extent.start, extent.size, extent.crc)
    return fields + _OWN_CRC.pack(crc32c(fields))


def unpack_extent(header: bytes) -> Extent:
    """Return what our own header says. Raises DataLoss."""
    if len(header) < _OWN.size + _OWN_CRC.size:
        raise DataLoss("no header: the image is cut off")
    magic, version, tar_size, start, size, crc = _OWN.unpack_from(header)
    if (magic, version) != (_OWN_MAGIC, _OWN_VERSION):
        raise DataLoss("no header of a layer: written by something else")
    if _OWN_CRC.unpack_from(header, _OWN.size)[0] != crc32c(header[: _OWN.size]):
        raise DataLoss("the header does not match its checksum")
    return Extent(tar_size=tar_size, start=start, size=size, crc=crc)


def pack_rdev(major: int, minor: int) -> int:
    """Return a device's number as an inode has it (Linux: new_encode_dev)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def unpack_rdev(number: int) -> tuple[int, int]:
    """Return major and minor."""
    return (number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00)


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Return *xattrs* as they follow an inode; b"" for none. Raises DoesNotFit."""
    if not xattrs:
        return b""
    parts = [_XATTR_HEADER]
    for name, value in sorted(xattrs.items()):
        prefix = name if name in _XATTR_INDEXES else name[: name.index(b".") + 1]
        suffix = name[len(prefix) :]
        if len(value) > MAX_XATTR_SIZE:
            raise DoesNotFit(f"an attribute of {len(value)} bytes")
        parts += [_XATTR_ENTRY.pack(len(suffix), _XATTR_INDEXES[prefix], len(value)), suffix, value]
        parts.append(bytes(-(len(suffix) + len(value)) % 4))
    packed = b"".join(parts)
    if xattr_count(packed) > 2**16 - 1:
        raise DoesNotFit(f"attributes of {len(packed)} bytes")
    return packed


def xattr_count(packed: bytes) -> int:
    """Return the xattr_icount of an inode with the attributes *packed*."""
    return 1 + (len(packed) - len(_XATTR_HEADER)) // 4 if packed else 0


def xattrs_size(count: int) -> int:
    """Return how many bytes of attributes follow an inode whose xattr_icount is *count*."""
    return len(_XATTR_HEADER) + 4 * (count - 1) if count else 0


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Return the attributes in *packed*. Raises DataLoss."""
    found = {}
    pos = len(_XATTR_HEADER)
    while pos < len(packed):
        start = pos + _XATTR_ENTRY.size
        if start > len(packed):
            raise DataLoss("an extended attribute is cut off")
        name_length, index, value_length = _XATTR_ENTRY.unpack_from(packed, pos)
        end = start + name_length + value_length
        if index not in _XATTR_PREFIXES or end > len(packed):
            raise DataLoss("an extended attribute is malformed")
        found[_XATTR_PREFIXES[index] + packed[start : start + name_length]] = packed[start + name_length : end]
        pos = end + -end % 4
    return found


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum as EROFS has it: begun with ones, not inverted at the end. For small data."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


@cache
def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table
