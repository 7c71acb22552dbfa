"""The frames of ttrpc, and its rules that hold whoever moves the bytes: the daemon by asyncio, a shim by its own loop.

A frame is a header of ten bytes, big endian, and a payload::

    u32 length of the payload   at most 4 MiB; a longer message is refused and skipped, the connection stays
    u32 stream                  names a call; chosen by the client: odd and rising
    u8  type                    1 request, 2 response, 3 data (of a stream; not used by unary calls)
    u8  flags                   0 in unary calls

Every shim imports this module, so it loads next to nothing.
"""

import _socket  # not socket: a shim has no use for its wrappers
import os
import struct
from collections.abc import Iterator

from runtimed.errors import InvalidArgument, PermissionDenied, RuntimedError

MAX_MESSAGE = 4 << 20  # bytes of payload
REQUEST, RESPONSE = 1, 2

HEADER = struct.Struct(">IIBB")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)


class Frame:
    """One message of a call."""

    __slots__ = ("length", "payload", "stream", "type")

    def __init__(self, stream: int, type: int, length: int, payload: bytes | None) -> None:
        self.stream = stream
        self.type = type
        self.length = length
        self.payload = payload  # None: it was too long and has been skipped


class Splitter:
    """Makes frames of the bytes of a connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping: Frame | None = None
        self._left = 0  # bytes still to skip

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the frames that are complete with *data*. Exhaust it before the next call."""
        self._buffer += data
        while True:
            if self._skipping is not None:
                skipped = min(self._left, len(self._buffer))
                del self._buffer[:skipped]
                self._left -= skipped
                if self._left:
                    return
                frame, self._skipping = self._skipping, None
                yield frame
            if len(self._buffer) < HEADER.size:
                return
            length, stream, type, _ = HEADER.unpack_from(self._buffer)
            if length > MAX_MESSAGE:
                del self._buffer[: HEADER.size]
                self._skipping, self._left = Frame(stream, type, length, None), length
                continue
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(stream, type, length, payload)


def packed(stream: int, type: int, payload: bytes) -> bytes:
    """Return the bytes of a frame."""
    return HEADER.pack(len(payload), stream, type, 0) + payload


def refusal(frame: Frame, last_stream: int) -> RuntimedError | None:
    """Return what is wrong with the stream ID of a request, if anything."""
    if frame.stream % 2 == 0:
        return InvalidArgument(f"stream ID {frame.stream} of a client must be odd")
    if frame.stream <= last_stream:
        return InvalidArgument(f"stream ID {frame.stream} must be above {last_stream}, the last one")
    return None


def check_peer(sock: _socket.socket) -> None:
    """Raise PermissionDenied if the process at the other end has not this process's user ID."""
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid():
        raise PermissionDenied(f"a peer with user ID {uid} was turned away; only {os.geteuid()} may connect")


def too_long(length: int) -> str:
    return f"message of {length} bytes exceeds the maximum of {MAX_MESSAGE}"
