"""What is taken out of a checkpoint's archive, or image: whoever made it is not trusted.

Nothing but the files that a restore needs is taken, into a directory that is made for them; of whatever else there may
be nothing is, and what has one of their names must be a file::

    config.dump, spec.dump    which image it was of, and what it had mounted
    checkpoint/               CRIU's images, beside each other
    rootfs-diff.tar           a layer: what it had changed of its image's files
    deleted.files             which of them it had removed, as CRI-O and Podman say it: a JSON array
    container.log
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from runtimed.diff.changeset import clean
from runtimed.diff.compression import Compression, by_magic
from runtimed.diff.tar import Kind, TarReader
from runtimed.errors import InvalidArgument, ResourceExhausted, about, os_errors

CONFIG, SPEC, DIFF, DELETED, LOG = "config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files", "container.log"
IMAGES = "checkpoint"  # a directory
_NEEDED = (CONFIG, SPEC, f"{IMAGES}/inventory.img")
_LARGEST = {CONFIG: 4 << 20, SPEC: 4 << 20, DELETED: 16 << 20}  # bytes: they are read into memory
_WANTED = frozenset((CONFIG, SPEC, DIFF, DELETED, LOG))
_MOST_IMAGES = 1 << 16  # CRIU makes a few for each process
_CHUNK = 1 << 20  # bytes
_MAGIC = 8  # bytes


class _Member(NamedTuple):
    """A file: its path as in this module's head, its size in bytes, and its contents, to be read before the next."""

    path: str
    size: int
    contents: Iterable[bytes | memoryview]


def from_archive(archive: Path, target: Path) -> None:
    """Make the directory *target* with what is in the tar file *archive*. Blocks.

    Raises:
        NotFound, PermissionDenied: of the archive.
        InvalidArgument: it is no such archive, or a hostile one.
        ResourceExhausted: the disk is full.
    """
    subject = f"checkpoint archive {archive}"
    with os_errors(subject):
        # Not to wait for whoever writes to a FIFO.
        fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with about(subject):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument("is not a file")
            compression = by_magic(os.pread(fd, _MAGIC, 0))
            if compression is not Compression.NONE:
                raise InvalidArgument(f"is compressed ({compression}); make it a plain tar archive first")
            _take(_of_archive(TarReader(lambda size: os.read(fd, size))), target)
    finally:
        os.close(fd)


def from_tree(root: Path, target: Path) -> None:
    """Make the directory *target* with what is in the mounted image *root*. Blocks. Raises as :func:`from_archive`."""
    _take(_of_tree(root), target)


def _take(members: Iterable[_Member], target: Path) -> None:
    missing, images = set(_NEEDED), 0
    with os_errors(f"directory {target} of a checkpoint"):
        target.mkdir(mode=0o700, parents=True)
        (target / IMAGES).mkdir(mode=0o700)
        for member in members:
            images += member.path.startswith(f"{IMAGES}/")
            if images > _MOST_IMAGES:
                raise InvalidArgument(f"more than {_MOST_IMAGES} files in {IMAGES}/")
            if member.size > _LARGEST.get(member.path, member.size):
                raise InvalidArgument(f"{member.path} is larger than {_LARGEST[member.path]} bytes")
            _write(member, target)
            missing.discard(member.path)
    if missing:
        raise InvalidArgument(f"has no {', '.join(sorted(missing))}: it is not the checkpoint of a container")


def _write(member: _Member, target: Path) -> None:
    space = os.statvfs(target)
    if member.size > space.f_bavail * space.f_frsize:
        raise ResourceExhausted(f"{member.path!r} has {member.size} bytes, more than is free for {target}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(target / member.path, flags, 0o600)
    except FileExistsError:
        raise InvalidArgument(f"{member.path!r} is there twice") from None
    with os.fdopen(fd, "wb", buffering=0) as file:
        for piece in member.contents:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]


def _of_archive(reader: TarReader) -> Iterator[_Member]:
    for entry in reader:
        directory, name = clean(entry.name)
        path = _path(directory, name)
        if path is None:
            continue
        if entry.kind is not Kind.FILE or entry.segments is not None:  # no tool writes holes; their size is any number
            raise InvalidArgument(f"{path!r} is a {'sparse ' * (entry.segments is not None)}{entry.kind}, not a file")
        yield _Member(path, entry.size, (piece for _, piece in reader.contents()))


def _path(directory: bytes, name: bytes) -> str | None:
    """Return which of the files above an entry is; None if it is none."""
    top = directory or name
    if directory and top.partition(b"/")[0] == IMAGES.encode():
        if directory != IMAGES.encode():
            raise InvalidArgument(f"{os.fsdecode(directory)!r} in it is nothing that CRIU makes")
        return f"{IMAGES}/{os.fsdecode(name)}"
    return os.fsdecode(name) if not directory and os.fsdecode(name) in _WANTED else None


def _of_tree(root: Path) -> Iterator[_Member]:
    with _directory(root, None) as top:
        for name in sorted(_WANTED.intersection(os.listdir(top))):  # noqa: PTH208 - of a descriptor
            yield from _file(name, top, name)
        with _directory(Path(IMAGES), top) as images:
            for name in sorted(os.listdir(images)):  # noqa: PTH208
                yield from _file(name, images, f"{IMAGES}/{name}")


@contextmanager
def _directory(path: Path, parent: int | None) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidArgument(f"has no directory {path}: it is not the checkpoint of a container") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _file(name: str, directory: int, path: str) -> Iterator[_Member]:
    if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
        raise InvalidArgument(f"{path!r} is not a file")
    # Nobody changes a layer: it is still what it was.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, "rb", buffering=0) as file:
        yield _Member(path, os.fstat(fd).st_size, iter(lambda: file.read(_CHUNK), b""))
