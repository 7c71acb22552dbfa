"""mount(2), umount2(2) and the file-descriptor calls beside them (fsopen(2) and following).

Names and constants are the kernel's. Everything raises OSError and follows no policy. The newer calls go through
syscall(2), because glibc knows them only since 2.36; their numbers are the same on every architecture.
"""

import ctypes
import errno
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_IDMAP = 0x100000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

PAGE_SIZE = os.sysconf("SC_PAGESIZE")

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442

_ATTRIBUTES = {
    MS_RDONLY: MOUNT_ATTR_RDONLY,
    MS_NOSUID: MOUNT_ATTR_NOSUID,
    MS_NODEV: MOUNT_ATTR_NODEV,
    MS_NOEXEC: MOUNT_ATTR_NOEXEC,
    MS_NODIRATIME: MOUNT_ATTR_NODIRATIME,
    MS_NOSYMFOLLOW: MOUNT_ATTR_NOSYMFOLLOW,
    MS_NOATIME: MOUNT_ATTR_NOATIME,
    MS_STRICTATIME: MOUNT_ATTR_STRICTATIME,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2).

    *data* of a page or more is refused with E2BIG. The kernel would cut it, and either answer ENOENT or, worse, mount
    a stack with layers missing.
    """
    options = os.fsencode(data)
    if len(options) >= PAGE_SIZE:
        raise OSError(errno.E2BIG, f"mount options of {len(options)} bytes do not fit in a page", target)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(fstype), flags, options if options else None
    )
    _check(result, target)


def umount2(target: str, flags: int) -> None:
    """umount2(2): take the topmost mount off *target*."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """fsopen(2): return the fd of a new file system configuration; the caller closes it."""
    return _syscall(_SYS_FSOPEN, ctypes.c_char_p(os.fsencode(fstype)), ctypes.c_uint(flags), subject=fstype)


def fsconfig(fd: int, cmd: int, key: str = "", value: str = "", aux: int = 0) -> None:
    """fsconfig(2) with a string value. Values of more than 255 bytes are EINVAL in the kernel."""
    _syscall(
        _SYS_FSCONFIG,
        ctypes.c_int(fd),
        ctypes.c_uint(cmd),
        ctypes.c_char_p(os.fsencode(key)) if key else None,
        ctypes.c_char_p(os.fsencode(value)) if cmd == FSCONFIG_SET_STRING else None,
        ctypes.c_int(aux),
        subject=key,
    )


def fsmount(fd: int, attributes: int, flags: int = FSMOUNT_CLOEXEC) -> int:
    """fsmount(2): return the fd of a detached mount with MOUNT_ATTR_* *attributes*; the caller closes it."""
    return _syscall(_SYS_FSMOUNT, ctypes.c_int(fd), ctypes.c_uint(flags), ctypes.c_uint(attributes), subject="")


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): return the fd of a mount, or with OPEN_TREE_CLONE of a detached copy; the caller closes it."""
    return _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(dirfd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
        subject=path,
    )


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2): put the detached mount *from_fd* on what *to_fd* (may be O_PATH) refers to."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    empty = ctypes.c_char_p(b"")
    _syscall(
        _SYS_MOVE_MOUNT, ctypes.c_int(from_fd), empty, ctypes.c_int(to_fd), empty, ctypes.c_uint(flags), subject=""
    )


def mount_setattr(
    dirfd: int, path: str, flags: int, attr_set: int, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    """mount_setattr(2): change attributes (MOUNT_ATTR_*) or propagation (MS_*) of a mount, leaving the others."""
    attr = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    _syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(dirfd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
        subject=path,
    )


def attributes_of(flags: int) -> tuple[int, int]:
    """Return the MOUNT_ATTR_* to set and to clear that stand for the per-mount ones among MS_* *flags*."""
    attr_set = attr_clr = 0
    for flag, attribute in _ATTRIBUTES.items():
        if flags & flag:
            attr_set |= attribute
    if flags & (MS_NOATIME | MS_RELATIME | MS_STRICTATIME):
        attr_clr |= MOUNT_ATTR__ATIME  # a choice of one, so the old one must go
    return attr_set, attr_clr


def _syscall(number: int, *args: object, subject: str) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args), subject)


def _check(result: int, subject: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), subject)
    return result
