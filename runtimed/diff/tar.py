"""A streaming reader of tar archives: V7, ustar, pax and GNU, with their sparse files.

It is strict where archives lie and follows Go's archive/tar, which defines in practice what a layer holds, where
readers differ: only regular files have data, whatever the size field of another entry says; a pax size replaces the
header's before anything is skipped; a zero block must be followed by another one or by nothing.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from runtimed.diff import pax, sparse
from runtimed.errors import InvalidArgument

BLOCK = 512
_CHUNK = 256 * 1024
_ZEROS = bytes(BLOCK)

MAX_NAME = 4095  # PATH_MAX less its NUL
_MAX_META_SIZE = 1 << 20  # of one metadata header, as in Go
_MAX_META_IN_A_ROW = 16
_MAX_SIZE = 2**63 - 1
_MAX_ID = 2**32 - 2  # 2**32 - 1 is -1, which chown(2) takes for "leave it"
_MAX_TIME_NS = 2**63 - 1

# name, mode, uid, gid, size, mtime, checksum, type, link name, magic, devmajor, devminor, prefix
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32x32x8s8s155s12x")
_CHECKSUM = slice(148, 156)

# What a global header may set for all that follow; it is no place for what makes entries differ.
_GLOBAL_KEYS = frozenset((b"mtime", b"uid", b"gid"))
_REFUSED_GLOBAL_KEYS = frozenset((b"path", b"linkpath", b"size"))
# Of these alone an entry has neither attributes nor holes.
_ORDINARY_KEYS = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname"))
_ORDINARY_KEYS |= {b"mtime", b"atime", b"ctime"}


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER_DEVICE,
    b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}

_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


@dataclass(slots=True, kw_only=True)
class Entry:
    """One member of an archive. Names are as the archive has them: not cleaned, not trusted, but free of NULs."""

    name: bytes
    kind: Kind
    mode: int  # permission, setuid, setgid and sticky bits
    uid: int
    gid: int
    size: int  # bytes, holes included
    mtime: int
    link: bytes  # where a link points
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NO_XATTRS)
    segments: list[sparse.Segment] | None = None  # of a sparse file


class TarReader:
    """Reads the archive that *read* returns, entry by entry; ``read(n)`` is that of a file, b"" at its end.

    Iterate over it once. :meth:`contents` belongs to the entry that came last. Anything wrong with the archive is an
    InvalidArgument. When the iteration ends, *read* may have more to give, which is no part of the archive.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._chunk = b""
        self._pos = 0
        self._passed = 0  # bytes of the chunks before
        self._stored = 0  # bytes of the current entry's data that are still to come
        self._padding = 0
        self._entry: Entry | None = None
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self._entry = entry
            yield entry

    def contents(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the current file's data as pairs of offset and bytes; what is left out is a hole.

        The bytes are valid until the next pair is asked for.
        """
        entry = self._entry
        if entry is None or entry.kind is not Kind.FILE:
            return
        segments = [(0, entry.size)] if entry.segments is None else entry.segments
        for offset, length in segments:
            end = offset + length
            while offset < end:
                view = self._some(end - offset)
                self._stored -= len(view)
                yield offset, view
                offset += len(view)

    @property
    def position(self) -> int:
        """How many bytes of the archive were taken: the offset of the current entry's data until it is read."""
        return self._passed + self._pos

    def _next(self) -> Entry | None:
        self._skip(self._stored + self._padding)
        self._stored = self._padding = 0
        name = link = b""
        records: dict[bytes, bytes] = {}
        sparse_numbers: list[int] = []
        for count in range(_MAX_META_IN_A_ROW):
            header = self._header()
            if header is None:
                if count:
                    raise InvalidArgument("tar: the archive ends after a metadata header")
                return None
            flag = header[156:157]
            if flag in _KINDS:
                return self._make_entry(header, records, sparse_numbers, name, link)
            match flag:
                case b"x" | b"X":
                    for key, value in pax.parse(self._meta(header)):
                        records[key] = value
                        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                            sparse_numbers.append(pax.number(value, "sparse map"))
                case b"g":
                    self._set_globals(self._meta(header))
                case b"L":
                    name = self._meta(header).partition(b"\0")[0]
                case b"K":
                    link = self._meta(header).partition(b"\0")[0]
                case b"V":  # a volume's label
                    self._meta(header)
                case _:
                    unknown = _text(header[:100])
                    raise InvalidArgument(f"tar: entry {unknown!r} is of an unknown type {flag!r}")
        raise InvalidArgument(f"tar: {_MAX_META_IN_A_ROW} metadata headers in a row")

    def _make_entry(
        self, header: bytes, records: dict[bytes, bytes], sparse_numbers: list[int], name: bytes, link: bytes
    ) -> Entry:
        entry, prefix = _parse(header)
        if self._global:
            records = self._global | records
        is_ordinary = _ORDINARY_KEYS.issuperset(records)
        if records:
            _merge(entry, records)
            if not is_ordinary and (attributes := pax.xattrs(records)):
                entry.xattrs = attributes
        entry.name = name or records.get(b"path") or prefix + entry.name
        entry.link = link or records.get(b"linkpath") or entry.link
        if header[156:157] == b"\0" and entry.name.endswith(b"/"):  # how V7 wrote directories
            entry.kind = Kind.DIRECTORY
        if entry.kind is not Kind.FILE:
            entry.size = 0
        _check(entry)
        self._stored = entry.size
        self._padding = -entry.size % BLOCK
        if header[156:157] == b"S":
            self._read_sparse_header(entry, header)
        elif not is_ordinary and any(key.startswith(b"GNU.sparse.") for key in records) and entry.kind is Kind.FILE:
            self._read_sparse_records(entry, records, sparse_numbers)
        return entry

    def _read_sparse_header(self, entry: Entry, header: bytes) -> None:
        entry.segments = sparse.from_header(header, _number, self._block)
        self._set_size(entry, _number(header[483:495]))

    def _read_sparse_records(self, entry: Entry, records: dict[bytes, bytes], numbers: list[int]) -> None:
        if name := records.get(b"GNU.sparse.name"):
            entry.name = name
            _check(entry)
        size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
        if size is None:
            raise InvalidArgument(f"tar: sparse file {entry.name!r} has no size")
        if records.get(b"GNU.sparse.major") == b"1":
            entry.segments = sparse.from_data(self._data_block)
        elif text := records.get(b"GNU.sparse.map"):
            entry.segments = sparse.from_numbers([pax.number(word, "sparse map") for word in text.split(b",")])
        else:
            entry.segments = sparse.from_numbers(numbers)
        self._set_size(entry, pax.number(size, "size"))

    def _set_size(self, entry: Entry, size: int) -> None:
        entry.size = size
        _check(entry)
        assert entry.segments is not None
        sparse.check(entry.segments, size, self._stored)

    def _set_globals(self, data: bytes) -> None:
        for key, value in pax.parse(data):
            if key in _REFUSED_GLOBAL_KEYS or key.startswith(b"GNU.sparse."):
                raise InvalidArgument(f"tar: a global pax header sets {key.decode()} for every entry")
            if key in _GLOBAL_KEYS:
                self._global[key] = value

    def _header(self) -> bytes | None:
        """Return the next header block, or None at the end of the archive."""
        block = self._block_or_end()
        if block is None:
            return None
        if block == _ZEROS:
            if self._block_or_end() not in (None, _ZEROS):
                raise InvalidArgument("tar: a zero block in the middle of the archive")
            return None
        _verify_checksum(block)
        return block

    def _meta(self, header: bytes) -> bytes:
        """Return the body of a metadata header."""
        size = _number(header[124:136])
        if not 0 <= size <= _MAX_META_SIZE:
            raise InvalidArgument(f"tar: a metadata header of {size} bytes; more than {_MAX_META_SIZE} are refused")
        end = self._pos + size
        if end <= len(self._chunk):
            data = self._chunk[self._pos : end]
            self._pos = end
            self._skip(-size % BLOCK)
            return data
        parts = []
        wanted = size
        while wanted:
            parts.append(bytes(self._some(wanted)))
            wanted -= len(parts[-1])
        self._skip(-size % BLOCK)
        return b"".join(parts)

    def _data_block(self) -> bytes:
        """Return a block that counts as data of the current entry."""
        if self._stored < BLOCK:
            raise InvalidArgument("tar: a sparse map runs past its file's data")
        self._stored -= BLOCK
        return self._block()

    def _block(self) -> bytes:
        block = self._block_or_end()
        if block is None:
            raise _truncated()
        return block

    def _block_or_end(self) -> bytes | None:
        end = self._pos + BLOCK
        if end <= len(self._chunk):
            block = self._chunk[self._pos : end]
            self._pos = end
            return block
        rest = self._chunk[self._pos :]
        while len(rest) < BLOCK:
            self._refill()
            if not self._chunk:
                if rest:
                    raise _truncated()
                return None
            self._pos = BLOCK - len(rest)
            rest += self._chunk[: self._pos]
        return rest

    def _some(self, limit: int) -> memoryview:
        """Return between 1 and *limit* bytes, without copying them."""
        if self._pos >= len(self._chunk):
            self._refill()
            if not self._chunk:
                raise _truncated()
        view = memoryview(self._chunk)[self._pos : self._pos + limit]
        self._pos += len(view)
        return view

    def _skip(self, count: int) -> None:
        while count:
            available = len(self._chunk) - self._pos
            if count <= available:
                self._pos += count
                return
            count -= available
            self._refill()
            if not self._chunk:
                raise _truncated()

    def _refill(self) -> None:
        self._passed += len(self._chunk)
        self._chunk = self._read(_CHUNK)
        self._pos = 0


def _truncated() -> InvalidArgument:
    return InvalidArgument("tar: the archive is truncated")


def _parse(header: bytes) -> tuple[Entry, bytes]:
    """Return the entry that *header* alone describes, and what goes before its name."""
    name, mode, uid, gid, size, mtime, _, flag, link, magic, major, minor, prefix = _FIELDS.unpack(header)
    kind = _KINDS[flag]
    entry = Entry(
        name=_text(name),
        kind=kind,
        mode=_number(mode) & 0o7777,
        uid=_number(uid),
        gid=_number(gid),
        size=_number(size),
        mtime=_number(mtime) * 10**9,
        link=_text(link) if kind is Kind.HARD_LINK or kind is Kind.SYMLINK else b"",
    )
    if kind is Kind.CHARACTER_DEVICE or kind is Kind.BLOCK_DEVICE:
        entry.major, entry.minor = _number(major), _number(minor)
    before = b""
    if magic[:6] == b"ustar\0" and prefix[0]:
        if header[508:512] == b"tar\0":  # star keeps times where the prefix ends
            prefix = prefix[:131]
        before = _text(prefix) + b"/"
    return entry, before


def _merge(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Let pax *records* replace what the header says; an empty value leaves it."""
    if value := records.get(b"size"):
        entry.size = pax.number(value, "size")
    if value := records.get(b"uid"):
        entry.uid = pax.number(value, "uid")
    if value := records.get(b"gid"):
        entry.gid = pax.number(value, "gid")
    if value := records.get(b"mtime"):
        entry.mtime = pax.time(value)


def _check(entry: Entry) -> None:
    name = entry.name
    if not name or len(name) > MAX_NAME or len(entry.link) > MAX_NAME:
        raise InvalidArgument(f"tar: an entry's name is empty or of more than {MAX_NAME} bytes: {name[:64]!r}")
    if b"\0" in name or b"\0" in entry.link:
        raise InvalidArgument(f"tar: a name with a NUL in it: {name[:64]!r}")
    if not 0 <= entry.size <= _MAX_SIZE:
        raise InvalidArgument(f"tar: entry {name!r} has an impossible size: {entry.size}")
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise InvalidArgument(f"tar: entry {name!r} has an impossible owner: {entry.uid}:{entry.gid}")
    if not -_MAX_TIME_NS <= entry.mtime <= _MAX_TIME_NS:
        entry.mtime = 0  # as Go's users do; a date is no reason to refuse a layer


def _verify_checksum(header: bytes) -> None:
    """Refuse *header* if its bytes, with the checksum itself as blanks, do not add up to its checksum.

    adler32's low half is one more than the sum of the bytes, modulo 65521, and comes at C speed.
    """
    field_ = header[_CHECKSUM]
    declared = _number(field_)
    blank = 8 * 0x20 - (zlib.adler32(field_) & 0xFFFF) + 1
    if ((zlib.adler32(header) & 0xFFFF) - 1 + blank - declared) % 65521 == 0:
        return
    # Some ancient writers added up signed characters.
    if sum(byte - 256 if byte > 127 else byte for byte in header) + blank == declared and max(header) > 127:
        return
    raise InvalidArgument("tar: a header's checksum is wrong; this is not a tar archive, or a damaged one")


def _text(value: bytes) -> bytes:
    return value.partition(b"\0")[0]


@lru_cache(maxsize=4096)  # a layer has few owners, modes and times, over and over
def _number(value: bytes) -> int:
    """Return the number in a header's field: octal digits, or GNU's base 256 where the first bit is set."""
    digits = value.strip(b" \0")
    if not digits.isdigit():
        if value[0] & 0x80:
            sign_bit = 1 << (8 * len(value) - 2)
            number = int.from_bytes(value, "big") & (2 * sign_bit - 1)
            return number - 2 * sign_bit if number & sign_bit else number
        digits = digits.partition(b"\0")[0].strip(b" ") or b"0"
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise InvalidArgument(f"tar: {value!r} in a header is not a number")
