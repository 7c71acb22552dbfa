"""A layer as one EROFS file: its tar as it is, and after it an index whose inodes point into the tar.

docs/erofs.md has the form of the file and the reasons. :func:`write` is the whole; :func:`receive` and :func:`index`
are its halves, for a layer whose lower layers are not there yet when its bytes are.
"""

import errno
import os
import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from runtimed.diff import erofs_format as fmt
from runtimed.diff import erofs_layout
from runtimed.diff.changeset import ACLS, check_device, kept_xattrs, os_error, placed, refused
from runtimed.diff.compression import Readable
from runtimed.diff.erofs_lower import Lower
from runtimed.diff.erofs_tree import HARD_LINK, Inodes, LayerTree
from runtimed.diff.tar import Entry, Kind, TarReader
from runtimed.linux.writeback import Writeback

_CHUNK = 256 * 1024
_ZEROS = bytes(4 * _CHUNK)
_KEPT = 256 << 20  # bytes of an image that stay in memory for whoever uses the layer first

_TYPES = {
    Kind.FILE: (fmt.FILE, stat.S_IFREG),
    Kind.HARD_LINK: (HARD_LINK, stat.S_IFREG),
    Kind.SYMLINK: (fmt.SYMLINK, stat.S_IFLNK),
    Kind.CHARACTER_DEVICE: (fmt.CHARACTER_DEVICE, stat.S_IFCHR),
    Kind.BLOCK_DEVICE: (fmt.BLOCK_DEVICE, stat.S_IFBLK),
    Kind.DIRECTORY: (fmt.DIRECTORY, stat.S_IFDIR),
    Kind.FIFO: (fmt.FIFO, stat.S_IFIFO),
}
_KINDS = {type_: kind for kind, (type_, _) in _TYPES.items()}


class MustExtract(Exception):
    """An index cannot say what this layer says; the message tells what. The layer is not at fault: extract it.

    By then the whole tar is in the image, *tar_size* bytes of it: apply(erofs_reader.Tar(image, tar_size), ...).
    """

    def __init__(self, reason: str, tar_size: int) -> None:
        super().__init__(reason)
        self.tar_size = tar_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A finished image: its size and that of the tar in it, in bytes; the tar's entries and the inodes they made.

    The image may have holes; what it takes on disk is for fstat(2) to say.
    """

    size: int
    tar_size: int
    entries: int
    inodes: int


class Received:
    """A layer whose tar is in the image: its entries, in order, each with an inode in the slot of its number."""

    __slots__ = ("inodes", "must_extract", "names", "sparse", "tar_size")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.inodes = Inodes()
        self.sparse: dict[int, tuple[int, array[int]]] = {}  # where in the tar the data is; the map, flat
        self.must_extract = ""  # why
        self.tar_size = 0


def write(stream: Readable, image: int, lower: Lower | None = None) -> Written:
    """Make an EROFS image of the uncompressed tar *stream* in *image*; mount it over *lower*, as overlayfs does.

    *image* is an fd of an empty regular file, open for reading and writing; it stays open. The stream is read to its
    end. The image is to *lower* (None: nothing is below) what the upper directory would be if the layer were extracted
    over a mounted overlay: see :func:`runtimed.diff.apply.apply`. It is the same for the same stream and *lower*,
    byte by byte. Its data is on disk before its superblock is written; the caller syncs the file as a whole.

    Blocks for as long as it takes. A failed image is not mountable; the caller removes it.

    Raises:
        InvalidArgument: not a tar archive, or an entry that cannot be applied.
        MustExtract: an entry that cannot be indexed.
        OSError: of the host; of reading *lower*, too.
    """
    return index(receive(stream, image), image, lower)


def receive(stream: Readable, image: int) -> Received:
    """Write the tar *stream* to *image* and return its entries. Raises InvalidArgument, OSError."""
    tar = _Tee(stream, image)
    archive = TarReader(tar.read)
    received = Received()
    for entry in archive:
        _note(received, entry, archive.position)
    tar.end()
    received.tar_size = tar.size
    return received


def index(received: Received, image: int, lower: Lower | None) -> Written:
    """Write the index of what was *received* to *image*. Uses *received* up. Raises what :func:`write` does."""
    try:
        if received.must_extract:
            raise fmt.DoesNotFit(received.must_extract)
        return _index(received, image, lower)
    except fmt.DoesNotFit as exc:
        raise MustExtract(f"an index has no room for {exc}", received.tar_size) from None


def _index(received: Received, image: int, lower: Lower | None) -> Written:
    """:func:`index`, with a DoesNotFit instead of a MustExtract."""
    data = _Data(image, fmt.HEADER_SIZE + received.tar_size, lower)
    entries = len(received.names)
    inodes = received.inodes
    for slot, (position, numbers) in received.sparse.items():
        erofs_layout.set_data(inodes, slot, data.expand(position, numbers, erofs_layout.size_of(inodes, slot)))
    tree = LayerTree(inodes, lower, data.copy)
    for slot, name in enumerate(received.names):
        received.names[slot] = b""  # of a million names, one copy is enough
        _add(tree, inodes, slot, name)
    tree.finish()
    size, count = erofs_layout.write(image, inodes, tree, data.end, received.tar_size)
    return Written(size=size, tar_size=received.tar_size, entries=entries, inodes=count)


def _note(received: Received, entry: Entry, position: int) -> None:
    """Remember *entry*, whose data is at *position* of the tar."""
    type_, format_ = _TYPES[entry.kind]
    inodes = received.inodes
    data = size = 0
    mode = entry.mode | format_
    if type_ == fmt.FILE:
        size = entry.size
        if entry.segments is not None:
            received.sparse[len(received.names)] = position, array("Q", chain.from_iterable(entry.segments))
        elif size:
            data = (fmt.HEADER_SIZE + position) >> fmt.BLOCK_BITS
            if data + (size >> fmt.BLOCK_BITS) > fmt.MAX_BLOCKS:
                received.must_extract = "a layer of more than two terabytes"
                data = 0
    elif type_ == fmt.SYMLINK:
        mode = format_ | 0o777  # Linux knows no other
        size = len(entry.link)
        inodes.links[len(received.names)] = entry.link
    elif type_ == HARD_LINK:
        inodes.links[len(received.names)] = entry.link
    elif type_ != fmt.DIRECTORY:
        check_device(entry.name, entry.kind, entry.major, entry.minor)
        data = fmt.pack_rdev(entry.major, entry.minor)
    if entry.xattrs and type_ in (fmt.FILE, fmt.DIRECTORY):
        xattrs = kept_xattrs(entry.name, entry.xattrs)
        if not ACLS.isdisjoint(xattrs):
            # The kernel checks them, and gives the mode the ACL's bits.
            received.must_extract = f"the ACL of {entry.name!r}"
        if xattrs:
            inodes.xattrs[len(received.names)] = xattrs
    inodes.add(type_, mode, entry.uid, entry.gid, size, data, entry.mtime)
    received.names.append(entry.name)


def _add(tree: LayerTree, inodes: Inodes, slot: int, entry_name: bytes) -> None:
    """Add the entry in *slot* to the tree."""
    type_ = inodes.types[slot]
    try:
        place = placed(entry_name)
        if place is None:
            return
        path, name, hidden = place
        if hidden is not None:
            tree.hide(path, hidden)
            return
        directory = tree.directory(path)
        if type_ == fmt.DIRECTORY:
            tree.put_directory(directory, name, slot)
        elif type_ == HARD_LINK:
            tree.put_hard_link(directory, name, inodes.links[slot], entry_name)
        else:
            if type_ == fmt.SYMLINK and not inodes.links[slot]:
                raise os_error(errno.ENOENT)  # as symlink(2) says
            tree.put(directory, name, slot)
    except OSError as exc:
        raise refused(exc, entry_name, _KINDS[type_], inodes.links.get(slot, b"")) from exc


class _Tee:
    """Writes what is read through it to the image, from where the tar begins."""

    def __init__(self, stream: Readable, image: int) -> None:
        self._stream = stream
        self._image = image
        self._writeback = Writeback(image, keep=False, after=_KEPT)
        self.size = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        _write_at(self._image, data, fmt.HEADER_SIZE + self.size)
        self.size += len(data)
        self._writeback.grown(fmt.HEADER_SIZE + self.size)
        return data

    def end(self) -> None:
        """Take what follows the end of the archive: it is padding, but it counts for the digest."""
        while self.read(_CHUNK):
            pass
        self._writeback.end(fmt.HEADER_SIZE + self.size)


class _Data:
    """Data of files that the tar does not have in one piece, written after it."""

    def __init__(self, image: int, end: int, lower: Lower | None) -> None:
        self._image = image
        self._lower = lower
        self.end = end

    def expand(self, position: int, numbers: Sequence[int], size: int) -> int:
        """Return the first block of a sparse file that is stored at *position* of the tar. Its holes stay holes.

        *numbers* are offset and length of its segments, in turn.
        """
        start = self._allot(size)
        position += fmt.HEADER_SIZE
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
            _copy(self._image, position, self._image, start + offset, length)
            position += length
        return start >> fmt.BLOCK_BITS

    def copy(self, path: bytes, size: int) -> int:
        """Return the first block of a copy of the file *path* of the layers below."""
        assert self._lower is not None
        start = self._allot(size)
        fd = self._lower.open(path)
        try:
            _copy(fd, 0, self._image, start, size)
        finally:
            os.close(fd)
        return start >> fmt.BLOCK_BITS

    def _allot(self, size: int) -> int:
        start = self.end + -self.end % fmt.BLOCK
        if start + size > fmt.MAX_BLOCKS * fmt.BLOCK:
            raise fmt.DoesNotFit("sparse files of more than two terabytes")
        self.end = start + size
        return start


def _copy(source: int, position: int, target: int, offset: int, length: int) -> None:
    while length:
        data = os.pread(source, min(length, len(_ZEROS)), position)
        if not data:
            raise OSError(errno.EIO, "a file ends before its size")
        if data != _ZEROS[: len(data)]:  # what is not written stays a hole
            _write_at(target, data, offset)
        position += len(data)
        offset += len(data)
        length -= len(data)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
