"""Being where the streams of an exec or attach end, over WebSocket channels (k8s.io/apimachinery, v4 and v5)."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

from runtimed.cli import terminal
from runtimed.cli.cri.websocket import WebSocket, connected
from runtimed.client.stdio import Copier, copy_input
from runtimed.errors import Internal, RuntimedError, Unavailable
from runtimed.threads import blocking

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_PIECE = 32 << 10  # bytes of a message
_STAY_S = 10.0  # a server that hears nothing for longer may take it that nobody is there


async def remote(url: str, *, stdin: bool, tty: bool, authority: str | None = None) -> int:
    """Connect our streams to those behind *url*; return the exit status. The terminal, with *tty*, is raw meanwhile.

    Raises:
        RuntimedError: what the runtime says, or that the connection was lost.
        BrokenPipeError: nobody reads our output any more.
    """
    async with connected(url, PROTOCOLS, authority=authority) as socket:
        with ExitStack() as held:
            if tty:
                held.enter_context(terminal.raw(sys.stdin.fileno()))
                held.enter_context(_sizes(socket))
            async with _beside(_stay(socket), *([_feed(socket)] if stdin else [])):
                return await _show(socket)


async def _show(socket: WebSocket) -> int:
    outputs = {_STDOUT: sys.stdout.fileno(), _STDERR: sys.stderr.fileno()}
    status: int | None = None
    while (message := await socket.receive()) is not None:
        channel, data = message[:1], message[1:]
        if channel and channel[0] in outputs and data:
            await blocking(_write, outputs[channel[0]], data)
        elif channel and channel[0] == _ERROR:
            status = exit_status(data)
    if status is None:
        raise Unavailable("streaming server: the connection was closed before the end of the command was told")
    return status


def exit_status(said: bytes) -> int:
    """Return what a metav1.Status says of a command's end. Raises Internal: it was not run to its end, and why."""
    try:
        status = json.loads(said)
        if status["status"] == "Success":
            return 0
        if status.get("reason") == "NonZeroExitCode":
            return next(int(one["message"]) for one in status["details"]["causes"] if one["reason"] == "ExitCode")
        message = str(status.get("message", ""))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        message = said.decode(errors="replace")
    raise Internal(message or "the runtime does not say what went wrong")


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


async def _stay(socket: WebSocket) -> None:
    while True:
        await asyncio.sleep(_STAY_S)
        socket.stay()


async def _feed(socket: WebSocket) -> None:
    """Send our input, and its end."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb")
    )
    source = Copier(copy_input, sys.stdin.fileno(), write)
    source.finished.add_done_callback(lambda _: os.close(write))
    try:
        with suppress(RuntimedError):  # receiving finds out, too
            while data := await reader.read(_PIECE):
                await socket.send(bytes((_STDIN,)) + data)
            if socket.protocol == PROTOCOLS[0]:  # v4 cannot say it
                await socket.send(bytes((_CLOSE, _STDIN)))
    finally:
        transport.close()
        await source.close()


@asynccontextmanager
async def _beside(*helpers: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have coroutines run for the time of the block."""
    tasks = [asyncio.create_task(helper) for helper in helpers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextmanager
def _sizes(socket: WebSocket) -> Iterator[None]:
    """Tell the size of our terminal, now and when it changes."""
    loop = asyncio.get_running_loop()
    sending: set[asyncio.Task[None]] = set()

    async def tell() -> None:
        size = terminal.size(sys.stdin.fileno())
        with suppress(RuntimedError):  # receiving finds out, too
            said = json.dumps({"Width": size.width, "Height": size.height})
            await socket.send(bytes((_RESIZE,)) + said.encode())

    def changed() -> None:
        task = asyncio.create_task(tell())
        sending.add(task)
        task.add_done_callback(sending.discard)

    loop.add_signal_handler(signal.SIGWINCH, changed)
    changed()
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        for task in sending:
            task.cancel()
