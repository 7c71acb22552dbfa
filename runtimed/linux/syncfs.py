"""syncfs(2)."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Write everything of the file system that *fd* is on to disk; errors of that writing are raised. Blocks."""
    if _libc.syncfs(ctypes.c_int(fd)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
