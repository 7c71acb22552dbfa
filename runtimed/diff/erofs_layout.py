"""Where everything in an EROFS image goes: from a :class:`LayerTree` to the bytes after the tar.

The metadata has three parts: inodes with something behind them (directories, links, extended attributes), the root
first, whose number has 16 bits; all inodes by slot, so that a plain file's number needs no looking up; and blocks of
large directories and long links. What directories say takes two passes: the first finds the sizes and so the places.
"""

import hashlib
import os
import struct
import zlib
from array import array
from dataclasses import dataclass
from functools import cache

from runtimed.diff import erofs_format as fmt
from runtimed.diff.erofs_tree import Directory, Inodes, LayerTree

_ALIGNMENT = 4096  # of the metadata, for the page cache
_MARK_OPAQUE = {b"trusted.overlay.opaque": b"y"}
_FIRST = fmt.INODE_SIZE  # offset of the first inode: programs take number 0 for no inode at all

# Fields of an inode in a slot
_FORMAT, _ICOUNT, _SIZE, _DATA, _NLINK = (struct.Struct(code) for code in ("<H", "<H", "<Q", "<I", "<I"))
_FORMAT_AT, _ICOUNT_AT, _SIZE_AT, _DATA_AT, _NLINK_AT = 0, 2, 8, 16, 44


def size_of(inodes: Inodes, slot: int) -> int:
    """Return the size in bytes that the inode in *slot* says."""
    size: int = _SIZE.unpack_from(inodes.packed, slot * fmt.INODE_SIZE + _SIZE_AT)[0]
    return size


def set_data(inodes: Inodes, slot: int, block: int) -> None:
    """Have the inode in *slot* say that its data begins at *block*."""
    _DATA.pack_into(inodes.packed, slot * fmt.INODE_SIZE + _DATA_AT, block)


def write(image: int, inodes: Inodes, tree: LayerTree, end: int, tar_size: int) -> tuple[int, int]:
    """Write the index of *tree* after *end* of the image, then the superblock.

    Return the image's size in bytes, and how many inodes it has.

    Raises:
        DoesNotFit: an image cannot hold it.
    """
    start = end + -end % _ALIGNMENT
    layout = _Layout(inodes, tree)
    parts = layout.pack(start)
    size = start + sum(map(len, parts))
    if size > fmt.MAX_BLOCKS * fmt.BLOCK:
        raise fmt.DoesNotFit("more than two terabytes")
    crc = 0
    hash_ = hashlib.sha256()
    offset = start
    for part in parts:
        view = memoryview(part)
        crc = zlib.crc32(view, crc)
        hash_.update(view)
        while view:
            written = os.pwrite(image, view, offset)
            view = view[written:]
            offset += written
    total = size + -size % _ALIGNMENT
    os.ftruncate(image, total)
    os.fdatasync(image)
    extent = fmt.Extent(tar_size=tar_size, start=start, size=size - start, crc=crc)
    os.pwrite(image, fmt.pack_extent(extent), fmt.OWN_OFFSET)
    super_ = fmt.pack_super(
        root_nid=tree.root.nid,
        inodes=layout.inode_count,
        blocks=total >> fmt.BLOCK_BITS,
        start=start,
        # overlayfs tells file systems apart by it; RFC 9562, version 8.
        uuid=_uuid8(hash_.digest()[:16]),
    )
    os.pwrite(image, super_, fmt.SUPER_OFFSET)
    return total, layout.inode_count


def _uuid8(value: bytes) -> bytes:
    return bytes((*value[:6], value[6] & 0x0F | 0x80, value[7], value[8] & 0x3F | 0x80, *value[9:]))


@dataclass(slots=True)
class _Placed:
    """A directory in its place: the names in each of its blocks, and where the blocks that are not inline begin."""

    directory: Directory
    names: list[list[bytes]]
    xattrs: bytes
    first_block: int  # of the blocks part
    is_inline: bool  # the last block is


class _Layout:
    """Finds a place for everything in the metadata, then packs it. Offsets are from its beginning, in bytes."""

    def __init__(self, inodes: Inodes, tree: LayerTree) -> None:
        self._inodes = inodes
        self._tree = tree
        self._end = _FIRST  # of the inodes with something behind them
        self._block_count = 0
        self._directories: list[_Placed] = []
        self._others: dict[int, tuple[int, bytes]] = {}  # slot to offset and attributes
        self._long_links: dict[int, int] = {}  # slot to first block
        self._names: dict[int, int] = {}  # slot to how many names it has, for those that may have several
        # Slots of children that want more than the number of their slot.
        self._special = {*inodes.links, *inodes.xattrs, *tree.linked, tree.whiteout}
        self._shared = {*tree.linked, tree.whiteout}
        self._nids = array("Q")
        self.inode_count = 0

    def pack(self, start: int) -> list[bytes | bytearray]:
        """Return the metadata in parts; *start* is where it goes."""
        self._place()
        table = self._end + -self._end % fmt.INODE_SIZE
        end = table + len(self._inodes.packed)
        blocks_start = end + -end % fmt.BLOCK
        blocks = bytearray(self._block_count * fmt.BLOCK)
        head = bytearray(table)
        first = table // fmt.SLOT
        self._nids = array("Q", range(first, first + 2 * len(self._inodes.types), 2))
        block = (start + blocks_start) >> fmt.BLOCK_BITS
        self._pack_others(head, blocks, block)
        for placed in self._directories:
            self._pack_directory(placed, head, blocks, block)
        return [head, self._inodes.packed, bytes(blocks_start - end), blocks]

    def _place(self) -> None:
        pending = [self._tree.root]
        while pending:
            directory = pending.pop()
            children = directory.children
            names = sorted((b".", b"..", *children))
            self._place_directory(directory, names)
            directories = []
            for name in names:
                node = children.get(name)
                if isinstance(node, Directory):
                    directories.append(node)
                elif node in self._special:
                    self._place_other(node)
            directories.reverse()
            pending += directories
            self.inode_count += 1 + len(children) - len(directories)
        self.inode_count -= sum(count - 1 for count in self._names.values())

    def _place_directory(self, directory: Directory, names: list[bytes]) -> None:
        xattrs = self._inodes.xattrs.get(directory.inode, {})
        if directory.is_opaque:
            xattrs = xattrs | _MARK_OPAQUE
        packed = fmt.pack_xattrs(xattrs)
        blocks = _split(names)
        last = _size_of_block(blocks[-1])
        size = fmt.INODE_SIZE + len(packed)
        is_inline = size + last <= fmt.BLOCK
        directory.nid = self._allot(size + last if is_inline else size) // fmt.SLOT
        self._directories.append(_Placed(directory, blocks, packed, self._block_count, is_inline))
        self._block_count += len(blocks) - is_inline

    def _place_other(self, slot: int) -> None:
        if slot in self._shared:
            count = self._names[slot] = self._names.get(slot, 0) + 1
            if count > 1:
                return
        inodes = self._inodes
        size = fmt.INODE_SIZE
        if inodes.types[slot] == fmt.SYMLINK:
            length = len(inodes.links[slot])
            if size + length <= fmt.BLOCK:
                self._others[slot] = self._allot(size + length), b""
            else:
                self._long_links[slot] = self._block_count
                self._block_count += -(-length // fmt.BLOCK)
        elif xattrs := inodes.xattrs.get(slot):
            packed = fmt.pack_xattrs(xattrs)
            self._others[slot] = self._allot(size + len(packed)), packed

    def _allot(self, size: int) -> int:
        """Return where an inode of *size* bytes with what follows it goes: into one block, as inline data must."""
        start = self._end
        if size > fmt.BLOCK - start % fmt.BLOCK:
            start += -start % fmt.BLOCK
        end = start + size
        self._end = end + -end % fmt.SLOT
        return start

    def _pack_others(self, head: bytearray, blocks: bytearray, first: int) -> None:
        """Pack what is no directory; *first* is the number of the first of the blocks."""
        inodes = self._inodes
        packed = inodes.packed
        for slot, count in self._names.items():
            _NLINK.pack_into(packed, slot * fmt.INODE_SIZE + _NLINK_AT, count)
        for slot, at in self._long_links.items():
            target = inodes.links[slot]
            blocks[at * fmt.BLOCK : at * fmt.BLOCK + len(target)] = target
            set_data(inodes, slot, first + at)
        for slot, (offset, xattrs) in self._others.items():
            inode = packed[slot * fmt.INODE_SIZE : (slot + 1) * fmt.INODE_SIZE]
            if inodes.types[slot] == fmt.SYMLINK:
                _FORMAT.pack_into(inode, _FORMAT_AT, fmt.FLAT_INLINE)
                inode += inodes.links[slot]
            else:
                _ICOUNT.pack_into(inode, _ICOUNT_AT, fmt.xattr_count(xattrs))
                inode += xattrs
            head[offset : offset + len(inode)] = inode
            self._nids[slot] = offset // fmt.SLOT

    def _pack_directory(self, placed: _Placed, head: bytearray, blocks: bytearray, first: int) -> None:
        directory = placed.directory
        *full, last = [self._pack_names(directory, names) for names in placed.names]
        if not placed.is_inline:
            full.append(last)
        at = placed.first_block * fmt.BLOCK
        for block in full:
            blocks[at : at + len(block)] = block
            at += fmt.BLOCK
        start = directory.inode * fmt.INODE_SIZE
        inode = self._inodes.packed[start : start + fmt.INODE_SIZE]
        _FORMAT.pack_into(inode, _FORMAT_AT, fmt.FLAT_INLINE if placed.is_inline else fmt.FLAT_PLAIN)
        _ICOUNT.pack_into(inode, _ICOUNT_AT, fmt.xattr_count(placed.xattrs))
        _SIZE.pack_into(inode, _SIZE_AT, (len(placed.names) - 1) * fmt.BLOCK + len(last))
        _DATA.pack_into(inode, _DATA_AT, first + placed.first_block if full else 0)
        below = sum(isinstance(child, Directory) for child in directory.children.values())
        _NLINK.pack_into(inode, _NLINK_AT, 2 + below)
        inode += placed.xattrs
        if placed.is_inline:
            inode += last
        start = directory.nid * fmt.SLOT
        head[start : start + len(inode)] = inode

    def _pack_names(self, directory: Directory, names: list[bytes]) -> bytes:
        """Return a block of *directory* that has *names*."""
        children, nids, types = directory.children, self._nids, self._inodes.types
        offset = fmt.DIRENT_SIZE * len(names)
        fields: list[int] = []
        for name in names:
            node = children.get(name)
            if isinstance(node, int):
                fields += (nids[node], offset, types[node], 0)
            else:
                found = node or (directory if name == b"." else directory.parent)
                fields += (found.nid, offset, fmt.DIRECTORY, 0)
            offset += len(name)
        return _dirents(len(names)).pack(*fields) + b"".join(names)


def _split(names: list[bytes]) -> list[list[bytes]]:
    """Return *names* block by block."""
    if _size_of_block(names) <= fmt.BLOCK:
        return [names]
    blocks = []
    begin = size = 0
    for number, name in enumerate(names):
        size += fmt.DIRENT_SIZE + len(name)
        if size > fmt.BLOCK:
            blocks.append(names[begin:number])
            begin = number
            size = fmt.DIRENT_SIZE + len(name)
    blocks.append(names[begin:])
    return blocks


def _size_of_block(names: list[bytes]) -> int:
    return fmt.DIRENT_SIZE * len(names) + sum(map(len, names))


@cache
def _dirents(count: int) -> struct.Struct:
    """Return the form of *count* entries; a block has room for some forty."""
    return struct.Struct("<" + "QHBB" * count)
