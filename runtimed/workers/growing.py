"""Reading a file that somebody else still writes."""

import os
from collections.abc import Iterator
from typing import Self

from runtimed.errors import Unavailable
from runtimed.linux.writeback import Writeback
from runtimed.workers import jobs


class Growing:
    """The bytes of the file of *job*, waited for where there are none yet, until *lines* say that it is whole."""

    def __init__(self, job: jobs.Follow, lines: Iterator[bytes]) -> None:
        """Raises OSError."""
        self._fd = os.open(job.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._lines = lines
        self._there = jobs.Grown(0)
        self._taken = 0
        self._writeback = Writeback(self._fd, keep=False)  # it is not read again soon

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, b"" at the end. Raises OSError; Unavailable if nobody says how far it is."""
        while self._taken == self._there.size and not self._there.is_whole:
            line = next(self._lines, None)
            if line is None:
                raise Unavailable("the daemon does not say how far the file is")
            self._there = jobs.decode_growth(line)
        data = os.pread(self._fd, min(size, self._there.size - self._taken), self._taken)
        self._taken += len(data)
        self._writeback.grown(self._taken)
        return data
