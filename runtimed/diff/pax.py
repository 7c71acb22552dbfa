"""Records of pax extended headers (POSIX.1-2017 pax, "pax Extended Header") and what GNU, star and libarchive add.

Names and values stay bytes: a file name is what the archive says, in whatever encoding.
"""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from runtimed.errors import InvalidArgument

_SCHILY_XATTR = b"SCHILY.xattr."
_LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."
_MAX_TIME_NS = 2**63 - 1
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")


def parse(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records of an extended header's body, in order; a key may come more than once.

    Raises:
        InvalidArgument: a record is not ``<length> <key>=<value>\\n`` with its true length.
    """
    records = []
    pos = 0
    while pos < len(data):
        space = data.find(b" ", pos, pos + 20)
        digits = data[pos:space] if space > pos else b""
        end = pos + int(digits) if digits.isdigit() else 0
        if not space < end - 1 < len(data) or data[end - 1] != 0x0A:
            raise InvalidArgument("tar: a record of a pax header is malformed")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise InvalidArgument("tar: a record of a pax header has no key")
        records.append((key, value))
        pos = end
    return records


def number(value: bytes, what: str) -> int:
    """Return the decimal number *value*. Raises InvalidArgument if it is not one, or is negative."""
    if not value.isdigit() or len(value) > 20:
        raise InvalidArgument(f"tar: {what} {value[:32]!r} in a pax header is not a number")
    return int(value)


def time(value: bytes) -> int:
    """Return the time *value* in nanoseconds since the epoch; digits beyond nanoseconds are dropped.

    What does not fit into 64 bits counts as no time at all, the epoch.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        raise InvalidArgument(f"tar: time {value[:32]!r} in a pax header is not a number")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 10**9 + int((fraction or b"")[:9].ljust(9, b"0"))
    if nanoseconds > _MAX_TIME_NS:
        return 0
    return -nanoseconds if sign else nanoseconds


def xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the extended attributes among *records*.

    star's and GNU tar's way to write them has precedence over libarchive's, which encodes names and values.
    """
    found = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE_XATTR):
            name = unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])
            try:
                found[name] = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                raise InvalidArgument(f"tar: extended attribute {name[:64]!r} is not base64") from None
    for key, value in records.items():
        if key.startswith(_SCHILY_XATTR):
            found[key[len(_SCHILY_XATTR) :]] = value
    return found
