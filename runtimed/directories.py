"""The daemon's directories, lock files and socket paths: made, or refused when somebody else's. Blocks.

A directory or socket that another user has put where ours belongs could make the daemon write or serve where that user
wants, so what is there already must be a real directory of ours.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, os_errors

# sockaddr_un has 108 bytes with the NUL at the end (unix(7)); the longest name we bind has this suffix.
TTRPC_SUFFIX = ".ttrpc"
_LONGEST_ADDRESS = 107 - len(TTRPC_SUFFIX)


def make_private(path: Path, mode: int) -> None:
    """Make *path* (and what leads to it) a directory of ours with exactly *mode*.

    Raises:
        FailedPrecondition: a link, or not a directory.
        PermissionDenied: it belongs to another user.
    """
    with os_errors(f"directory {path}"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with suppress(FileExistsError):
            path.mkdir(mode=mode)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except NotADirectoryError:
            what = "a link" if path.is_symlink() else "not a directory"
            raise FailedPrecondition(f"directory {path}: is {what}; remove it or use another path") from None
        try:
            owner = os.fstat(fd).st_uid
            if owner != os.geteuid():
                raise PermissionDenied(f"directory {path}: belongs to user {owner}; remove it or use another path")
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the one daemon's place in *directory*; the kernel lets go of it when the process dies.

    Raises:
        AlreadyExists: another process holds it; the message names its pid.
    """
    path = directory / "lock"
    with os_errors(f"lock {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyExists(
                f"{directory} is in use by the daemon with pid {pid}:"
                f" stop it (kill {pid}), or give this one its own --root and --state"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def check_address(address: str) -> None:
    """Refuse a socket path that does not fit. Raises InvalidArgument."""
    length = len(os.fsencode(address))
    if length > _LONGEST_ADDRESS:
        raise InvalidArgument(
            f"socket path {address} has {length} bytes, {_LONGEST_ADDRESS} fit:"
            " give a shorter --address (or --state, which it lies in by default)"
        )


def clear_socket(path: Path) -> None:
    """Make way for a socket at *path*: its directory exists, and a socket that nobody listens on is removed.

    Raises:
        AlreadyExists: somebody listens on it.
        FailedPrecondition: what is there is not a socket.
        PermissionDenied: others may change the directory, and so exchange the socket.
    """
    with os_errors(f"socket {path}"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        _check_parent(path.parent)
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FailedPrecondition(f"socket {path}: something that is not a socket is there; remove it")
        if _has_listener(path):
            raise AlreadyExists(f"socket {path}: another program listens on it; stop it, or give another address")
        path.unlink()


def _check_parent(directory: Path) -> None:
    found = directory.stat()
    if found.st_uid not in {0, os.geteuid()}:
        raise PermissionDenied(f"directory {directory}: belongs to user {found.st_uid}; use another for the socket")
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise PermissionDenied(f"directory {directory}: everybody may write to it; use another for the socket")


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except TimeoutError:
            return True  # a listener whose backlog is full
    return True


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Create with *mask* while the block runs. The mask is the process's: only while no other thread makes files."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
