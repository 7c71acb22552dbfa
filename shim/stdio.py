"""The streams of a process.

A stream is named by a path or URI: "" is /dev/null; a FIFO, which the client makes and opens; ``fifo://PATH``;
``file://PATH``, or the path of a regular file, to which output is appended. ``shim.sinks`` has more, for output.

Output FIFOs are handed to the container itself; no byte passes through the shim. Input is a pipe that the shim feeds
from the client's FIFO, because the shim must be able to end it (CloseIO) while the client still has its end open, and
because a reader must not appear before Start: a client that sees its input end before it has a task never calls
CloseIO.
"""

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runtimed.errors import InvalidArgument, os_errors
from shim import loop
from shim.pump import Pump

if TYPE_CHECKING:
    from shim.sinks import Sinks


_FIFO_SIZE = 256 << 10  # bytes; what is in it counts as the container's memory, so not as much as there may be


class Paths(NamedTuple):
    """Where the streams of a process lead, as the client gave it."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


def path_of(uri: str, stream: str) -> str:
    """Return the path of *uri*. Raises InvalidArgument for a scheme that is not one of ours or a relative path."""
    scheme, separator, path = uri.partition("://")
    if not separator:
        path = uri
    elif scheme not in {"fifo", "file"}:
        others = "" if stream == "stdin" else ", file://, cri:// or binary://"
        raise InvalidArgument(f"{stream} {uri!r}: scheme {scheme!r} is not supported, use a FIFO{others}")
    elif scheme == "file" and "%" in path:
        from urllib.parse import unquote  # here: of no use to most

        path = unquote(path)
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{stream} {uri!r}: the path must be absolute")
    return path


class Taking(Protocol):
    """What takes the output of a terminal, until *ended*."""

    ended: loop.Event

    def stop(self) -> None: ...


class Output:
    """One opened output: *writer* is for the process; *reader*, if any, keeps a FIFO alive without the client.

    With no reader left, a client that detaches would end the container by SIGPIPE; so it only waits once the FIFO is
    full.
    """

    def __init__(self, writer: int, reader: int = -1) -> None:
        self.writer = writer
        self.reader = reader

    @classmethod
    def open(cls, uri: str, stream: str, uid: int = 0, gid: int = 0) -> "Output":
        """Open *uri*; a FIFO or new file gets the owner *uid*, *gid* if that is not root.

        Raises:
            InvalidArgument: the FIFO is not there, or *uri* names something else than a stream.
        """
        if not uri:
            return cls(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        path = path_of(uri, stream)
        if uri.startswith("file://"):
            with os_errors(f"{stream} {uri!r}"):
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - a string all the way
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
                writer = os.open(path, flags, 0o644)
            return cls(_checked(writer, stream, uri, uid, gid, fifo=False))
        # O_RDWR first: it never waits for a peer, as the other two do.
        both = _checked(_open_existing(path, os.O_RDWR, stream), stream, uri, uid, gid)
        try:
            if not stat.S_ISFIFO(os.fstat(both).st_mode):
                return cls(reopened(both, os.O_WRONLY | os.O_APPEND))
            _widen(both)
            output = cls(reopened(both, os.O_WRONLY))
            output.reader = reopened(both, os.O_RDONLY | os.O_NONBLOCK)
            return output
        finally:
            os.close(both)

    def take(self, master: int) -> "Taking":
        """Begin to move what comes from a terminal's *master*."""
        os.set_blocking(self.writer, False)
        return Pump(master, self.writer, self.handed_over)

    def handed_over(self) -> None:
        """Close the process's end: it has its own copy now, and the client must see the end when that is closed."""
        self.writer = _closed(self.writer)

    def close(self) -> None:
        self.handed_over()
        self.reader = _closed(self.reader)


class Input:
    """The input: a pipe whose *reader* is for the process, fed from the client's FIFO once :meth:`start` is called."""

    def __init__(self, uri: str, uid: int = 0, gid: int = 0) -> None:
        self.reader = -1
        self._path = ""
        self._feed = Source()
        if not uri:
            self.reader = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._writer = -1
            return
        self._path = checked_fifo(uri)
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        if uid or gid:
            os.fchown(self.reader, uid, gid)

    def handed_over(self) -> None:
        self.reader = _closed(self.reader)

    def start(self) -> None:
        """Open the FIFO and begin to feed the process. Raises InvalidArgument if the FIFO has gone meanwhile."""
        if self._writer >= 0:
            try:
                self._feed.open(self._path)
            except InvalidArgument:
                self._ended()
                raise
            self._feed.pump_to(self._writer, splice=True, done=self._ended)

    def close_client(self) -> None:
        """Let the process see the end of its input as soon as no client has the FIFO open for writing (CloseIO)."""
        self._feed.let_go()
        if not self._feed.opened:
            self._ended()  # CloseIO before Start: there is nothing to read any more

    def close(self) -> None:
        self._feed.close()
        self.handed_over()
        self._ended()

    def _ended(self) -> None:
        self._writer = _closed(self._writer)


class Pipes:
    """The three streams of a process without a terminal."""

    def __init__(self, paths: Paths, sinks: "Sinks") -> None:
        """Raises InvalidArgument, ...: one of *paths* cannot be opened. Those of *sinks* are for its owner to close."""
        self._input = Input(paths.stdin, sinks.origin.uid, sinks.origin.gid)
        try:
            self._stdout = sinks.output(paths.stdout, "stdout")
            try:
                self._stderr = sinks.output(paths.stderr, "stderr")
            except BaseException:
                self._stdout.close()
                raise
        except BaseException:
            self._input.close()
            raise

    @property
    def fds(self) -> tuple[int, int, int]:
        """What the process gets as its descriptors 0, 1 and 2; gone after :meth:`handed_over`."""
        return self._input.reader, self._stdout.writer, self._stderr.writer

    def handed_over(self) -> None:
        """Close the process's ends: it has them."""
        for stream in (self._input, self._stdout, self._stderr):
            stream.handed_over()

    def start(self) -> None:
        """Begin to feed the input. Raises InvalidArgument if its FIFO has gone meanwhile; the process sees its end."""
        self._input.start()

    def resize(self, width: int, height: int) -> None:
        """Nothing: these have no size."""

    def close_client(self) -> None:
        """End the input when no client has it open any more."""
        self._input.close_client()

    async def drained(self) -> None:
        """Wait until the client has all the output, which it has: the process wrote to the client's FIFO."""

    def close(self) -> None:
        for stream in (self._input, self._stdout, self._stderr):
            stream.close()


class Source:
    """A client's input FIFO, open for reading, and held open for writing so that it does not end by itself."""

    def __init__(self) -> None:
        self.opened = False
        self._reader = self._holder = -1
        self._pump: Pump | None = None
        self._done: Callable[[], None] | None = None

    def open(self, path: str) -> None:
        """Open the FIFO *path*. Raises InvalidArgument if it is not there."""
        self._reader = _open_existing(path, os.O_RDONLY | os.O_NONBLOCK, "stdin")
        self.opened = True
        self._holder = reopened(self._reader, os.O_WRONLY)  # there is a reader, so it does not wait

    def pump_to(self, writer: int, *, splice: bool, done: Callable[[], None] | None = None) -> None:
        """Move what comes to *writer* until the end, then close the FIFO and call *done*."""
        self._done = done
        self._pump = Pump(self._reader, writer, self._ended, splice=splice)

    def _ended(self) -> None:
        self.close()
        if self._done is not None:
            self._done()

    def let_go(self) -> None:
        self._holder = _closed(self._holder)

    def close(self) -> None:
        if self._pump is not None:
            self._pump.stop()
        self.let_go()
        self._reader = _closed(self._reader)


def checked_fifo(uri: str) -> str:
    """Return the path of the input FIFO *uri*, which is not opened. Raises InvalidArgument if it is not one."""
    path = path_of(uri, "stdin")
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a string all the way
    except OSError as exc:
        raise InvalidArgument(f"stdin {path!r}: {exc.strerror}; the client makes the FIFO before it calls") from exc
    if not stat.S_ISFIFO(mode):
        raise InvalidArgument(f"stdin {path!r} is not a FIFO")
    return path


def _open_existing(path: str, flags: int, stream: str) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as exc:
        raise InvalidArgument(f"{stream} {path!r}: {exc.strerror}; the client makes the FIFO before it calls") from exc


def _checked(fd: int, stream: str, uri: str, uid: int, gid: int, *, fifo: bool = True) -> int:
    """Return *fd* if it can be a stream, blocking and owned as asked; close it otherwise."""
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or (fifo and stat.S_ISFIFO(mode))):
            raise InvalidArgument(f"{stream} {uri!r} is not a {'FIFO' if fifo else 'regular file'}")
        os.set_blocking(fd, True)
        if (uid or gid) and not stat.S_ISCHR(mode):
            os.fchown(fd, uid, gid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _widen(fifo: int) -> None:
    """Let *fifo* hold more than the 64 KiB it has at first: then writer and reader wake each other less often."""
    with suppress(OSError):  # /proc/sys/fs/pipe-max-size may be less, and a user's pipes are limited (pipe(7))
        if fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ) < _FIFO_SIZE:
            fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, _FIFO_SIZE)


def reopened(fd: int, flags: int) -> int:
    """Return another description of the file behind *fd*: the same file, whatever its path names by now."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)


def _closed(fd: int) -> int:
    if fd >= 0:
        with suppress(OSError):
            os.close(fd)
    return -1
