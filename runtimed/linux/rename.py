"""renameat2(2): two names exchanged in one step."""

import ctypes
import os

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str) -> None:
    """Give what is at *one* the name *other* and the reverse. Raises OSError; ENOENT: one is not there."""
    result = _libc.renameat2(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(one)),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(other)),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), one, None, other)
