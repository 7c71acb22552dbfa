"""Directory trees that hold what an image or a container put there: measured and deleted without trusting them.

Nothing here follows a link or passes a mount, and no depth of nesting exhausts file descriptors or the stack.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimed.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from runtimed.snapshots.snapshotter import Usage

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_LONGEST = 3840  # bytes of path in one call, a component less than PATH_MAX
BLOCK = 512  # bytes; the unit of st_blocks, whatever the file system's


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Hold the directory *path* open for reading. A link is not followed."""
    fd = os.open(path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_below(root: int, relative: str) -> Iterator[int]:
    """Hold the directory *relative* ("" is *root* itself) open; it may be longer than PATH_MAX.

    Raises OSError: EXDEV behind a mount, ELOOP behind a link.
    """
    fd = os.dup(root)
    try:
        for path in _pieces(os.fsencode(relative)):
            below = openat2(path, _DIRECTORY, dir_fd=fd, resolve=_WITHIN)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def names(fd: int) -> list[str]:
    """Return the names in the directory *fd*."""
    return os.listdir(fd)


def join(directory: str, name: str) -> str:
    """Return the path of *name* in the relative *directory*, which may be ""."""
    return f"{directory}/{name}" if directory else name


def disk_usage(root: Path) -> Usage:
    """Return what the tree takes on disk, *root* included; what is removed meanwhile is left out."""
    blocks = inodes = 0
    seen: set[tuple[int, int]] = set()  # files with several names, which count once
    with opened(root) as top:
        own = os.fstat(top)
        blocks, inodes = own.st_blocks, 1
        pending = [""]
        while pending:
            directory = pending.pop()
            with suppress(FileNotFoundError, NotADirectoryError), opened_below(top, directory) as fd:
                for name in names(fd):
                    with suppress(FileNotFoundError):
                        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if found.st_dev != own.st_dev:
                            continue  # something mounted here
                        if stat.S_ISDIR(found.st_mode):
                            pending.append(join(directory, name))
                        elif found.st_nlink > 1:
                            if (found.st_dev, found.st_ino) in seen:
                                continue
                            seen.add((found.st_dev, found.st_ino))
                        blocks += found.st_blocks
                        inodes += 1
    return Usage(blocks * BLOCK, inodes)


def empty(directory: Path) -> None:
    """Delete everything in *directory*, which nobody else may write to.

    A directory below is renamed to the top before its entries go, so no path is long and no recursion deep; and as a
    mount point cannot be renamed, nothing behind a mount is ever looked at.

    Raises OSError at the end for what could not be deleted; the first one. EBUSY is something mounted.
    """
    failures: list[OSError] = []
    token = secrets.token_hex(4)
    with opened(directory) as top:
        pending = names(top)
        moved = 0
        while pending:
            name = pending.pop()
            try:
                with _directory_or_unlinked(top, name) as fd:
                    if fd is None:
                        continue
                    for below in names(fd):
                        try:
                            with suppress(FileNotFoundError):  # another call on the same directory was faster
                                os.unlink(below, dir_fd=fd)
                        except IsADirectoryError:
                            os.rename(below, f"{token}-{moved}", src_dir_fd=fd, dst_dir_fd=top)
                            pending.append(f"{token}-{moved}")
                            moved += 1
                os.rmdir(name, dir_fd=top)
            except FileNotFoundError:
                continue
            except OSError as exc:
                failures.append(exc)
    if failures:
        raise failures[0]


@contextmanager
def _directory_or_unlinked(top: int, name: str) -> Iterator[int | None]:
    """Hold *name* open if it is a directory, else delete it."""
    try:
        fd = openat2(os.fsencode(name), _DIRECTORY, dir_fd=top, resolve=_WITHIN)
    except OSError as exc:
        if exc.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        os.unlink(name, dir_fd=top)
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _pieces(path: bytes) -> Iterator[bytes]:
    """Split *path* at slashes into pieces that fit into one call."""
    while len(path) > _LONGEST:
        cut = path.rindex(b"/", 0, _LONGEST)
        yield path[:cut]
        path = path[cut + 1 :]
    if path:
        yield path
