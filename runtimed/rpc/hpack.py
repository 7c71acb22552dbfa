"""HPACK (RFC 7541), the header compression of HTTP/2: reading all of it, writing only what needs no state."""

from collections import deque
from collections.abc import Iterable

Header = tuple[bytes, bytes]

_TABLE_SIZE = 4096  # bytes of headers that a peer may have us remember (SETTINGS_HEADER_TABLE_SIZE, its default)
_ENTRY_OVERHEAD = 32  # RFC 7541 section 4.1
_LARGEST_LIST = 256 << 10  # bytes of headers in one block, decoded; an index of one byte can stand for 4 KiB
_LONGEST_INTEGER = 5  # bytes after the first one; more than any length needs

# RFC 7541 appendix A, from index 1.
_STATIC: tuple[Header, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control"
            b" content-disposition content-encoding content-language content-length content-location content-range"
            b" content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range"
            b" if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization"
            b" range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding"
            b" user-agent vary via www-authenticate"
        ).split()
    ),
)

# RFC 7541 appendix B. The code is canonical, so that the length of each symbol's says all; 256 is the end.
_LENGTHS = (
    *(13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28),
    *(28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15),
    *(6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6),
    *(15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20),
    *(20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23),
    *(24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22),
    *(22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27),
    *(24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26),
    *(26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30),
)
_END = 256


class Malformed(Exception):
    """Not HPACK, or more than is taken. The connection cannot go on: its table is another than the peer's."""


def encode(headers: Iterable[Header]) -> bytes:
    """Return a block of *headers*, names in lower case, that changes no table (section 6.2.2)."""
    return b"".join(_literal(name, value) for name, value in headers)


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(number: int) -> bytes:
    """Return a length (section 5.1, prefix of 7 bits) of a string that is not Huffman-coded."""
    if number < 127:
        return bytes((number,))
    encoded = bytearray((127,))
    number -= 127
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Decoder:
    """Reads the header blocks of one connection, in order."""

    def __init__(self) -> None:
        self._dynamic: deque[Header] = deque()  # the newest first
        self._size = 0
        self._limit = _TABLE_SIZE

    def decode(self, block: bytes) -> list[Header]:
        """Return the headers in *block*. Raises Malformed."""
        headers: list[Header] = []
        at, end, size = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = _read_integer(block, at, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                self._limit, at = _read_integer(block, at, 5)
                if self._limit > _TABLE_SIZE:
                    raise Malformed("a table larger than was offered")
                self._evict()
                continue
            else:
                is_kept = first & 0xC0 == 0x40
                index, at = _read_integer(block, at, 6 if is_kept else 4)
                name, at = (self._entry(index)[0], at) if index else _read_string(block, at)
                value, at = _read_string(block, at)
                header = (name, value)
                if is_kept:
                    self._dynamic.appendleft(header)
                    self._size += _size(header)
                    self._evict()
            headers.append(header)
            size += _size(header)
            if size > _LARGEST_LIST:
                raise Malformed("more headers than are taken")
        return headers

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if not 0 <= index < len(self._dynamic):
            raise Malformed("an index that there is not")
        return self._dynamic[index]

    def _evict(self) -> None:
        while self._size > self._limit:
            self._size -= _size(self._dynamic.pop())


def _size(header: Header) -> int:
    return len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD


def _read_integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the integer at *at* whose prefix has *bits* bits, and where it ends (section 5.1)."""
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    for shift in range(0, 7 * _LONGEST_INTEGER, 7):
        if at >= len(block):
            break
        byte = block[at]
        at += 1
        number += (byte & 127) << shift
        if byte < 128:
            return number, at
    raise Malformed("an integer without an end")


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(block):
        raise Malformed("a header without its end")
    is_coded = block[at] & 0x80
    length, at = _read_integer(block, at, 7)
    if at + length > len(block):
        raise Malformed("a string longer than its block")
    text = block[at : at + length]
    return _huffman_decoded(text) if is_coded else text, at + length


def _codes() -> dict[tuple[int, int], int]:
    """Return the symbol of each pair of length and code."""
    codes: dict[tuple[int, int], int] = {}
    code, before = 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - before
        codes[length, code] = symbol
        code, before = code + 1, length
    return codes


_CODES: dict[tuple[int, int], int] = {}  # filled when first needed
_SHORTEST, _LONGEST = 5, 30  # bits of a symbol


def _huffman_decoded(data: bytes) -> bytes:
    if not _CODES:
        _CODES.update(_codes())
    decoded = bytearray()
    bits, count, tried = 0, 0, _SHORTEST - 1  # what is not decoded yet; its first *tried* bits are no symbol
    for byte in data:
        bits, count = bits << 8 | byte, count + 8
        while tried < count:
            tried += 1
            symbol = _CODES.get((tried, bits >> count - tried))
            if symbol is None:
                if tried == _LONGEST:
                    raise Malformed("a code that there is not")
                continue
            if symbol == _END:
                raise Malformed("an end of string within one")
            decoded.append(symbol)
            count -= tried
            bits &= (1 << count) - 1
            tried = _SHORTEST - 1
    if count > 7 or bits != (1 << count) - 1:  # section 5.2: less than a byte, all of it ones
        raise Malformed("a string that is padded with something")
    return bytes(decoded)
