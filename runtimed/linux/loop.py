"""Loop devices: a file as a block device (loop(4), Documentation/admin-guide/blockdev)."""

import errno
import fcntl
import os
import struct

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4

_LOOP_CLR_FD = 0x4C01
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82

# struct loop_config: fd, block size, struct loop_info64 (its flags after five u64 and three u32), reserved.
_BEFORE_FLAGS = 8 + 5 * 8 + 3 * 4
_SIZE = 8 + 232 + 64
_TRIES = 32  # another process may take the device that is free


def attach(file: str, flags: int = 0) -> int:
    """Make *file* a block device; return an open fd of the device, whose path is :func:`path_of` it.

    With LO_FLAGS_AUTOCLEAR the device goes with its last user, a mount or the fd; else with :func:`detach`.

    Raises OSError: ENOENT without loop devices, EBUSY when others have taken each that was free.
    """
    is_read_only = bool(flags & LO_FLAGS_READ_ONLY)
    mode = (os.O_RDONLY if is_read_only else os.O_RDWR) | os.O_CLOEXEC
    backing = os.open(file, mode | os.O_NOFOLLOW)
    try:
        config = bytearray(struct.pack("<II", backing, 0).ljust(_SIZE, b"\0"))
        struct.pack_into("<I", config, _BEFORE_FLAGS, flags)
        for _ in range(_TRIES):
            device = os.open(f"/dev/loop{_free()}", mode)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:
                    raise
            else:
                return device
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/dev/loop*")


def detach(device: str) -> None:
    """Let the file of *device* go; if the device is in use, when its last user lets go. Not attached is fine."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
    finally:
        os.close(fd)


def path_of(fd: int) -> str:
    """Return the path of an open device."""
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  a magic link, not a path


def _free() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
