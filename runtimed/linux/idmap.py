"""Idmapped mounts (mount_setattr(2), MOUNT_ATTR_IDMAP): a file system's owners, shown as others.

A map is what a snapshot's labels say, ``0:100000:65536``: first ID on disk, first ID that is shown, how many; several
are separated by commas. The kernel takes it from a user namespace, which somebody has to be in while it is made.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from runtimed.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MOUNT_ATTR_IDMAP,
    MS_BIND,
    OPEN_TREE_CLONE,
    mount,
    mount_setattr,
    open_tree,
)

_RANGE = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})", re.ASCII)


class Range(NamedTuple):
    """*length* IDs from *inside* on, which show as those from *outside* on."""

    inside: int
    outside: int
    length: int


def parse(text: str) -> tuple[Range, ...]:
    """Return what a map says. Raises ValueError."""
    ranges = []
    for piece in text.split(","):
        found = _RANGE.fullmatch(piece)
        if not found or not int(found[3]):
            raise ValueError(f"{text[:64]!r} is not an ID map such as 0:100000:65536")
        ranges.append(Range(*map(int, found.groups())))
    return tuple(ranges)


def text(ranges: Sequence[Range]) -> str:
    """Return what :func:`parse` takes."""
    return ",".join(f"{one.inside}:{one.outside}:{one.length}" for one in ranges)


def shown(id: int, ranges: Sequence[Range]) -> int:
    """Return what *id* shows as. Raises ValueError: as nobody."""
    for one in ranges:
        if one.inside <= id < one.inside + one.length:
            return one.outside + id - one.inside
    raise ValueError(f"ID {id} is not in the map")


@contextmanager
def user_namespace(uids: Sequence[Range], gids: Sequence[Range]) -> Iterator[int]:
    """Hold the fd of a user namespace with these maps. Raises OSError: EINVAL for maps that overlap, EPERM, ENOSPC."""
    with ExitStack() as held:
        with process_in("unshare", "--user") as pid:
            _write(f"/proc/{pid}/uid_map", uids)
            _write(f"/proc/{pid}/gid_map", gids)
            fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, fd)
        yield fd


def pin_new(mountpoint: str, uids: Sequence[Range], gids: Sequence[Range]) -> None:
    """Make a user namespace and pin it by a bind mount on the file *mountpoint*. Raises as :func:`user_namespace`."""
    with user_namespace(uids, gids) as fd:
        mount(f"/proc/self/fd/{fd}", mountpoint, "", MS_BIND)


@contextmanager
def process_in(*command: str) -> Iterator[int]:
    """Hold a process that *command*, one such as ``unshare --user``, has put where it is to be; yields its pid.

    It is a program: a process with threads must not be forked, nor can it enter a user namespace itself.

    Raises OSError: EPERM if the command ends without getting there.
    """
    with ExitStack() as held:
        from_us, to_it = os.pipe()
        from_it, to_us = os.pipe()
        for fd in (from_us, from_it, to_us):
            held.callback(os.close, fd)
        with ExitStack() as alive:
            alive.callback(os.close, to_it)
            pid = os.posix_spawnp(
                command[0],
                [*command, "cat"],
                {"PATH": os.environ.get("PATH", os.defpath)},
                file_actions=[(os.POSIX_SPAWN_DUP2, from_us, 0), (os.POSIX_SPAWN_DUP2, to_us, 1)],
            )
            held.callback(os.waitpid, pid, 0)
            os.write(to_it, b".")  # what comes back says that it has got there
            if _answer(from_it, pid) != b".":
                raise OSError(errno.EPERM, f"{' '.join(command)} does not work")
            yield pid


def idmapped(path: str, namespace: int) -> int:
    """Return the fd of a detached mount of the directory *path*, its owners mapped; the caller closes it.

    Raises OSError: EINVAL where the file system has no idmapped mounts.
    """
    fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE)
    try:
        mount_setattr(fd, "", AT_EMPTY_PATH, MOUNT_ATTR_IDMAP, userns_fd=namespace)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _answer(fd: int, pid: int) -> bytes:
    """Read a byte, or nothing if the process has ended without writing one."""
    import select

    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()  # not select(2), which knows no descriptor above 1023
        for one in (fd, pidfd):
            poll.register(one, select.POLLIN)
        readable = [one for one, _ in poll.poll()]
        return os.read(fd, 1) if fd in readable else b""
    finally:
        os.close(pidfd)


def _write(path: str, ranges: Sequence[Range]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{one.inside} {one.outside} {one.length}\n" for one in ranges).encode())
    finally:
        os.close(fd)
