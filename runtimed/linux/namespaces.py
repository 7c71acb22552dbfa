"""unshare(2): leave what a thread shares with its process. Python has it as os.unshare from 3.12 on."""

import ctypes
import os

CLONE_FS = 0x200  # working directory, root and umask
CLONE_NEWNS = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread. Call it only in a thread made for the purpose, which then ends."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def setns(fd: int, nstype: int) -> None:
    """setns(2), for the calling thread. In a mount namespace, root and working directory become its "/"."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(nstype)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
