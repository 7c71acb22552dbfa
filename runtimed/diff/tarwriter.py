"""A writer of tar archives: ustar, with pax headers for what does not fit; the same bytes for the same entries."""

from collections.abc import Callable, Mapping

from runtimed.diff.tar import BLOCK, Entry, Kind

_FLAGS = {
    Kind.FILE: b"0",
    Kind.HARD_LINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER_DEVICE: b"3",
    Kind.BLOCK_DEVICE: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_MAX_NAME = 100  # bytes, of a name or a link in a header
_MAX_ID = 0o7777777
_MAX_NUMBER = 0o77777777777  # of a size or a time
_SECOND = 10**9
_ZEROS = bytes(BLOCK)


class TarWriter:
    """Writes entries, each followed by as many bytes as its size says. Owners are numbers, times are whole seconds."""

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write = write
        self._missing = 0  # bytes of the current entry
        self._padding = 0

    def add(self, entry: Entry) -> None:
        """Write the headers of *entry*; the bytes of a file are for :meth:`data`."""
        self._end_entry()
        self._write(headers(entry))
        if entry.kind is Kind.FILE:
            self._missing = entry.size
            self._padding = -entry.size % BLOCK

    def data(self, data: bytes | memoryview) -> None:
        """Write some of the bytes of the file that was added last."""
        assert len(data) <= self._missing, "more bytes than the entry has"
        self._missing -= len(data)
        self._write(data)

    def close(self) -> None:
        """End the archive; what it was written to stays open."""
        self._end_entry()
        self._write(_ZEROS * 2)

    def _end_entry(self) -> None:
        assert not self._missing, f"{self._missing} bytes of an entry are missing"
        if self._padding:
            self._write(_ZEROS[: self._padding])
            self._padding = 0


def headers(entry: Entry) -> bytes:
    """Return the header of *entry*, after a pax header if it needs one."""
    records: dict[bytes, bytes] = {}
    name = _field(records, b"path", entry.name)
    link = _field(records, b"linkpath", entry.link)
    size = _number(records, b"size", entry.size if entry.kind is Kind.FILE else 0, _MAX_NUMBER)
    uid = _number(records, b"uid", entry.uid, _MAX_ID)
    gid = _number(records, b"gid", entry.gid, _MAX_ID)
    mtime = _number(records, b"mtime", entry.mtime // _SECOND, _MAX_NUMBER)
    for key, value in entry.xattrs.items():
        records[b"SCHILY.xattr." + key] = value
    header = _header(name, _FLAGS[entry.kind], entry.mode, uid, gid, size, mtime, link, entry.major, entry.minor)
    if not records:
        return header
    body = _pax(records)
    # Where its own readers look for nothing; GNU tar and Go name it after the entry, which need not be.
    extension = _header(b"PaxHeaders.0/pax", b"x", 0o644, 0, 0, len(body), 0, b"", 0, 0)
    return extension + body + _ZEROS[: -len(body) % BLOCK] + header


def _field(records: dict[bytes, bytes], key: bytes, value: bytes) -> bytes:
    """Return what of *value* goes into the header; if that is not all, it goes into *records*, too."""
    if len(value) > _MAX_NAME or not value.isascii():
        records[key] = value
    return value[:_MAX_NAME]


def _number(records: dict[bytes, bytes], key: bytes, value: int, most: int) -> int:
    if 0 <= value <= most:
        return value
    records[key] = b"%d" % value
    return 0


def _header(
    name: bytes,
    flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    major: int,
    minor: int,
) -> bytes:
    head = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(_MAX_NAME, b"\0"), mode, uid, gid, size, mtime)
    device = b"%07o\0%07o\0" % (major, minor)
    tail = flag + link.ljust(_MAX_NAME, b"\0") + b"ustar\x0000" + bytes(64) + device + bytes(167)
    return head + b"%06o\0 " % (sum(head) + 8 * 0x20 + sum(tail)) + tail


def _pax(records: Mapping[bytes, bytes]) -> bytes:
    """Return the body of a pax header: ``<length> <key>=<value>\\n``, the length with its own digits, by key."""
    parts = []
    for key, value in sorted(records.items()):
        rest = b" %b=%b\n" % (key, value)
        length = len(rest) + len(str(len(rest)))
        if len(str(length)) > len(str(len(rest))):
            length += 1
        parts.append(b"%d" % length + rest)
    return b"".join(parts)
