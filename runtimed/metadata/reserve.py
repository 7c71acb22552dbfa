"""Disk space set aside, so that things can still be deleted when there is none left.

Deleting writes too: the record of it. On a full disk that would fail, and with it the way to free space.
"""

import os
from contextlib import suppress
from pathlib import Path

_SIZE = 4 << 20  # bytes; SQLite's log is written back, and starts over, at about that size


class Reserve:
    """A file that only takes up room. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Set the space aside if it is not; a disk that is too full for that is no error: it may have room later."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size == _SIZE:
                return
            with self._path.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, _SIZE)
                except OSError:
                    file.truncate(0)

    def release(self) -> bool:
        """Give the space up until the next :meth:`fill`; say whether there was any."""
        try:
            size = self._path.stat().st_size
            os.truncate(self._path, 0)
        except OSError:
            return False
        return size > 0
