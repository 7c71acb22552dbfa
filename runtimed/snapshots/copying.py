"""A directory tree copied whole: owners, modes, times, xattrs, hard links, devices, holes."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtimed.snapshots.trees import join, names, opened, opened_below

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 1 << 20  # bytes for one read, where the kernel does not copy by itself

# What says that this way of copying is not to be had between these two files.
_TRY_ANOTHER = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in *source* to *target*, an empty directory, which becomes like *source* itself, too.

    Links are copied, never followed; what is mounted in *source* is EXDEV. Blocks shared with *source* cost no space
    where the file system can do that. Raises OSError; *target* then holds part of it.
    """
    with opened(source) as source_root:
        copy_tree_of(source_root, target)


def copy_tree_of(source: int, target: Path) -> None:
    """Like :func:`copy_tree`, of a directory that is open for reading."""
    with opened(target) as target_root:
        _Copy(source, target_root).run()


class _Copy:
    def __init__(self, source_root: int, target_root: int) -> None:
        self._source_root = source_root
        self._target_root = target_root
        self._linked: dict[int, tuple[str, str]] = {}  # inode with several names -> directory and name of its copy

    def run(self) -> None:
        directories = [""]
        for directory in directories:  # grows while it is gone through
            with self._both(directory) as (source, target):
                for name in names(source):
                    found = os.stat(name, dir_fd=source, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        os.mkdir(name, 0o700, dir_fd=target)
                        directories.append(join(directory, name))
                    else:
                        self._copy_file(source, target, directory, name, found)
        # Last and from the bottom up, because whatever is made in a directory changes its times.
        for directory in reversed(directories):
            with self._both(directory) as (source, target):
                found = os.fstat(source)
                os.fchown(target, found.st_uid, found.st_gid)
                os.fchmod(target, stat.S_IMODE(found.st_mode))
                _copy_xattrs(source, target)
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _copy_file(self, source: int, target: int, directory: str, name: str, found: os.stat_result) -> None:
        if found.st_nlink > 1:
            if found.st_ino in self._linked:
                first_directory, first = self._linked[found.st_ino]
                with opened_below(self._target_root, first_directory) as fd:
                    os.link(first, name, src_dir_fd=fd, dst_dir_fd=target, follow_symlinks=False)
                return
            self._linked[found.st_ino] = (directory, name)
        if stat.S_ISREG(found.st_mode):
            _copy_regular(source, target, name, found)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            _copy_metadata(source, target, name, found)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
            _copy_metadata(source, target, name, found)

    @contextmanager
    def _both(self, directory: str) -> Iterator[tuple[int, int]]:
        with opened_below(self._source_root, directory) as source, opened_below(self._target_root, directory) as target:
            yield source, target


def _copy_regular(source: int, target: int, name: str, found: os.stat_result) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        writing = os.open(name, flags, 0o600, dir_fd=target)
        try:
            _copy_data(reading, writing, found.st_size)
            os.fchown(writing, found.st_uid, found.st_gid)  # before mode and xattrs: it clears setuid and capabilities
            os.fchmod(writing, stat.S_IMODE(found.st_mode))
            _copy_xattrs(reading, writing)
            os.utime(writing, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_data(reading: int, writing: int, size: int) -> None:
    """Share the blocks where the file system can, else copy what is not a hole."""
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
        return
    except OSError as exc:
        if exc.errno not in _TRY_ANOTHER:
            raise
    os.ftruncate(writing, size)
    start = end = 0
    while end < size:
        try:
            start = os.lseek(reading, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(reading, start, os.SEEK_HOLE)
        _copy_range(reading, writing, start, end)


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    try:
        while start < end:
            copied = os.copy_file_range(reading, writing, end - start, start, start)
            if not copied:
                break
            start += copied
    except OSError as exc:
        if exc.errno not in _TRY_ANOTHER:
            raise
    while start < end:
        data = os.pread(reading, min(_CHUNK, end - start), start)
        if not data:
            return
        start += os.pwrite(writing, data, start)


def _copy_metadata(source: int, target: int, name: str, found: os.stat_result) -> None:
    """Give the link or device *name* owner, mode, xattrs and times; only through its directory, never opened."""
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):  # just made here by mknod, so chmod meets no link
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    _copy_xattrs(f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}")
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_xattrs(source: int | str, target: int | str) -> None:
    follow = isinstance(source, int)  # an fd is what it is; a path's last component is not followed
    try:
        keys = os.listxattr(source, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:  # a file system without any
            return
        raise
    for name in keys:
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=follow), follow_symlinks=follow)
