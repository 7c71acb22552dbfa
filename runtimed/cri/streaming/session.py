"""What a streaming request is to the runtime: byte streams with back-pressure, whatever protocol carries them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

LIMIT = 256 << 10  # bytes of input that wait in one stream before the client is no longer read from


class Input:
    """Bytes from a client. Who fills it over *LIMIT* is to stop until it is less: ``on_change`` says when to look."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._data = bytearray()
        self._has_ended = False
        self._changed = asyncio.Event()
        self._on_change = on_change

    @property
    def is_full(self) -> bool:
        return len(self._data) > LIMIT

    def feed(self, data: bytes) -> None:
        """Add bytes; after the end they are dropped."""
        if not self._has_ended:
            self._data += data
            self._changed.set()
            self._on_change()

    def end(self) -> None:
        """Nothing comes any more."""
        self._has_ended = True
        self._changed.set()

    def close(self) -> None:
        """Nobody reads any more: what has come, and comes yet, is dropped."""
        self._data.clear()
        self.end()
        self._on_change()

    async def read(self, size: int = 64 << 10) -> bytes:
        """Return some bytes, b"" at the end. One reader at a time."""
        while not self._data and not self._has_ended:
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._data[:size])
        del self._data[:size]
        self._on_change()
        return data


Write = Callable[[bytes], Awaitable[None]]  # waits while the client takes nothing


class Session:
    """The streams of one exec or attach; those that were not asked for are None."""

    def __init__(self, stdin: Input | None, stdout: Write | None, stderr: Write | None) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.resizes: asyncio.Queue[tuple[int, int]] = asyncio.Queue(1)  # width, height: only the last one counts

    def resize(self, width: int, height: int) -> None:
        if self.resizes.full():
            self.resizes.get_nowait()
        self.resizes.put_nowait((width, height))


class Runtime(Protocol):
    """What the streaming server asks of the runtime. A call is cancelled when its client is gone.

    Errors are RuntimedError; their message is what the client gets.
    """

    async def exec(self, container: str, command: list[str], tty: bool, session: Session) -> int:
        """Run a command with the streams of *session*; return its exit code once its output has been written."""

    async def attach(self, container: str, tty: bool, session: Session) -> None:
        """Connect *session* to the container's first process, until that ends or the client has gone."""

    async def port_forward(self, sandbox: str, port: int, incoming: Input, outgoing: Write) -> None:
        """Connect the streams to *port* on the pod's loopback interface, until either side ends."""
