"""SPDY/3.1 framing (SPDY Protocol Draft 3.1), as far as Kubernetes uses it.

Flow control is TCP's: neither kubelet nor kubectl ever sends a WINDOW_UPDATE. A client is bounded in the size of a
frame, of its headers once decompressed, and in the number of streams that are open.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runtimed.errors import InvalidArgument, ResourceExhausted

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
MAX_FRAME = 1 << 20  # bytes
MAX_HEADERS = 16 << 10  # bytes, decompressed
_VERSION = 3


def _dictionary() -> bytes:
    """Return the text that both sides' compressors begin with (Draft 3.1, 2.6.10.1); the tests compare its checksum."""
    names = """
        options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow
        authorization cache-control connection content-base content-encoding content-language content-length
        content-location content-md5 content-range content-type date etag expect expires from host if-match
        if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma
        proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade
        user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie
        keep-alive origin
    """
    words = [name.replace("_", " ").encode() for name in names.split()]
    counted = b"".join(struct.pack(">I", len(word)) + word for word in words)
    codes = (
        "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
        "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
        "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    )
    rest = (
        "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
        "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
        "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
    )
    return counted + codes.encode() + rest.encode()


DICTIONARY = _dictionary()


@dataclass(frozen=True, slots=True)
class Frame:
    """``type`` 0 is data. ``headers`` only where there are some; names are in lower case."""

    type: int
    stream: int
    flags: int = 0
    data: bytes = b""
    headers: Mapping[str, str] | None = None


class Decoder:
    """Bytes to frames. Raises InvalidArgument or ResourceExhausted for what ends the connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inflater = zlib.decompressobj(zdict=DICTIONARY)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now."""
        self._buffer += data
        while len(self._buffer) >= 8:
            first, rest = struct.unpack_from(">II", self._buffer)
            flags, length = rest >> 24, rest & 0xFFFFFF
            if length > MAX_FRAME:
                raise ResourceExhausted(f"SPDY frame of {length} bytes")
            if len(self._buffer) < 8 + length:
                return
            payload = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            if not first >> 31:
                yield Frame(0, first, flags, payload)
                continue
            if first >> 16 & 0x7FFF != _VERSION:
                raise InvalidArgument(f"SPDY version {first >> 16 & 0x7FFF}")
            yield self._control(first & 0xFFFF, flags, payload)

    def _control(self, type: int, flags: int, payload: bytes) -> Frame:
        skipped = {SYN_STREAM: 10, SYN_REPLY: 4, HEADERS: 4}.get(type)
        if len(payload) < (4 if skipped is None else skipped):
            raise InvalidArgument(f"SPDY frame of type {type} is too short")
        stream = struct.unpack_from(">I", payload)[0] & (0xFFFFFFFF if type == PING else 0x7FFFFFFF)
        headers = None if skipped is None else self._headers(payload[skipped:])
        return Frame(type, stream, flags, payload, headers)

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            data = self._inflater.decompress(block, MAX_HEADERS)
            if self._inflater.unconsumed_tail:
                raise ResourceExhausted(f"SPDY headers of more than {MAX_HEADERS} bytes")
            headers = {}
            (count,), at = struct.unpack_from(">I", data), 4
            for _ in range(min(count, MAX_HEADERS)):
                pair = []
                for _ in range(2):
                    (length,) = struct.unpack_from(">I", data, at)
                    if at + 4 + length > len(data):
                        raise InvalidArgument("SPDY header goes beyond its block")
                    pair.append(data[at + 4 : at + 4 + length].decode())
                    at += 4 + length
                headers[pair[0].lower()] = pair[1]
        except (zlib.error, struct.error, UnicodeDecodeError) as exc:
            raise InvalidArgument(f"SPDY headers: {exc}") from None
        return headers


class Encoder:
    """Frames to bytes."""

    def __init__(self) -> None:
        self._deflater = zlib.compressobj(zdict=DICTIONARY)

    def syn_stream(self, stream: int, headers: Mapping[str, str]) -> bytes:
        return _control(SYN_STREAM, 0, struct.pack(">IIH", stream, 0, 0) + self._block(headers))

    def syn_reply(self, stream: int) -> bytes:
        return _control(SYN_REPLY, 0, struct.pack(">I", stream) + self._block({}))

    def _block(self, headers: Mapping[str, str]) -> bytes:
        words = [word.encode() for pair in headers.items() for word in pair]
        block = struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(word)) + word for word in words)
        return self._deflater.compress(block) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


def data_frame(stream: int, data: bytes, *, fin: bool = False) -> bytes:
    """Return a data frame; *data* is at most 64 KiB."""
    return struct.pack(">II", stream, (FIN if fin else 0) << 24 | len(data)) + data


def rst_stream(stream: int, status: int) -> bytes:
    return _control(RST_STREAM, 0, struct.pack(">II", stream, status))


def ping(id: int) -> bytes:
    return _control(PING, 0, struct.pack(">I", id))


def goaway(last: int) -> bytes:
    return _control(GOAWAY, 0, struct.pack(">II", last, 0))


def _control(type: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">II", 1 << 31 | _VERSION << 16 | type, flags << 24 | len(payload)) + payload
