"""A container's streams: FIFOs that the shim writes and reads, and the threads that copy them.

The copying is in threads because rctl's own stdin and stdout may block (a slow reader of a pipeline, a terminal that is
stopped) and may be shared with other programs, so they cannot be made non-blocking.
"""

import asyncio
import fcntl
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PREFIX = "rctl-"
_GRACE_S = 60.0
_CHUNK = 1 << 20  # bytes a splice moves at most
_PIPE_SIZE = 1 << 20  # bytes; the most an unprivileged user may ask for (pipe(7))
_AFTER_EXIT_MS = 1000  # a stream that is held open by a process left behind may be silent this long


class Fifos:
    """The FIFOs of one process, in a private, locked directory, opened at our ends before the shim knows of them.

    Opening never blocks: the output ends are opened for reading without waiting for a writer, the input end for both
    directions, so that bytes written before the shim opens it are kept. Nothing remains when the block ends; what a
    killed rctl leaves is removed by one that comes later.
    """

    def __init__(self, *, stdin: bool, stderr: bool) -> None:
        self._names = [name for name, wanted in (("stdin", stdin), ("stdout", True), ("stderr", stderr)) if wanted]
        self._fds: dict[str, int] = {}
        self._directory = Path()

    def path(self, name: str) -> str:
        """Return the path for the Task API; "" for a stream that is not wanted."""
        return str(self._directory / name) if name in self._names else ""

    def fd(self, name: str) -> int:
        return self._fds[name]

    def close(self, name: str) -> None:
        """Close our end of *name* if it is open."""
        fd = self._fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def __contains__(self, name: str) -> bool:
        return name in self._fds

    def __enter__(self) -> Self:
        parent = Path(_runtime_directory() or os.environ.get("TMPDIR") or "/tmp")
        _sweep(parent)
        self._directory = parent / f"{_PREFIX}{os.urandom(8).hex()}"
        self._directory.mkdir(mode=0o700)
        self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            for name in self._names:
                path = self._directory / name
                os.mkfifo(path, 0o600)
                mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
                fd = self._fds[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
                with suppress(PermissionError):  # the user has many pipes
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in self._names:
            self.close(name)
            (self._directory / name).unlink(missing_ok=True)
        self._directory.rmdir()
        os.close(self._lock)


def _runtime_directory() -> str | None:
    """Where FIFOs go: the user's runtime directory, else /run, else where temporary files go."""
    for directory in (os.environ.get("XDG_RUNTIME_DIR"), "/run"):
        if directory and os.access(directory, os.W_OK | os.X_OK):
            return directory
    return None


def _sweep(parent: Path) -> None:
    """Remove directories of our user whose rctl was killed: nobody holds their lock any more."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        # A new one may not have been locked yet.
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _GRACE_S:
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("stdin", "stdout", "stderr"):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
        path.rmdir()
    finally:
        os.close(fd)


class Copier:
    """A thread that copies one stream; *done* is called on the event loop with the error it ended with, if any."""

    def __init__(self, copy: Callable[[int, int, int], None], source: int, sink: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self._stop_read, self._stop_write = os.pipe()
        self._stopping = False
        # A daemon thread: one that is stuck in a write must not keep rctl from ending when it is told to.
        self._thread = threading.Thread(target=self._run, args=(copy, source, sink), daemon=True)
        self._thread.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Ask the thread to end: an output when it has been silent for a second or *at_once*, an input at once."""
        if not self._stopping:
            self._stopping = True
            if at_once:
                os.write(self._stop_write, b"!")
            os.close(self._stop_write)

    async def close(self) -> None:
        """Stop, and wait for the thread. Its error is in :attr:`finished`."""
        self.stop()
        await asyncio.wait([self.finished])
        self._thread.join()
        os.close(self._stop_read)

    def _run(self, copy: Callable[[int, int, int], None], source: int, sink: int) -> None:
        error: OSError | None = None
        try:
            copy(source, sink, self._stop_read)
        except OSError as exc:
            error = exc
        with suppress(RuntimeError):  # the loop is closed: rctl is ending
            self._loop.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: OSError | None) -> None:
        if error is None:
            self.finished.set_result(None)
        else:
            self.finished.set_exception(error)
            self.finished.exception()  # looked at by those who care; no complaint about the others


def copy_output(source: int, sink: int, stop: int) -> None:
    """Copy the FIFO *source* to *sink* until all writers are gone, or *stop* is closed and nothing comes for 1 s.

    With a byte in *stop*, it ends as soon as nothing is left to copy.

    Raises OSError: what writing to *sink* met.
    """
    move = _splice
    poller = select.poll()
    poller.register(source, select.POLLIN)
    poller.register(stop, select.POLLIN)
    timeout_ms: int | None = None
    while True:
        ready = dict(poller.poll(timeout_ms))
        if stop in ready:
            poller.unregister(stop)
            timeout_ms = 0 if os.read(stop, 1) else _AFTER_EXIT_MS
        if source in ready:
            try:
                moved = move(source, sink)
            except BlockingIOError:
                continue
            except _NoSplice:
                move = _read_write
                continue
            if not moved:
                return
        elif stop not in ready:
            return  # silent after the process has ended


class _NoSplice(Exception):
    """The sink cannot be spliced to: an append-only file, or a terminal of an older kernel."""


def _splice(source: int, sink: int) -> int:
    try:
        return os.splice(source, sink, _CHUNK)
    except BlockingIOError:
        # Either the FIFO has nothing after all, or the sink is a full pipe that somebody made non-blocking.
        return _read_write(source, sink)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        raise _NoSplice from None


def _read_write(source: int, sink: int) -> int:
    """Move what there is; b"" is the end. Raises BlockingIOError if the FIFO is empty."""
    data = os.read(source, _CHUNK)
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(sink, rest) :]
        except BlockingIOError:
            poller = select.poll()  # unlike select() it takes any descriptor
            poller.register(sink, select.POLLOUT)
            poller.poll()
    return len(data)


def copy_input(source: int, sink: int, stop: int) -> None:
    """Copy *source* to the FIFO *sink* until it ends or *stop* is closed."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    poller.register(stop, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if stop in ready:
            return
        try:
            data = os.read(source, 1 << 16)
        except BlockingIOError:
            continue
        except OSError:
            return  # EIO: the terminal has gone; as good as an end
        if not data or not _write_all(sink, data, stop):
            return


def _write_all(sink: int, data: bytes, stop: int) -> bool:
    """Write *data* to the non-blocking *sink*; return whether it all went before *stop* was closed."""
    rest = memoryview(data)
    poller = select.poll()
    poller.register(sink, select.POLLOUT)
    poller.register(stop, select.POLLIN)
    while rest:
        if stop in dict(poller.poll()):
            return False
        with suppress(BlockingIOError):
            rest = rest[os.write(sink, rest) :]
    return True
