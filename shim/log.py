"""What a shim has to say, to the FIFO ``log`` in its bundle, where a daemon made one and reads it.

Lines are those of containerd's shims. Not the standard library's logging: that loads threading, whose care for forks
alone costs each shim a third of a megabyte.
"""

import os
from contextlib import suppress

DEBUG, INFO, WARNING, ERROR = range(4)
_NAMES = ("debug", "info", "warning", "error")

_fd = -1
_least = INFO


def open_in_bundle(*, debug: bool) -> None:
    """Send what is logged from here on to the FIFO in the working directory; to nowhere if nobody reads one."""
    global _fd, _least
    _least = DEBUG if debug else INFO
    _fd = -1
    with suppress(OSError):
        _fd = os.open("log", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def fileno() -> int:
    """Return the descriptor of the log; -1 if there is none."""
    return _fd


def debug(message: str) -> None:
    _write(DEBUG, message)


def info(message: str) -> None:
    _write(INFO, message)


def warning(message: str) -> None:
    _write(WARNING, message)


def error(message: str) -> None:
    _write(ERROR, message)


def exception(message: str, exc: BaseException) -> None:
    """Log an error with where it came from."""
    import traceback  # here: it loads much, and is hardly ever needed

    _write(ERROR, "\n".join([message, *traceback.format_exception(exc)]))


def _write(level: int, message: str) -> None:
    """A line that does not fit is lost rather than waited for."""
    if _fd < 0 or level < _least:
        return
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    with suppress(OSError):
        os.write(_fd, f'level={_NAMES[level]} msg="{quoted}"\n'.encode(errors="replace"))
