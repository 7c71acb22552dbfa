"""What mounts of the types ``mkdir/...`` and ``mkfs/...`` need before they can be made: directories, file systems.

Options begin with ``X-containerd.mkdir.`` and ``X-containerd.mkfs.``, and are gone from the mount afterwards::

    X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]    octal mode, 0700 if none is said
    X-containerd.mkfs.size=16MiB                     of the file that is the mount's source
    X-containerd.mkfs.fs=ext4                        or ext2, ext3, xfs
    X-containerd.mkfs.uuid=UUID

Whoever asks is trusted, but what lies in the directories may be a container's: a path must be below one of the
daemon's own directories, and neither a symbolic link nor ``..`` is followed.
"""

import errno
import os
import re
import secrets
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runtimed.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unimplemented, os_errors
from runtimed.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from runtimed.mounts import Mount

MKDIR, MKFS = "X-containerd.mkdir.", "X-containerd.mkfs."

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EXT = {"ext2", "ext3", "ext4"}
_LARGEST = 1 << 50  # bytes
_MKFS_WITHIN_S = 120.0


def with_directories(mount: Mount, roots: Sequence[Path]) -> Mount:
    """Make the directories that *mount* asks for, below one of *roots*; return it without those options.

    Raises:
        InvalidArgument: not such an option, or a path that leads elsewhere.
        FailedPrecondition: there is something else at that path, or a directory with another mode.
    """
    for option in mount.options:
        if option.startswith(MKDIR):
            _make_directory(option, roots)
    return replace(mount, options=tuple(option for option in mount.options if not option.startswith(MKDIR)))


def with_file_system(mount: Mount, roots: Sequence[Path]) -> Mount:
    """Make the source of *mount* a file with a file system, if it is not there; return the mount without the options.

    Raises:
        InvalidArgument: not such an option, no size, or a source that is not below one of *roots*.
        FailedPrecondition: the source is there and no file.
        Unimplemented: there is no program to make that kind of file system.
    """
    wanted = _wanted(mount.options)
    where = mount.source
    with _parent(where, roots) as (directory, name):
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise FailedPrecondition(f"mkfs: {where!r} is there and is not a file")
            return replace(mount, options=wanted.others)
        _make_file_system(directory, name, where, wanted)
    return replace(mount, options=wanted.others)


@dataclass(frozen=True, slots=True)
class _Wanted:
    size: int  # bytes
    kind: str
    uuid: str
    others: tuple[str, ...]  # options


def _wanted(options: Sequence[str]) -> _Wanted:
    size, kind, uuid, others = 0, "ext4", "", []
    for option in options:
        if not option.startswith(MKFS):
            others.append(option)
            continue
        match option.removeprefix(MKFS).split("=", 1):
            case ["size", value]:
                size = _bytes(value)
            case ["fs", value] if value in _EXT or value == "xfs":
                kind = value
            case ["fs", value]:
                raise InvalidArgument(f"mkfs: file system {value[:40]!r}: there are ext2, ext3, ext4 and xfs")
            case ["uuid", value]:
                if not _UUID.fullmatch(value):
                    raise InvalidArgument(f"mkfs: {value[:80]!r} is not a UUID")
                uuid = value
            case _:
                raise InvalidArgument(f"mkfs: unknown mount option {option[:80]!r}")
    if not size:
        raise InvalidArgument(f"mkfs: the option {MKFS}size is missing")
    return _Wanted(size, kind, uuid, tuple(others))


def _bytes(text: str) -> int:
    """Return a size such as ``16MiB``, ``16M`` or ``1.5g`` in bytes; the units are powers of 1024."""
    found = _SIZE.fullmatch(text)
    if (
        not found
        or not 0 < (size := int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))) <= _LARGEST
    ):
        raise InvalidArgument(f"mkfs: {text[:40]!r} is not a size such as 16MiB")
    return size


def _make_file_system(directory: int, name: str, where: str, wanted: _Wanted) -> None:
    """Make it under another name first: a file that is there is a whole one, whatever crashes meanwhile."""
    identity = ["-U", wanted.uuid] if wanted.kind in _EXT else ["-m", f"uuid={wanted.uuid}"]
    temporary = f".{name[:200]}.{secrets.token_hex(4)}"
    with os_errors(f"mkfs {where!r}"):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o640, dir_fd=directory)
    try:
        with os_errors(f"mkfs {where!r}"):
            os.ftruncate(file, wanted.size)
        command = [f"mkfs.{wanted.kind}", "-q", *(identity if wanted.uuid else []), f"/proc/self/fd/{file}"]
        _run(command, file, where)
        with os_errors(f"mkfs {where!r}"):
            os.fsync(file)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(file)


def _run(command: Sequence[str], file: int, where: str) -> None:
    try:
        done = subprocess.run(
            command,
            pass_fds=(file,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_MKFS_WITHIN_S,
            check=False,
        )
    except FileNotFoundError:
        raise Unimplemented(f"mkfs {where!r}: there is no program {command[0]}; install it") from None
    except subprocess.TimeoutExpired:
        raise Internal(f"mkfs {where!r}: {command[0]} not done within {_MKFS_WITHIN_S:g} s") from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()[-400:]
        raise InvalidArgument(f"mkfs {where!r}: {command[0]}: exit status {done.returncode}: {said}")


def _make_directory(option: str, roots: Sequence[Path]) -> None:
    key, _, value = option.removeprefix(MKDIR).partition("=")
    path, *numbers = value.rsplit(":", 3) if value.count(":") >= 3 else value.split(":")
    if key != "path" or len(numbers) not in {0, 1, 3}:
        raise InvalidArgument(f"mkdir: {option[:120]!r} is not {MKDIR}path=PATH[:MODE[:UID:GID]]")
    try:
        mode = int(numbers[0], 8) if numbers else 0o700
        uid, gid = map(int, numbers[1:]) if len(numbers) == 3 else (-1, -1)
    except ValueError:
        raise InvalidArgument(f"mkdir: {option[:120]!r}: mode, user and group are numbers") from None
    if not 0 <= mode <= 0o777 or min(uid, gid) < -1:
        raise InvalidArgument(f"mkdir: {option[:120]!r}: no such mode, user or group")
    with _parent(path, roots) as (directory, name), os_errors(f"mkdir {path!r}"):
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            _check_directory(directory, name, path, mode)
            return
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if uid >= 0:
                os.fchown(made, uid, gid)
            os.fchmod(made, mode)
        finally:
            os.close(made)


def _check_directory(directory: int, name: str, path: str, mode: int) -> None:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(found):
        raise FailedPrecondition(f"mkdir: {path!r} is there and is not a directory")
    if stat.S_IMODE(found) != mode:
        raise FailedPrecondition(f"mkdir: {path!r} is there with mode {stat.S_IMODE(found):o}, not {mode:o}")


@contextmanager
def _parent(path: str, roots: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Hold the directory that *path* is in open; yield it and the last part of the path."""
    root = next((root for root in roots if Path(path).is_relative_to(root)), None)
    inside = Path(path).relative_to(root).parts if root else ()
    if root is None or not inside or ".." in inside or "\0" in path:
        raise InvalidArgument(f"mount path {path[:200]!r} is not below {', '.join(map(str, roots))}")
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = top
        if len(inside) > 1:
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
            flags = os.O_RDONLY | os.O_DIRECTORY
            try:
                directory = openat2(os.fsencode("/".join(inside[:-1])), flags, dir_fd=top, resolve=resolve)
            except OSError as exc:
                if exc.errno in {errno.ELOOP, errno.EXDEV}:
                    raise InvalidArgument(f"mount path {path!r} has a symbolic link in it") from None
                raise NotFound(f"mount path {path!r}: {exc.strerror}") from None
        try:
            yield directory, inside[-1]
        finally:
            if directory != top:
                os.close(directory)
    finally:
        os.close(top)
