"""Files that are compared: what of them a layer keeps, and whether two are the same.

All are names in an open directory, and none is reached through a link.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runtimed.errors import Aborted, InvalidArgument

PAUSE = "pause the container and try again"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_CHUNK = 256 * 1024
_SECOND = 10**9
# Of attributes, what applying a layer keeps.
_KEPT_XATTRS = frozenset(("security.capability", "system.posix_acl_access", "system.posix_acl_default"))
_MAX_XATTRS = (1 << 20) - (1 << 16)  # bytes; readers take a pax header of 1 MiB
_NOT_A_LAYERS = frozenset(("redirect", "metacopy"))  # with these, overlayfs says that something is elsewhere


class NotALayer(Exception):
    """The directory that was given as a layer refers to others in ways that only a mount can follow."""


def same(
    lower: int, upper: int, name: bytes, below: os.stat_result, above: os.stat_result, xattrs: Mapping[bytes, bytes]
) -> bool:
    """Say whether what *name* is in both trees is the same, as far as can be told without reading all of it."""
    if (below.st_dev, below.st_ino) == (above.st_dev, above.st_ino):
        return True
    for field in ("st_mode", "st_uid", "st_gid", "st_rdev"):
        if getattr(below, field) != getattr(above, field):
            return False
    if xattrs_of(lower, name, below, is_layer=False) != xattrs:
        return False
    if stat.S_ISDIR(above.st_mode):
        return True
    if below.st_size != above.st_size or below.st_mtime_ns != above.st_mtime_ns:
        return False
    if above.st_mtime_ns % _SECOND:
        return True
    # A time out of a layer, whole seconds: somebody else's file may have it, too.
    if stat.S_ISLNK(above.st_mode):
        return os.readlink(name, dir_fd=lower) == os.readlink(name, dir_fd=upper)
    if not stat.S_ISREG(above.st_mode) or not above.st_size:
        return True
    with opened(name, lower, below, FILE) as one, opened(name, upper, above, FILE) as other:
        while data := os.read(one, _CHUNK):
            if os.read(other, len(data)) != data:
                return False
    return True


def xattrs_of(directory: int, name: bytes, status: os.stat_result, *, is_layer: bool) -> Mapping[bytes, bytes]:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return {}
    path = b"/proc/self/fd/%d/%b" % (directory, name)
    found: dict[bytes, bytes] = {}
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
        return {}
    for key in keys:
        if key in _KEPT_XATTRS or (key.startswith("user.") and not key.startswith("user.overlay.")):
            found[os.fsencode(key)] = os.getxattr(path, key, follow_symlinks=False)
        elif is_layer and ".overlay." in key and key.rpartition(".")[2] in _NOT_A_LAYERS:
            raise NotALayer(f"{name!r} has the attribute {key}")
    if sum(len(key) + len(value) for key, value in found.items()) > _MAX_XATTRS:
        raise InvalidArgument(f"{name!r} cannot be in a layer: its extended attributes have over {_MAX_XATTRS} bytes")
    return found


def is_opaque_directory(directory: int, name: bytes) -> bool:
    path = b"/proc/self/fd/%d/%b" % (directory, name)
    for key in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            value = os.getxattr(path, key, follow_symlinks=False)
        except OSError:
            continue
        if value == b"x":  # files in it may be whiteouts by an attribute
            raise NotALayer(f"{name!r} has whiteouts that are no devices")
        return value == b"y"
    return False


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def find(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def listed(fd: int) -> list[bytes]:
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in entries]


@contextmanager
def opened(
    name: Path | bytes, directory: int | None = None, expected: os.stat_result | None = None, flags: int = DIRECTORY
) -> Iterator[int]:
    """Hold the file *name* open. Raises Aborted if it is not the one that was *expected*."""
    fd = os.open(name, flags, dir_fd=directory)
    try:
        if expected is not None:
            found = os.fstat(fd)
            if (found.st_ino, stat.S_IFMT(found.st_mode)) != (expected.st_ino, stat.S_IFMT(expected.st_mode)):
                raise Aborted(f"{name!r} is changed while it is looked at; {PAUSE}")
        yield fd
    finally:
        os.close(fd)
