"""Reading the log of a container: a file with what it wrote, or one in Kubernetes' format (``cri://``)."""

import os
import stat
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from runtimed.errors import FailedPrecondition, InvalidArgument, os_errors

SCHEMES = ("file", "cri")  # what can be read

_CHUNK = 1 << 16  # bytes


def path_of(uri: str) -> Path | None:
    """Return the file that *uri* names; None if it names something else, such as a FIFO or a program."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in SCHEMES and not parts.netloc else None


class LogFile:
    """An open log, in a ``with`` block; :meth:`copy` goes on where it ended the last time."""

    def __init__(self, uri: str, *, since: datetime | None = None, timestamps: bool = False) -> None:
        """Of a log in Kubernetes' format, only the lines of *since* and later, each with its time if *timestamps*.

        Raises NotFound, PermissionDenied, InvalidArgument: what *uri* names is no regular file.
        """
        path = path_of(uri)
        if path is None:
            raise FailedPrecondition(f"output goes to {uri}, and cannot be read from there")
        self._path = path
        self._is_cri = urlsplit(uri).scheme == "cri"
        self._fd = _open(path)
        self._begun = b""  # a line of the log that has no end yet
        self._since = since
        self._timestamps = timestamps
        self._is_inside = False  # a line of the process has been begun, and is to go on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def skip_to_last(self, lines: int) -> None:
        """Go to where the last *lines* lines of the file begin."""
        os.lseek(self._fd, _start_of_last(self._fd, lines), os.SEEK_SET)

    def copy(self) -> None:
        """Copy what there is to standard output, and of a log that tells them apart errors to standard error."""
        self._copy()
        while self._is_cri and self._go_on_in_new_file():
            self._copy()

    def _copy(self) -> None:
        sys.stdout.flush()
        while data := os.read(self._fd, _CHUNK):
            if self._is_cri:
                self._copy_lines(data)
            else:
                sys.stdout.buffer.write(data)
        sys.stdout.flush()
        sys.stderr.flush()

    def _copy_lines(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        last: BinaryIO = sys.stdout.buffer
        for line in lines:
            output, at, text = _parsed(line)
            if self._since is not None and not self._is_due(at):
                continue
            if self._timestamps and not self._is_inside:
                text = at + b" " + text
            self._is_inside = not text.endswith(b"\n")
            if output is not last:
                last.flush()  # so that a terminal has both in the order of the log
            output.write(text)
            last = output

    def _is_due(self, at: bytes) -> bool:
        """Say whether a line of this time is wanted: all are from the first one on, clocks go back now and then."""
        assert self._since is not None
        try:
            if datetime.fromisoformat(at.decode()) < self._since:
                return False
        except (ValueError, TypeError):  # a line torn by a full disk
            return False
        self._since = None
        return True

    def _go_on_in_new_file(self) -> bool:
        """Open the file that has the name now if the one that had it was rotated; that one has been read to its end."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), self._path.lstat()):
                return False
            self._copy()  # what came between the last look at it and its renaming
            fd = _open(self._path)
            os.close(self._fd)
            self._fd, self._begun = fd, b""
            return True
        return False  # not made yet


def _parsed(line: bytes) -> tuple[BinaryIO, bytes, bytes]:
    """Return where a line of the log belongs, its time and its text.

    One that is none, a line torn by a full disk, is taken as it is, without a time.
    """
    words = line.split(b" ", 3)
    if len(words) < 4 or words[1] not in {b"stdout", b"stderr"}:
        return sys.stdout.buffer, b"-", line + b"\n"
    at, stream, tag, text = words
    output = sys.stdout.buffer if stream == b"stdout" else sys.stderr.buffer
    return output, at, text if tag.partition(b":")[0] == b"P" else text + b"\n"


def _open(path: Path) -> int:
    with os_errors(f"log {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"log {path} is not a regular file")
    return fd


def _start_of_last(fd: int, lines: int) -> int:
    """Return the offset at which the last *lines* lines of the file begin, reading from its end."""
    position = size = os.fstat(fd).st_size
    wanted = lines
    if size and os.pread(fd, 1, size - 1) == b"\n":
        wanted += 1  # the newline that ends the last line begins no other
    if not lines:
        return size
    while position > 0:
        begin = max(0, position - _CHUNK)
        chunk = os.pread(fd, position - begin, begin)
        newlines = chunk.count(b"\n")
        if newlines >= wanted:
            index = len(chunk)
            for _ in range(wanted):
                index = chunk.rindex(b"\n", 0, index)
            return begin + index + 1
        wanted -= newlines
        position = begin
    return 0
