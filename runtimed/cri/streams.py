"""What streaming requests do: a command in a container with a client's streams, a connection to a pod's port; attach
has a module of its own.

The streams of an exec are FIFOs in ``<state>/cri/exec/<id>/``, as those of any client of the Task API.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri import pipes
from runtimed.cri.attach import attach
from runtimed.cri.core import Core, all_of
from runtimed.cri.exec_sync import begin, process_of
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.cri.streaming.session import Input, Session, Write
from runtimed.errors import FailedPrecondition, NotFound, RuntimedError, Unavailable, os_errors
from runtimed.linux import netns
from runtimed.metadata.containers import Opaque
from runtimed.oci.runtime_spec import PROCESS_TYPE_URL
from runtimed.tasks.client import Stdio
from runtimed.threads import blocking

_CHUNK = 64 << 10  # bytes
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Streams:
    """The runtime as the streaming server sees it; see :class:`runtimed.cri.streaming.session.Runtime`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def exec(self, container: str, command: list[str], tty: bool, session: Session) -> int:
        found = running(self._core, container)
        execution = _Execution(self._core, found, command, session, tty=tty)
        try:
            return await execution.run()
        finally:
            await asyncio.shield(self._core.spawn(execution.end()))

    async def attach(self, container: str, tty: bool, session: Session) -> None:
        await attach(self._core, running(self._core, container), session)

    async def port_forward(self, sandbox: str, port: int, incoming: Input, outgoing: Write) -> None:
        pod = self._core.state.ready_sandbox(sandbox)
        connection = await _connected(pod.record.netns, port)
        try:
            sending = asyncio.create_task(_send(connection, incoming))
            try:
                while data := await asyncio.get_running_loop().sock_recv(connection, _CHUNK):
                    await outgoing(data)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        except ConnectionError as exc:
            raise Unavailable(f"port {port}: {exc}") from None
        finally:
            connection.close()


def running(core: Core, id: str) -> Container:
    """Return a container that runs. Raises NotFound, FailedPrecondition."""
    container = core.state.containers.get(id)
    if container.state != pb.CONTAINER_RUNNING:
        raise FailedPrecondition(f"container {container.id} is not running")
    return container


class _Execution:
    """One command with the streams of a session."""

    def __init__(
        self, core: Core, container: Container, command: Sequence[str], session: Session, *, tty: bool
    ) -> None:
        self._core = core
        self._container = container
        self._command = list(command)
        self._session = session
        self._tty = tty
        self._id = f"exec-{secrets.token_hex(8)}"
        self._directory = core.directory / "exec" / self._id
        self._fds: dict[str, int] = {}
        self._starting: asyncio.Task[None] | None = None
        self._is_gone = False

    async def run(self) -> int:
        self._starting = self._core.spawn(self._start())  # not cancelled with the caller: what there is, must be known
        await asyncio.shield(self._starting)
        outputs = {"stdout": self._session.stdout, "stderr": self._session.stderr}
        readers = [_Reader(self._fds[name], write) for name, write in outputs.items() if name in self._fds and write]
        feeding = [asyncio.create_task(one) for one in (self._feed(), self._follow_size())]
        copying = [asyncio.create_task(reader.copy()) for reader in readers]
        try:
            exit = await self._core.tasks.wait(NAMESPACE, self._container.id, self._id)
            # Deleting waits for what a terminal has not given out yet.
            await self._core.tasks.delete_exec(NAMESPACE, self._container.id, self._id)
            self._is_gone = True
            for task in copying:
                task.cancel()
            await asyncio.wait(copying) if copying else None
            await all_of(*(reader.finish() for reader in readers))
        finally:
            for task in [*feeding, *copying]:
                task.cancel()
            await asyncio.wait([*feeding, *copying])
        return exit.status

    async def end(self) -> None:
        id = self._container.id
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._is_gone:
                with suppress(RuntimedError):
                    with suppress(NotFound):
                        await self._core.tasks.kill(NAMESPACE, id, self._id, signal.SIGKILL, all=False)
                    await self._core.tasks.wait(NAMESPACE, id, self._id)
                    await self._core.tasks.delete_exec(NAMESPACE, id, self._id)
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        await blocking(shutil.rmtree, self._directory, ignore_errors=True)

    async def _start(self) -> None:
        process = await process_of(self._core, self._container)
        process |= {"args": self._command, "terminal": self._tty}
        process.pop("consoleSize", None)
        if self._tty and isinstance(process.get("env"), list):
            process["env"] = [*process["env"], "TERM=xterm"]  # type: ignore[misc]
        names = ["stdin"] if self._session.stdin else []
        names += ["stdout"] if self._tty or self._session.stdout else []
        names += ["stderr"] if self._session.stderr and not self._tty else []
        self._fds = await blocking(_make_fifos, self._directory, names)
        stdio = Stdio(
            **{name: str(self._directory / name) if name in names else "" for name in ("stdin", "stdout", "stderr")},
            terminal=self._tty,
        )
        spec = Opaque(PROCESS_TYPE_URL, msgspec.json.encode(process))
        await begin(self._core, self._container, self._id, stdio, spec)

    async def _feed(self) -> None:
        """Pass on what the client sends, and its end."""
        if self._session.stdin is None:
            return
        while data := await self._session.stdin.read():
            await pipes.write(self._fds["stdin"], data)
        os.close(self._fds.pop("stdin"))
        with suppress(RuntimedError):  # it has ended
            await self._core.tasks.close_io(NAMESPACE, self._container.id, self._id, stdin=True)

    async def _follow_size(self) -> None:
        while True:
            width, height = await self._session.resizes.get()
            with suppress(RuntimedError):
                await self._core.tasks.resize_pty(NAMESPACE, self._container.id, self._id, width, height)


class _Reader:
    """From a FIFO to the client, no faster than that takes it."""

    def __init__(self, fd: int, write: Write) -> None:
        self._fd = fd
        self._write = write
        self._rest = b""

    async def copy(self) -> None:
        """Copy until cancelled; what has been read and not yet been written is kept for :meth:`finish`."""
        while True:
            await pipes.ready(self._fd)
            self._rest = self._read()
            if not self._rest:
                return
            await self._write(self._rest)
            self._rest = b""

    async def finish(self) -> None:
        """Copy what is there now."""
        while data := self._rest or self._read():
            self._rest = b""
            await self._write(data)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return b""


def _make_fifos(directory: Path, names: Sequence[str]) -> dict[str, int]:
    """Make FIFOs; return our ends of them, which never block. Blocks."""
    fds: dict[str, int] = {}
    with os_errors(f"exec directory {directory}"):
        directory.mkdir(mode=0o700, parents=True)
        for name in names:
            os.mkfifo(directory / name, 0o600)
            # Of input both ends, so that it can be opened before the process is there.
            mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
            fds[name] = os.open(directory / name, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    return fds


async def _connected(namespace: str, port: int) -> socket.socket:
    """Return a connection to *port* on the loopback interface of a network namespace ("": our own).

    Raises Unavailable: nobody listens.
    """
    failure: OSError | None = None
    for family, address in _LOOPBACK:
        connection = await blocking(netns.open_socket, namespace, family)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except OSError as exc:
            connection.close()
            failure = failure or exc
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise Unavailable(f"port {port} of the pod: {os.strerror(failure.errno or 0) if failure else 'no answer'}")


async def _send(connection: socket.socket, incoming: Input) -> None:
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while data := await incoming.read():
            await loop.sock_sendall(connection, data)
        connection.shutdown(socket.SHUT_WR)
