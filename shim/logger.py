"""Programs that take the output of a process: ``binary://PROGRAM?KEY=VALUE&...``.

The program gets each KEY and VALUE as two arguments, no environment but ``CONTAINER_ID`` (of a further process its own
ID) and ``CONTAINER_NAMESPACE``, and the descriptors 3, stdout, 4, stderr, and 5, which it closes when it is ready:
until then the process is not made. It sees the end of 3 and 4 when the process has ended, and should end then.
(containerd's runtime v2 README, "Logging"; its core/runtime/v2/logging is the side of the program.)
"""

import fcntl
import os
import signal
import stat
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from shim import files, log, loop, poller
from shim.exits import Child
from shim.sinks import Origin
from shim.stdio import Output, reopened

# Seconds. A program that loads much, on a busy machine, is ready long before.
_READY_LIMIT_S = 10.0
# From SIGTERM to SIGKILL, as with containerd's shims: ten for the program's own clean-up, and two.
_END_LIMIT_S = 12.0

_STREAMS = ("stdout", "stderr")  # in the order of the descriptors
_FREE_FD = 10  # from here on no descriptor is one that the program is to have
_CHUNK = 64 << 10  # bytes

_PF_EXITING = 4  # of the flags in proc_pid_stat(5)


class Logger:
    """One program; see :class:`shim.sinks.Sink`."""

    def __init__(self, uri: str, stream: str, origin: Origin) -> None:
        """Raises InvalidArgument when *uri*, that of *stream*, names no program."""
        self._argv = _command(uri, stream)
        self._origin = origin
        self._child: Child | None = None
        self._pipes: dict[str, Output] = {}
        self._dropping: list[int] = []
        self._dropped = 0
        self._is_closed = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for reader in self._dropping:
            self._begin_to_drop(reader)
        if self._child is not None and not self._child.exited.done():
            self._child.exited.add_callback(self._ended)

    def output(self, stream: str) -> Output:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        output = self._pipes[stream] = Output(writer, reader)
        if self._origin.uid or self._origin.gid:
            os.fchown(writer, self._origin.uid, self._origin.gid)
        return output

    async def open(self) -> None:
        """Start the program and wait until it is ready.

        Raises:
            FailedPrecondition: it cannot be started, or ended before it was ready.
            DeadlineExceeded: it is not ready in time, and was killed.
        """
        ready, telling = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._child = self._spawn(telling)
            finally:
                os.close(telling)
            with loop.timeout(_READY_LIMIT_S):
                await _readable(ready)
            if _is_ending(self._child.pid):
                status = (await self._child.exited).status
                raise FailedPrecondition(f"logger {self._argv[0]!r} ended with status {status} before it was ready")
        except TimeoutError:
            self._signal(signal.SIGKILL)
            raise DeadlineExceeded(
                f"logger {self._argv[0]!r} was not ready within {_READY_LIMIT_S:g} s;"
                " it must close its descriptor 5 when it is"
            ) from None
        finally:
            os.close(ready)
        self._child.exited.add_callback(self._ended)

    def _spawn(self, telling: int) -> Child:
        stdio: list[int] = []
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stdio.append(null)
            readers = [self._pipes[stream].reader if stream in self._pipes else null for stream in _STREAMS]
            # The program's descriptors are put in their places one after the other: none may lie in another's place.
            for fd in (null, null, null, *readers, telling):
                stdio.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD))
            environment = {"CONTAINER_ID": self._origin.id, "CONTAINER_NAMESPACE": self._origin.namespace}
            return self._origin.children.spawn(self._argv, environment, stdio[1:], lasting=True)
        except OSError as exc:
            raise FailedPrecondition(f"logger {self._argv[0]!r} cannot be started: {exc.strerror}") from exc
        finally:
            for fd in stdio:
                os.close(fd)

    def _ended(self) -> None:
        """Read in place of a program that has ended, so that the process neither gets SIGPIPE nor waits."""
        if self._is_closed or self._child is None:
            return
        for pipe in self._pipes.values():
            # One of our own: who else has the program's must not find it changed.
            reader = reopened(pipe.reader, os.O_RDONLY | os.O_NONBLOCK)
            self._dropping.append(reader)
            self._begin_to_drop(reader)

    def _begin_to_drop(self, reader: int) -> None:
        poller.add_reader(reader, partial(self._drop, reader), resumable=True)

    def _drop(self, reader: int) -> None:
        try:
            data = os.read(reader, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._stop_dropping(reader)
            return
        if not self._dropped and self._child is not None:
            status = self._child.exited.result().status
            log.warning(f"logger {self._argv[0]!r} has ended with status {status}: the output is dropped")
        self._dropped += len(data)

    def _stop_dropping(self, reader: int) -> None:
        poller.remove_reader(reader)
        os.close(reader)
        self._dropping.remove(reader)

    def attach(self, path: str) -> None:
        raise FailedPrecondition("the output goes to a program: nobody else can be attached to it")

    def settle(self) -> None:
        """Nothing: the program reads in its own time."""

    async def drained(self) -> None:
        """Wait for the program's end, which comes when it has seen that of the streams."""
        if self._child is not None:
            await self._child.exited

    def close(self) -> None:
        self._is_closed = True
        for pipe in self._pipes.values():
            pipe.close()
        for reader in list(self._dropping):
            self._stop_dropping(reader)
        if self._dropped:
            log.warning(f"logger {self._argv[0]!r}: {self._dropped} bytes of output were dropped after its end")
        self._signal(signal.SIGTERM)

    async def closed(self) -> None:
        if self._child is not None and not self._child.exited.done():
            try:
                with loop.timeout(_END_LIMIT_S):
                    await self._child.exited
            except TimeoutError:
                log.warning(f"logger {self._argv[0]!r} did not end within {_END_LIMIT_S:g} s of SIGTERM: killed")
                self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._child is not None:
            with suppress(NotFound):
                self._child.send_signal(number)


def _command(uri: str, stream: str) -> list[str]:
    parts = urlsplit(uri)
    program = unquote(parts.path)
    if parts.netloc or not program.startswith("/") or "\0" in program:
        raise InvalidArgument(f"{stream} {uri!r}: the path of the program must be absolute, as in binary:///usr/bin/x")
    try:
        mode = os.stat(program).st_mode  # noqa: PTH116 - a string all the way
    except OSError as exc:
        raise InvalidArgument(f"{stream} {uri!r}: {program}: {exc.strerror}") from exc
    if not (stat.S_ISREG(mode) and os.access(program, os.X_OK)):
        raise InvalidArgument(f"{stream} {uri!r}: {program} is not a program: make it executable")
    argv = [program]
    for pair in parse_qsl(parts.query, keep_blank_values=True):
        argv += pair
    if any("\0" in word for word in argv):
        raise InvalidArgument(f"{stream} {uri!r}: an argument has a NUL in it")
    return argv


async def _readable(fd: int) -> None:
    """Wait until there is something to read, or the end."""
    event = loop.Event()
    poller.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        poller.remove_reader(fd)


def _is_ending(pid: int) -> bool:
    """Return whether the process, a child not yet reaped, is at its end: it closes its files before that is told."""
    with suppress(OSError, ValueError):
        state, *fields = files.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return state in {b"Z", b"X"} or bool(int(fields[5]) & _PF_EXITING)
    return True
