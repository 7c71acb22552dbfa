"""Container logs as Kubernetes has them, written by the shim: ``cri://PATH?max_line=N``.

A line of the file is ``TIME STREAM TAG TEXT``: a time of RFC 3339 in UTC with nanoseconds, ``stdout`` or ``stderr``,
``F`` where the process ended the line, ``P`` where it goes on in the next one of the same stream: after *max_line*
bytes (16 KiB unless given), and at the end of a stream that stops within a line. (Kubernetes' kubelet reads them in
pkg/kubelet/kuberuntime/logs.)

Whoever rotates logs renames the file and does nothing more: before each batch the file by that name is compared with
the open one, and opened or made if it is another. What cannot be written, on a full disk say, is dropped and counted,
so that the process never waits for it; once it can be again, a line in the log tells how much is missing. Without a
path, ``cri://``, nothing is written anywhere: only clients that are attached get the output (``shim.attach``).
"""

import os
import stat
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from runtimed.errors import InvalidArgument, RuntimedError, os_errors
from shim import log, loop, poller
from shim.sinks import Origin
from shim.stdio import Output

if TYPE_CHECKING:
    from shim.attach import Clients

_MAX_LINE = 16 << 10  # bytes
_LARGEST_MAX_LINE = 1 << 20

_CHUNK = 64 << 10  # bytes read at once, the size of a pipe
_SETTLING = 64  # chunks that are taken at the end of the process at most; who else writes may do so for ever

_HEAD = len("2006-01-02T15:04:05.000000000Z stdout F ")  # the same for each line
_TAG = _HEAD - 2


class CriLog:
    """One log; see :class:`shim.sinks.Sink`."""

    def __init__(self, uri: str, stream: str, origin: Origin) -> None:
        """Raises InvalidArgument when *uri*, that of *stream*, names no file, or with an option there is not."""
        path, self._max_line = _parse(uri, stream)
        self._file = _File(path) if path else _NoFile()
        self._origin = origin
        self._streams: list[_Stream] = []
        self._clients: Clients | None = None  # there are none before somebody is attached

    def output(self, stream: str) -> Output:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._streams.append(_Stream(self._file, reader, stream, self._max_line))
        if self._origin.uid or self._origin.gid:
            os.fchown(writer, self._origin.uid, self._origin.gid)
        return _Output(writer, self._streams[-1])

    async def open(self) -> None:
        """Open the file. Raises NotFound for a directory that is not there, PermissionDenied, ..."""
        self._file.open()
        for stream in self._streams:
            stream.begin()

    def attach(self, path: str) -> None:
        if self._clients is None:
            from shim.attach import Clients  # here: of no use to most

            self._clients = Clients(self._streams)
            for stream in self._streams:
                stream.clients = self._clients
        self._clients.add(path)

    def settle(self) -> None:
        for stream in self._streams:
            stream.settle()

    async def drained(self) -> None:
        for stream in self._streams:
            await stream.ended.wait()

    def close(self) -> None:
        for stream in self._streams:
            stream.stop()
        self._file.close()

    async def closed(self) -> None:
        if self._clients is not None:
            await self._clients.gone()


class _Output(Output):
    """The process's end of a pipe; its terminal, if it has one, is read without the pipe."""

    def __init__(self, writer: int, stream: "_Stream") -> None:
        super().__init__(writer)
        self._stream = stream

    def take(self, master: int) -> "_Stream":
        self.close()
        self._stream.replace(master)
        return self._stream


class _Stream:
    """One of the streams, from its pipe or terminal to the file."""

    def __init__(self, file: "_File", reader: int, name: str, max_line: int) -> None:
        self.ended = loop.Event()
        self.clients: Clients | None = None
        self._file = file
        self._reader = reader
        self._name = name
        self._lines = Lines(name, max_line)
        self._is_own = True
        self._is_watched = False

    def begin(self) -> None:
        self._is_watched = True
        self.go_on()

    def hold(self) -> None:
        if not self.ended.is_set():
            poller.remove_reader(self._reader)

    def go_on(self) -> None:
        if not self.ended.is_set():
            poller.add_reader(self._reader, self._step, resumable=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._is_watched and not self.ended.is_set():
            self.begin()

    def replace(self, master: int) -> None:
        """Read from the terminal's *master* instead of the pipe; it is somebody else's, who closes it later."""
        poller.remove_reader(self._reader)
        os.close(self._reader)
        self._reader, self._is_own = master, False
        self.begin()

    def settle(self) -> None:
        for _ in range(_SETTLING):
            if self.ended.is_set() or not self._step():
                break

    def stop(self) -> None:
        """Write the beginning of a line that there is, and read no more."""
        if not self.ended.is_set():
            self._file.write(self._lines.end(_now()))
            if self._is_watched:
                poller.remove_reader(self._reader)
            if self._is_own:
                os.close(self._reader)
            self.ended.set()
            if self.clients is not None:
                self.clients.end()

    def _step(self) -> bool:
        """Take what is there; return whether there may be more."""
        try:
            data = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO, the end of a terminal
            data = b""
        if not data:
            self.stop()
            return False
        self._file.write(self._lines.cut(data, _now()))
        if self.clients is not None:
            self.clients.give(self._name, data)
        return True


class Lines:
    """Makes lines of a log from one stream. A line is not begun before it has ended or is too long."""

    def __init__(self, stream: str, max_line: int) -> None:
        self._stream = f" {stream} ".encode()
        self._max = max_line
        self._rest = b""

    def cut(self, data: bytes, now: bytes) -> bytes:
        """Return the lines that are complete with *data*, each at the time *now*."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        head = now + self._stream
        full = head + b"F "
        if len(self._rest) <= self._max and (not lines or max(map(len, lines)) <= self._max):
            return full + (b"\n" + full).join(lines) + b"\n" if lines else b""
        cut: list[bytes] = []
        for line in lines:
            cut += (full, self._shortened(line, head, cut), b"\n")
        self._rest = self._shortened(self._rest, head, cut)
        return b"".join(cut)

    def end(self, now: bytes) -> bytes:
        """Return what is left when the stream has ended."""
        rest, self._rest = self._rest, b""
        return now + self._stream + b"P " + rest + b"\n" if rest else b""

    def _shortened(self, line: bytes, head: bytes, cut: list[bytes]) -> bytes:
        """Move what a line has too much to *cut*, in parts; return its last part."""
        while len(line) > self._max:
            cut += (head, b"P ", line[: self._max], b"\n")
            line = line[self._max :]
        return line


class _File:
    """The file, the one by that name or, while there is none to be had, the last one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._opened: tuple[int, int] | None = None  # device and inode
        self._is_torn = False  # the last line has no end
        self._lost = 0  # bytes of output since it could be written last
        self._cannot_open = False

    def open(self) -> None:
        """Open or make the file. Raises InvalidArgument if it is none, NotFound, PermissionDenied, ..."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os_errors(f"log {self._path}"):
            fd = os.open(self._path, flags, 0o640)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise InvalidArgument(f"log {self._path} is not a regular file")
        self._close()
        self._fd = fd
        self._opened = (found.st_dev, found.st_ino)
        self._is_torn = False

    def write(self, lines: bytes) -> None:
        """Write, or drop and count."""
        if not lines:
            return
        self._follow()
        if self._lost and not self._tell():
            self._lost += _size(lines)
        elif error := self._write(lines):
            log.warning(f"log {self._path}: {error}: output is dropped until it can be written")

    def close(self) -> None:
        """Close the file, and tell what could not be told before."""
        if self._lost and not self._tell():
            log.warning(f"log {self._path}: {self._lost} bytes of output were lost")
        self._close()

    def _tell(self) -> bool:
        """Write how much was lost; return whether that could be written."""
        lost, self._lost = self._lost, 0
        notice = f" stderr F [runtimed: {lost} bytes of output could not be written and are lost]\n"
        if self._write(_now() + notice.encode()):
            self._lost = lost
            return False
        log.info(f"log {self._path}: it can be written again; {lost} bytes of output were lost")
        return True

    def _write(self, lines: bytes) -> str:
        """Write whole lines; return "" or why that failed, with what is not written counted as lost."""
        if self._is_torn:
            lines = b"\n" + lines
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, memoryview(lines)[written:])
        except OSError as exc:
            if written:
                self._is_torn = lines[written - 1] != ord("\n")
            self._lost += _size(lines[lines.rfind(b"\n", 0, written) + 1 :])
            return exc.strerror or type(exc).__name__
        self._is_torn = False
        return ""

    def _follow(self) -> None:
        """Go on in the file that has the name now, if it is another one."""
        try:
            found = os.stat(self._path, follow_symlinks=False)  # noqa: PTH116 - a string all the way
            if (found.st_dev, found.st_ino) == self._opened:
                return
        except OSError:
            pass
        try:
            self.open()
            self._cannot_open = False
        except RuntimedError as exc:
            if not self._cannot_open:
                log.warning(f"{exc}: the log goes on in the file that had this name before")
            self._cannot_open = True

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _NoFile(_File):
    """In a file's place where there is to be none."""

    def __init__(self) -> None:
        super().__init__("")

    def open(self) -> None:
        pass

    def write(self, lines: bytes) -> None:
        pass


def _now() -> bytes:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanoseconds


def _size(lines: bytes) -> int:
    """Return how many bytes of a process's output are in whole lines of a log."""
    return sum(len(line) - _HEAD + (line[_TAG:_HEAD] == b"F ") for line in lines.split(b"\n") if line)


def _parse(uri: str, stream: str) -> tuple[str, int]:
    """Return the path, "" if there is to be no file, and the longest line."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc or (path and not path.startswith("/")) or "\0" in path:
        raise InvalidArgument(f"{stream} {uri!r}: the path must be absolute, as in cri:///var/log/x")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    text = options.pop("max_line", str(_MAX_LINE))
    if options:
        raise InvalidArgument(f"{stream} {uri!r}: there is no option {next(iter(options))!r}, only max_line")
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _LARGEST_MAX_LINE):
        raise InvalidArgument(f"{stream} {uri!r}: max_line must be a number of bytes from 1 to {_LARGEST_MAX_LINE}")
    return path, int(text)
