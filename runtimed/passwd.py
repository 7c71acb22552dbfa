"""Who a container runs as: a user as people and images write it, to numbers.

Image and container write etc/passwd and etc/group, and the image its config: all three are hostile. Digits are always a
number and never looked up as a name (CVE-2026-46680), numbers end at 2^31-1 (CVE-2024-40635), and the files are read
within the root they belong to, only if they are regular and not absurdly large.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runtimed.errors import InvalidArgument, NotFound, os_errors
from runtimed.oci.runtime_spec import ROOT, User

MAX_ID = 2**31 - 1
_MAX_FILE = 4 << 20  # bytes; some tens of thousands of users
_MAX_GROUPS = 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,255}\$?")


def numeric(text: str) -> User | None:
    """Return the user if *text* says it all: nothing, ``0``, or ``uid:gid``; None if the rootfs has to be asked.

    Raises:
        InvalidArgument: *text* is not ``user[:group]``.
    """
    if not text or text == "0":
        return ROOT
    user, group = parse(text)
    if isinstance(user, int) and isinstance(group, int):
        return User(uid=user, gid=group)
    return None


class Account(msgspec.Struct, frozen=True):
    """A line of etc/passwd, or a number that it does not have (with no name)."""

    name: str
    uid: int
    gid: int


class Accounts:
    """The users and groups of a root file system, read once."""

    def __init__(self, root: Path) -> None:
        """Read etc/passwd and etc/group below *root*; a file that is missing has nothing in it.

        Raises:
            InvalidArgument: a file is not one we would read.
            NotFound: *root* is not there.
        """
        with os_errors(f"rootfs {root}"):
            root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            users, groups = _read(root_fd, "etc/passwd"), _read(root_fd, "etc/group")
        finally:
            os.close(root_fd)
        self.size = len(users) + len(groups)  # bytes of both files
        self._users, self._groups = list(_entries(users)), list(_entries(groups))

    def user(self, user: int | str) -> Account:
        """Return the account of *user*; a number that has none is that user, with group 0.

        Raises:
            NotFound: no such name.
        """
        return Account(*_user(user, self._users))

    def group(self, group: int | str) -> int:
        """Return the number of *group*. Raises NotFound."""
        return _group(group, self._groups)

    def further_groups(self, account: Account) -> tuple[int, ...]:
        """Return the groups, other than its own, that have *account* as a member. Raises InvalidArgument: too many."""
        further = _further_groups(account.name, account.gid, self._groups)
        if len(further) > _MAX_GROUPS:
            raise InvalidArgument(f"user {account.name!r} is in more than {_MAX_GROUPS} groups")
        return tuple(sorted(further))


def resolve(text: str, root: Path) -> User:
    """Return the user that *text* is in the rootfs at *root*.

    A number that passwd does not know is that user, with group 0; a user's further groups are found in etc/group.

    Raises:
        InvalidArgument: *text* is not ``user[:group]``, or a file is not one we would read.
        NotFound: no such user or group in the image.
    """
    found = numeric(text)
    if found:
        return found
    user, group = parse(text)
    accounts = Accounts(root)
    account = accounts.user(user)
    if group is not None:
        return User(uid=account.uid, gid=accounts.group(group))
    return User(uid=account.uid, gid=account.gid, additional_gids=accounts.further_groups(account))


def _further_groups(name: str, gid: int, entries: list[list[str]]) -> set[int]:
    """Return the groups other than *gid* that list *name* as a member."""
    further = set()
    for fields in entries:
        found = _id(fields)
        if found is not None and found != gid and name and len(fields) > 3 and name in fields[3].split(","):
            further.add(found)
    return further


def parse(text: str) -> tuple[int | str, int | str | None]:
    """Return user and group that *text* names. Raises InvalidArgument: not ``user[:group]``."""
    user, colon, group = text.partition(":")
    return _part(text, user), _part(text, group) if colon else None


def _part(text: str, part: str) -> int | str:
    if part.isascii() and part.isdigit():
        if len(part) <= 10 and int(part) <= MAX_ID:
            return int(part)
        raise InvalidArgument(f"user {text[:64]!r}: {part[:16]!r} is larger than {MAX_ID}")
    if not _NAME.fullmatch(part):
        raise InvalidArgument(f"user {text[:64]!r} is not of the form NAME[:GROUP] or UID[:GID]")
    return part


def _user(user: int | str, entries: list[list[str]]) -> tuple[str, int, int]:
    """Return name, uid and gid of *user*."""
    for fields in entries:
        if len(fields) < 4 or (uid := _id(fields)) is None or not fields[3].isdigit():
            continue
        if user in (fields[0], uid):
            return fields[0], uid, min(int(fields[3][:10]), MAX_ID)
    if isinstance(user, int):
        return "", user, 0
    raise NotFound(f"user {user!r} is not in the image's etc/passwd")


def _group(group: int | str, entries: list[list[str]]) -> int:
    if isinstance(group, int):
        return group
    for fields in entries:
        gid = _id(fields)
        if fields[0] == group and gid is not None:
            return gid
    raise NotFound(f"group {group!r} is not in the image's etc/group")


def _id(fields: list[str]) -> int | None:
    """Return the third field, uid of passwd and gid of group, if it is one."""
    if len(fields) < 3 or not fields[2].isascii() or not fields[2].isdigit() or len(fields[2]) > 10:
        return None
    return int(fields[2]) if int(fields[2]) <= MAX_ID else None


def _entries(text: bytes) -> Iterator[list[str]]:
    for line in text.decode(errors="replace").split("\n"):
        if line and not line.startswith("#"):
            yield line.split(":")


def _read(root_fd: int, path: str) -> bytes:
    """Return the file *path* within the root, b"" if there is none. Raises InvalidArgument."""
    from runtimed.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2  # here: it loads ctypes

    resolve_flags = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    try:
        # O_PATH first: opening a device or a FIFO does something.
        fd = openat2(os.fsencode(path), os.O_PATH, dir_fd=root_fd, resolve=resolve_flags)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as exc:
        raise InvalidArgument(f"the image's {path}: {exc.strerror}") from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(f"the image's {path} is not a regular file; give the user in numbers, as 1000:1000")
        if status.st_size > _MAX_FILE:
            raise InvalidArgument(f"the image's {path} is larger than {_MAX_FILE} bytes; give the user in numbers")
        with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            return file.read(_MAX_FILE)
    finally:
        os.close(fd)
