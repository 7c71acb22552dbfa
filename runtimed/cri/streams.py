"""What streaming requests do: a command in a container with a client's streams, a connection to a pod's port; attach
has a module of its own."""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from runtimed.api import cri_pb2 as pb
from runtimed.cri import pipes
from runtimed.cri.attach import attach
from runtimed.cri.core import Core
from runtimed.cri.execution import Execution
from runtimed.cri.state import Container
from runtimed.cri.streaming.session import Input, Session, Write
from runtimed.errors import FailedPrecondition, Unavailable, os_errors
from runtimed.linux import netns
from runtimed.threads import blocking

_CHUNK = 64 << 10  # bytes
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Streams:
    """The runtime as the streaming server sees it; see :class:`runtimed.cri.streaming.session.Runtime`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def exec(self, container: str, command: list[str], tty: bool, session: Session) -> int:
        execution = Execution(self._core, running(self._core, container))
        try:
            return await _exec(execution, command, session, tty=tty)
        finally:
            await execution.end()

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


async def _exec(execution: Execution, command: Sequence[str], session: Session, *, tty: bool) -> int:
    """Run *command* with the streams of *session*; return its exit code once its output has been written."""
    outputs = {"stdout": session.stdout, "stderr": None if tty else session.stderr}
    names = ["stdin"] if session.stdin else []
    names += [name for name, write in outputs.items() if write or (tty and name == "stdout")]
    await execution.start(command, names, tty=tty)
    readers = [Reader(execution.fds[name], write) for name, write in outputs.items() if write]
    feeding = [asyncio.create_task(one) for one in (_feed(execution, session), _follow_size(execution, session))]
    copying = [asyncio.create_task(reader.copy()) for reader in readers]
    try:
        code = await execution.wait()
        await execution.delete()  # which waits for what a terminal has not given out yet
        for reader in readers:
            reader.end()
        await asyncio.gather(*copying)
    finally:
        for task in [*feeding, *copying]:
            task.cancel()
        await asyncio.wait([*feeding, *copying])
    return code


async def _feed(execution: Execution, session: Session) -> None:
    """Pass on what the client sends, and its end."""
    if session.stdin is None:
        return
    while data := await session.stdin.read():
        await pipes.write(execution.fds["stdin"], data)
    await execution.end_input()


async def _follow_size(execution: Execution, session: Session) -> None:
    while True:
        await execution.resize(*await session.resizes.get())


class Reader:
    """From a FIFO to the client, no faster than that takes it."""

    def __init__(self, fd: int, write: Write) -> None:
        self._fd = fd
        self._write = write
        self._left: int | None = None  # bytes to copy yet, once the command has ended
        self._changed = asyncio.Event()

    def end(self) -> None:
        """What is there now is the rest: others may go on writing, but the command has ended."""
        self._left = pipes.unread(self._fd)
        self._changed.set()

    async def copy(self) -> None:
        """Copy until all writers have gone, or the rest has been copied. To be cancelled only with the client gone."""
        while self._left != 0:
            try:
                data = os.read(self._fd, _CHUNK if self._left is None else min(self._left, _CHUNK))
            except BlockingIOError:
                await self._readable()
                continue
            if not data:
                return
            if self._left is not None:
                self._left -= len(data)
            await self._write(data)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._changed.clear()
        loop.add_reader(self._fd, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            loop.remove_reader(self._fd)


async def _connected(namespace: str, port: int) -> socket.socket:
    """Return a connection to *port* on the loopback interface of a network namespace ("": our own).

    Raises Unavailable: nobody listens.
    """
    failure: OSError | None = None
    for family, address in _LOOPBACK:
        with os_errors("network namespace of the pod"):
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
