"""Reads EROFS images of layers, those that :mod:`runtimed.diff.erofs` wrote, and checks them.

It trusts nothing: whatever is wrong with an image is a DataLoss that says where.
"""

import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from runtimed.diff import erofs_format as fmt
from runtimed.errors import DataLoss

_CHUNK = 1 << 20
_FORMATS = {
    fmt.FILE: stat.S_IFREG,
    fmt.DIRECTORY: stat.S_IFDIR,
    fmt.CHARACTER_DEVICE: stat.S_IFCHR,
    fmt.BLOCK_DEVICE: stat.S_IFBLK,
    fmt.FIFO: stat.S_IFIFO,
    fmt.SOCKET: stat.S_IFSOCK,
    fmt.SYMLINK: stat.S_IFLNK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """What an inode says; its data is in pieces of offset in the image and length, in bytes."""

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    rdev: tuple[int, int]
    mtime: int  # nanoseconds
    nlink: int
    xattrs: dict[bytes, bytes]
    data: tuple[tuple[int, int], ...]


class Tar:
    """The tar of *size* bytes in the image that *fd* has open, finished or not, to read."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._position = fmt.HEADER_SIZE
        self._end = fmt.HEADER_SIZE + size

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, b"" at the end. Raises DataLoss."""
        wanted = min(size, self._end - self._position)
        data = os.pread(self._fd, wanted, self._position)
        if wanted and not data:
            raise DataLoss(f"the image is cut off at {self._position} bytes")
        self._position += len(data)
        return data


class Image:
    """An image that *fd* has open, which stays open. Raises DataLoss if it is not a whole image of ours."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self.super = fmt.unpack_super(self._read(fmt.SUPER_OFFSET, fmt.BLOCK))
        self.extent = fmt.unpack_extent(self._read(fmt.OWN_OFFSET, fmt.BLOCK))
        end = self.extent.start + self.extent.size
        if self.super.start != self.extent.start or end > self._size:
            raise DataLoss(f"the image is cut off: {self._size} bytes, and the index ends at {end}")
        if self.super.blocks << fmt.BLOCK_BITS != self._size:
            raise DataLoss(f"the image has {self._size} bytes instead of {self.super.blocks << fmt.BLOCK_BITS}")
        if fmt.HEADER_SIZE + self.extent.tar_size > self.extent.start:
            raise DataLoss("the tar runs into the index")

    @property
    def root(self) -> Inode:
        return self.inode(self.super.root_nid)

    def inode(self, nid: int) -> Inode:
        """Return the inode of number *nid*."""
        start = self.extent.start + nid * fmt.SLOT
        if not self._is_metadata(start, fmt.INODE_SIZE):
            raise DataLoss(f"inode {nid} is outside of the index")
        fields = fmt.INODE.unpack(self._read(start, fmt.INODE_SIZE))
        format_, count, mode, size, data, _, uid, gid, seconds, nanoseconds, nlink = fields
        xattrs_size = fmt.xattrs_size(count)
        behind = start + fmt.INODE_SIZE + xattrs_size
        if format_ not in (fmt.FLAT_PLAIN, fmt.FLAT_INLINE) or nanoseconds >= 10**9 or not nlink:
            raise DataLoss(f"inode {nid} is malformed")
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return Inode(
            nid=nid,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            rdev=fmt.unpack_rdev(data) if is_device else (0, 0),
            mtime=seconds * 10**9 + nanoseconds,
            nlink=nlink,
            xattrs=fmt.unpack_xattrs(self._metadata(behind - xattrs_size, xattrs_size)) if count else {},
            data=() if is_device else self._pieces(nid, format_, size, data << fmt.BLOCK_BITS, behind),
        )

    def contents(self, inode: Inode) -> Iterator[bytes]:
        """Yield the data of *inode*."""
        for offset, length in inode.data:
            while length:
                data = self._read(offset, min(length, _CHUNK))
                yield data
                offset += len(data)
                length -= len(data)

    def link(self, inode: Inode) -> bytes:
        """Return where the symbolic link *inode* points."""
        if not 0 < inode.size < 4096:
            raise DataLoss(f"inode {inode.nid} is a symbolic link of {inode.size} bytes")
        return b"".join(self.contents(inode))

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Yield name, nid and type of each entry of *directory*, ``.`` and ``..`` among them, in order."""
        if not stat.S_ISDIR(directory.mode):
            raise DataLoss(f"inode {directory.nid} is not a directory")
        before = b""
        for offset, length in directory.data:
            for start in range(offset, offset + length, fmt.BLOCK):
                block = self._metadata(start, min(fmt.BLOCK, offset + length - start))
                for entry in _dirents(directory.nid, block):
                    if entry[0] <= before:
                        raise DataLoss(f"directory {directory.nid}: {entry[0]!r} is out of order")
                    before = entry[0]
                    yield entry

    def tar(self) -> "Tar":
        """Return the tar that the image was made of."""
        return Tar(self._fd, self.extent.tar_size)

    def check_index(self) -> None:
        """Compare the index with its checksum."""
        crc = 0
        offset = self.extent.start
        end = offset + self.extent.size
        while offset < end:
            data = self._read(offset, min(end - offset, _CHUNK))
            crc = zlib.crc32(data, crc)
            offset += len(data)
        if crc != self.extent.crc:
            raise DataLoss("the index does not match its checksum")

    def _pieces(self, nid: int, format_: int, size: int, start: int, behind: int) -> tuple[tuple[int, int], ...]:
        inline = size - (size - 1) // fmt.BLOCK * fmt.BLOCK if format_ == fmt.FLAT_INLINE and size else 0
        pieces = []
        if size > inline:
            if not fmt.HEADER_SIZE <= start <= start + size - inline <= self._size:
                raise DataLoss(f"inode {nid} has data outside of the image")
            pieces.append((start, size - inline))
        if inline:
            if behind % fmt.BLOCK + inline > fmt.BLOCK or not self._is_metadata(behind, inline):
                raise DataLoss(f"inode {nid} has inline data that leaves its block")
            pieces.append((behind, inline))
        return tuple(pieces)

    def _is_metadata(self, start: int, size: int) -> bool:
        return self.extent.start <= start <= start + size <= self.extent.start + self.extent.size

    def _metadata(self, start: int, size: int) -> bytes:
        if not self._is_metadata(start, size):
            raise DataLoss(f"metadata at {start} is outside of the index")
        return self._read(start, size)

    def _read(self, start: int, size: int) -> bytes:
        data = os.pread(self._fd, size, start)
        if len(data) != size:
            raise DataLoss(f"the image is cut off at {start + len(data)} bytes")
        return data


def check(fd: int) -> int:
    """Check the whole index of the image that *fd* has open; return how many inodes it has.

    The data of files is not looked at: that is for whoever knows the digest of the tar, see :meth:`Image.tar`.

    Raises:
        DataLoss: what is wrong, and where.
    """
    image = Image(fd)
    image.check_index()
    names: dict[int, int] = {}  # how many each inode has that is no directory
    links: dict[int, int] = {}  # how many it says
    root = image.root
    directories = {root.nid}
    pending = [(root, root.nid)]
    while pending:
        directory, parent = pending.pop()
        dots = {b".": directory.nid, b"..": parent}
        below = 0
        for name, nid, type_ in image.entries(directory):
            if name in dots:
                if dots.pop(name) != nid:
                    raise DataLoss(f"directory {directory.nid}: {name.decode()!r} leads to inode {nid}")
                continue
            if type_ != fmt.DIRECTORY and nid in names:
                names[nid] += 1
                continue
            inode = image.inode(nid)
            if stat.S_IFMT(inode.mode) != _FORMATS.get(type_):
                raise DataLoss(f"directory {directory.nid}: {name!r} is not of the type that inode {nid} is of")
            if type_ == fmt.DIRECTORY:
                if nid in directories:
                    raise DataLoss(f"directory {nid} has two names")
                directories.add(nid)
                pending.append((inode, directory.nid))
                below += 1
            else:
                names[nid] = 1
                links[nid] = inode.nlink
                if type_ == fmt.SYMLINK:
                    image.link(inode)
        if dots:
            raise DataLoss(f"directory {directory.nid} is without {[name.decode() for name in dots]}")
        if directory.nlink != 2 + below:
            raise DataLoss(f"directory {directory.nid} has {below} directories in it and {directory.nlink} links")
    for nid, count in names.items():
        if links[nid] != count:
            raise DataLoss(f"inode {nid} has {count} names and {links[nid]} links")
    count = len(names) + len(directories)
    if image.super.inodes != count:
        raise DataLoss(f"{count} inodes instead of {image.super.inodes}")
    return count


def _dirents(nid: int, block: bytes) -> Iterator[tuple[bytes, int, int]]:
    if len(block) < fmt.DIRENT_SIZE:
        raise DataLoss(f"directory {nid} has a block of {len(block)} bytes")
    first = fmt.DIRENT.unpack_from(block)[1]
    if first % fmt.DIRENT_SIZE or not fmt.DIRENT_SIZE <= first <= len(block):
        raise DataLoss(f"directory {nid}: names begin at {first}")
    entries = [fmt.DIRENT.unpack_from(block, at) for at in range(0, first, fmt.DIRENT_SIZE)]
    ends = [entry[1] for entry in entries[1:]] + [len(block)]
    for (child, start, type_, _), end in zip(entries, ends, strict=True):
        name = block[start:end].rstrip(b"\0")
        if not first <= start < end <= len(block) or not name or b"/" in name or b"\0" in name:
            raise DataLoss(f"directory {nid}: a name is malformed")
        yield name, child, type_
