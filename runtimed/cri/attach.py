"""Attach: a client with the streams of a container's first process.

Output comes from the shim, which gives it to a FIFO of ours beside the log (shim/attach.py says how); input goes to the
container's FIFO, of which the shim holds both ends: it stays open between clients, and over a restart of the daemon.

<root>/cri/containers/<id>/stdin    the input, of a container that has one
<state>/cri/exec/attach-*/output    until the shim has opened it
"""

import asyncio
import fcntl
import os
import secrets
import select
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from runtimed.cri import pipes
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.cri.streaming.session import Input, Session
from runtimed.errors import ResourceExhausted, RuntimedError, os_errors
from runtimed.threads import blocking

_ROOM = 1 << 20  # bytes that wait for a client before its container does
_CHUNK = 64 << 10
_HEADER = 5  # bytes
_STDOUT, _STDERR = 1, 2
_REST_WITHIN_S = 30.0  # from the end of the output to the client's having taken it


def make_input(directory: Path) -> Path:
    """Make the FIFO for the input of a container whose directory that is; return its path. Blocks."""
    path = directory / "stdin"
    with os_errors(f"input {path}"):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
    return path


async def attach(core: Core, container: Container, session: Session) -> None:
    """Connect *session* to a container that runs, until the output has ended, or the client its input.

    A client that ends its input leaves, as with containerd; but of a container with ``stdin_once`` and no terminal the
    input ends with it, for good, and the client gets the rest of the output.

    Raises:
        FailedPrecondition: the container has ended.
        ResourceExhausted: the client did not take the output; the container has gone on without it.
        Unimplemented: the container's shim cannot attach anybody.
    """
    async with _output(core, container, session) as output:
        # Not before: the input of ``stdin_once`` would have ended for good with a client that gets no output.
        input = _Input(core, container, session.stdin)
        try:
            ending = (output.copy(), output.limit()) if output else (container.ended.wait(),)
            await _first(*ending, input.copy(), _follow_size(core, container, session))
        finally:
            input.end()


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run them at once until the first of them ends, and raise what it raises; the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


@asynccontextmanager
async def _output(core: Core, container: Container, session: Session) -> AsyncIterator["_Output | None"]:
    """What the container writes from now on, if the client wants any of it."""
    if session.stdout is None and session.stderr is None:
        yield None
        return
    directory = core.directory / "exec" / f"attach-{secrets.token_hex(8)}"
    output = _Output(session)
    try:
        try:
            await blocking(output.open, directory)
            await core.tasks.attach(NAMESPACE, container.id, directory / "output")
        finally:
            await blocking(shutil.rmtree, directory, ignore_errors=True)
        yield output
    finally:
        output.close()


class _Output:
    """From the shim's FIFO to the client, no faster than that takes it."""

    def __init__(self, session: Session) -> None:
        self._fd = -1
        self._writers = {_STDOUT: session.stdout, _STDERR: session.stderr}

    def open(self, directory: Path) -> None:
        """Make the FIFO, in a new *directory*, and open the end to read from. Blocks."""
        with os_errors(f"directory {directory} of an attached client"):
            directory.mkdir(mode=0o700, parents=True)
            os.mkfifo(directory / "output", 0o600)
            self._fd = os.open(directory / "output", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _ROOM)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    async def copy(self) -> None:
        """Copy until there is no more. Raises ResourceExhausted: the client was too slow."""
        while True:
            header = await self._read(_HEADER)
            stream, size = header[0], int.from_bytes(header[1:], "big")
            if not stream:
                return
            data = await self._read(size)
            if write := self._writers.get(stream):
                await write(data)

    async def limit(self) -> None:
        """Give the client some time when there is no more for it. Raises ResourceExhausted when that is over."""
        ended = select.epoll()
        try:
            ended.register(self._fd, 0)  # nothing but a hang-up
            await pipes.ready(ended.fileno())
        finally:
            ended.close()
        await asyncio.sleep(_REST_WITHIN_S)
        raise _too_slow()

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                some = os.read(self._fd, size - len(data))
            except BlockingIOError:
                await pipes.ready(self._fd)
                continue
            if not some:
                raise _too_slow()
            data += some
        return data


def _too_slow() -> ResourceExhausted:
    return ResourceExhausted("attach: the output was not taken in time, so the container went on without this client")


class _Input:
    """From the client to the container's FIFO, no faster than the process takes it; nowhere, if it has none."""

    def __init__(self, core: Core, container: Container, stdin: Input | None) -> None:
        self._core = core
        self._container = container
        self._stdin = stdin
        self._fd = -1
        self._is_once = container.config.stdin_once and not container.config.tty
        if stdin is None or not container.config.stdin or (self._is_once and container.is_input_taken):
            return
        with suppress(OSError):  # nobody reads any more: the process has closed it, or it has been ended
            path = core.container_directory(container.id) / "stdin"
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            container.is_input_taken = self._is_once

    async def copy(self) -> None:
        """Return when the client has ended its input and is to leave."""
        while self._stdin is not None and (data := await self._stdin.read()):
            try:
                if self._fd >= 0:
                    await pipes.write(self._fd, data)
            except BrokenPipeError:
                self._close()
        self.end()
        if self._stdin is None or self._is_once or not self._container.config.stdin:
            await asyncio.Event().wait()  # there is the output

    def end(self) -> None:
        """Write no more; with ``stdin_once`` the process sees the end of its input."""
        if self._close() and self._is_once:
            self._core.spawn(self._end_for_good())

    def _close(self) -> bool:
        if self._fd < 0:
            return False
        os.close(self._fd)
        self._fd = -1
        return True

    async def _end_for_good(self) -> None:
        with suppress(RuntimedError):  # it has ended
            await self._core.tasks.close_io(NAMESPACE, self._container.id, "", stdin=True)


async def _follow_size(core: Core, container: Container, session: Session) -> None:
    """Pass on the sizes of the client's terminal, for ever."""
    while True:
        width, height = await session.resizes.get()
        with suppress(RuntimedError):  # it has ended
            await core.tasks.resize_pty(NAMESPACE, container.id, "", width, height)
