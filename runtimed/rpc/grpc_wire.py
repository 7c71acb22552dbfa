"""What gRPC makes of HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md), for both ends: messages in data, a status in trailers."""

import asyncio
from collections import deque
from urllib.parse import quote_from_bytes, unquote_to_bytes

from runtimed.errors import ResourceExhausted, Unimplemented
from runtimed.rpc.http2 import Connection, Stream

LARGEST_MESSAGE = 16 << 20  # bytes, both ways, as containerd has it
_UNESCAPED = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


class Inbox:
    """The messages that come on one stream, in order. The peer gets a new window when all that came has been taken."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._partial = bytearray()
        self._messages: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_whole = False
        self.error: BaseException | None = None

    def feed(self, data: bytes) -> None:
        """Add what has come.

        Raises:
            Unimplemented: a message is compressed, which nobody was told to do.
            ResourceExhausted: it is too large.
        """
        partial = self._partial
        partial += data
        while len(partial) >= 5:
            size = int.from_bytes(partial[1:5])
            if partial[0]:
                raise Unimplemented("compressed messages")
            if size > LARGEST_MESSAGE:
                raise ResourceExhausted(f"a message of {size} bytes is larger than the {LARGEST_MESSAGE} allowed")
            if len(partial) < 5 + size:
                break
            self._messages.append(bytes(partial[5 : 5 + size]))
            del partial[: 5 + size]
        if not self._messages:
            self._connection.credit(self._stream)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """There will be no more: :meth:`get` returns None, or raises *error*, after the last."""
        if not self._is_whole:
            self._is_whole, self.error = True, error
            self._wake()

    async def get(self) -> bytes | None:
        """Return the next message; None after the last. For one caller at a time."""
        while not self._messages:
            if self._is_whole:
                if self.error is not None:
                    raise self.error
                return None
            self._connection.credit(self._stream)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._messages.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def framed(message: bytes) -> bytes:
    """Return a message as it is sent: not compressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4) + message


def quoted(text: str) -> bytes:
    """Return a status message as the header ``grpc-message`` has it."""
    return quote_from_bytes(text.encode(errors="replace"), safe=_UNESCAPED).encode()


def unquoted(value: bytes) -> str:
    return unquote_to_bytes(value).decode(errors="replace")
