"""The tree that a layer is applied to: directories by path, held open, and never one outside of it.

Every path from outside is cleaned first. Every directory is opened below the root's fd by a path that the kernel may
not leave and in which it may not follow a link (openat2(2): RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS). Links in the way
are read and interpreted here, with the tree's root as "/", so that a link swapped in between makes an open fail and
cannot redirect it.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from runtimed.diff.changeset import check_depth, join, walk
from runtimed.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_MAX_OPEN = 128  # directories; far below the smallest usual limit of 1024 fds


class Directory:
    """An open directory of the tree. *path* is relative to the root and free of links; b"" is the root."""

    __slots__ = ("fd", "path")

    def __init__(self, path: bytes, fd: int) -> None:
        self.path = path
        self.fd = fd


class Tree:
    """A directory tree to write into. Close it, or use it as a context manager.

    A :class:`Directory` it returns stays open until a hundred others have been asked for or something else is removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = Directory(b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._open: OrderedDict[bytes, Directory] = OrderedDict()  # by cleaned path as asked for; oldest use first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget()
        os.close(self._root.fd)

    def directory(self, path: bytes, *, create: bool = True) -> Directory:
        """Return the directory at the cleaned *path*, following links inside the tree.

        With *create*, what is missing is made, mode 0755.

        Raises:
            InvalidArgument: it is nested too deeply.
            FileNotFoundError: it is missing, without *create*.
            OSError: something in the way is no directory, links go round in circles, or the path is too long.
        """
        if not path:
            return self._root
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        try:
            return self._hold(path, path, openat2(path, _DIRECTORY, dir_fd=self._root.fd, resolve=_RESOLVE))
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
        resolved = self._walk(path, create=create)
        if not resolved:
            return self._root
        return self._hold(path, resolved, openat2(resolved, _DIRECTORY, dir_fd=self._root.fd, resolve=_RESOLVE))

    def child(self, directory: Directory, name: bytes) -> Directory:
        """Return the directory *name*, not a link to one, in *directory*."""
        path = join(directory.path, name)
        found = self._open.get(path)
        if found is not None and found.path == path:
            self._open.move_to_end(path)
            return found
        return self._hold(path, path, os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd))

    def find_child(self, directory: Directory, name: bytes) -> Directory | None:
        """Like :meth:`child`; None if there is no such directory."""
        try:
            return self.child(directory, name)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                return None
            raise

    def open_directory(self, path: bytes) -> int | None:
        """Return a new fd of the directory at the link-free *path*, for the caller to close; None if it is gone."""
        try:
            return openat2(path or b".", _DIRECTORY, dir_fd=self._root.fd, resolve=_RESOLVE)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                return None
            raise

    def remove(self, directory: Directory, name: bytes, *, missing_ok: bool = False) -> None:
        """Remove *name*, and everything below it if it is a directory, from *directory*, which stays open."""
        try:
            mode = os.lstat(name, dir_fd=directory.fd).st_mode
            if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
                # Held directories may be in it, or have been reached through it.
                self._forget(but=directory)
            remove(directory.fd, name, is_directory=stat.S_ISDIR(mode))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def prune(self, directory: Directory, keep: Mapping[bytes, set[bytes]]) -> None:
        """Remove everything below *directory* but the names that *keep* has for each directory's path."""
        self._forget(but=directory)
        pending = [directory.path]
        while pending:
            path = pending.pop()
            fd = self.open_directory(path)
            if fd is None:
                continue
            try:
                pending += [join(path, name) for name in self._prune_one(fd, keep.get(path, set()))]
            finally:
                os.close(fd)

    def _prune_one(self, fd: int, keep: set[bytes]) -> list[bytes]:
        """Remove what is not in *keep*; return the directories that are."""
        kept = []
        for name, is_directory in _listed(fd):
            if name not in keep:
                remove(fd, name, is_directory=is_directory)
            elif is_directory:
                kept.append(name)
        return kept

    def _walk(self, path: bytes, *, create: bool) -> bytes:
        """Return *path* without links, going from component to component."""
        return b"/".join(walk(path, lambda done, name: self._step(b"/".join(done), name, create=create)))

    def _step(self, parent: bytes, name: bytes, *, create: bool) -> bytes | None:
        """Return what the link *name* in the link-free directory *parent* says; None for a directory."""
        fd = openat2(parent or b".", _DIRECTORY, dir_fd=self._root.fd, resolve=_RESOLVE)
        try:
            try:
                mode = os.lstat(name, dir_fd=fd).st_mode
            except FileNotFoundError:
                if not create:
                    raise
                os.mkdir(name, 0o755, dir_fd=fd)
                return None
            if stat.S_ISLNK(mode):
                return os.readlink(name, dir_fd=fd)
            if not stat.S_ISDIR(mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            return None
        finally:
            os.close(fd)

    def _hold(self, asked: bytes, path: bytes, fd: int) -> Directory:
        held = Directory(path, fd)
        try:
            check_depth(path.count(b"/") + 1)
        except BaseException:
            os.close(fd)
            raise
        replaced = self._open.pop(asked, None)
        self._open[asked] = held
        if replaced is not None:
            os.close(replaced.fd)
        while len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1].fd)
        return held

    def _forget(self, *, but: Directory | None = None) -> None:
        """Close all held directories, except *but*: it stays open, under the one path that is sure to lead to it."""
        held, self._open = self._open, OrderedDict()
        for directory in held.values():
            if directory is but:
                self._open[directory.path] = directory
            else:
                os.close(directory.fd)


def remove(dir_fd: int, name: bytes, *, is_directory: bool) -> None:
    """Remove the entry *name* of the directory *dir_fd*, and all that is below if it *is_directory*; links go as links.

    Holds an fd for each level, and uses no recursion: a lower layer may have come from someone with other limits.
    """
    if not is_directory:
        os.unlink(name, dir_fd=dir_fd)
        return
    held: list[tuple[int, bytes, list[tuple[bytes, bool]]]] = []

    def descend(parent: int, name: bytes) -> None:
        fd = os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        held.append((fd, name, []))
        held[-1][2].extend(_listed(fd))

    try:
        descend(dir_fd, name)
        while held:
            fd, own_name, entries = held[-1]
            while entries:
                entry, is_below = entries.pop()
                if is_below:
                    descend(fd, entry)
                    break
                os.unlink(entry, dir_fd=fd)
            else:
                held.pop()
                os.close(fd)
                os.rmdir(own_name, dir_fd=held[-1][0] if held else dir_fd)
    finally:
        for fd, _, _ in held:
            os.close(fd)


def _listed(fd: int) -> list[tuple[bytes, bool]]:
    """Return the names in the directory *fd*, and whether each is a directory itself."""
    with os.scandir(fd) as entries:
        return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
