"""What lies below a layer: the tree of the layers under it, merged, as the index of the layer must know it."""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from runtimed.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class Found:
    """Something below: its status, its extended attributes, and where it points if it is a symbolic link."""

    status: os.stat_result
    xattrs: Mapping[bytes, bytes]
    link: bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class Lower(Protocol):
    """The merged tree of all layers below one. Paths are relative to its root, ``b""``, and lead through no links.

    Nothing is asked before the stream of the layer has been read to its end, so that an implementation may wait then
    for the layers below. Errors other than those named here are OSErrors of the host.
    """

    def find(self, path: bytes) -> Found | None:
        """Return what is at *path*, a link as such; None if nothing is, or something in the way is no directory."""

    def names(self, path: bytes) -> list[bytes]:
        """Return what the directory *path* holds."""

    def open(self, path: bytes) -> int:
        """Return an fd to read the regular file *path* from; the caller closes it."""


class LowerTree:
    """A merged tree that is mounted, or a plain directory. Close it, or use it as a context manager.

    Opens nothing but directories and regular files, and none by a path that the kernel might lead outside.
    """

    def __init__(self, root: Path) -> None:
        self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def find(self, path: bytes) -> Found | None:
        try:
            fd = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                return Found(status, {}, os.readlink(b"", dir_fd=fd))
            return Found(status, _xattrs(fd), b"")
        finally:
            os.close(fd)

    def names(self, path: bytes) -> list[bytes]:
        fd = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return [os.fsencode(entry.name) for entry in entries]
        finally:
            os.close(fd)

    def open(self, path: bytes) -> int:
        # Not to wait for whoever writes to a fifo that came in between.
        return self._open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def _open(self, path: bytes, flags: int) -> int:
        return openat2(path or b".", flags, dir_fd=self._fd, resolve=_RESOLVE)


def _xattrs(fd: int) -> dict[bytes, bytes]:
    path = f"/proc/self/fd/{fd}"  # an fd of O_PATH has no attributes itself
    try:
        return {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return {}
        raise
