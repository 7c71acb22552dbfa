"""capset(2) and the numbers of capabilities(7)."""

import ctypes
import os
from collections.abc import Iterable
from enum import IntEnum


class Cap(IntEnum):
    """Some of the capabilities, with the kernel's numbers."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    SYS_CHROOT = 18
    SYS_ADMIN = 21
    MKNOD = 27
    SETFCAP = 31


_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def permitted() -> set[int]:
    """Return the calling thread's permitted capabilities (capget(2))."""
    header, data = _Header(_LINUX_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(data)))
    mask = data[0].permitted | data[1].permitted << 32
    return {number for number in range(64) if mask >> number & 1}


def restrict(keep: Iterable[int]) -> None:
    """Give up the calling thread's capabilities but those in *keep*, and let none be inherited (capset(2))."""
    mask = sum(1 << number for number in permitted().intersection(keep))
    header, data = _Header(_LINUX_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    for word, part in enumerate((mask & 0xFFFFFFFF, mask >> 32)):
        data[word] = _Data(part, part, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
