"""Tar archives made header by header, so that they can be wrong in any way a test wants."""

from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"


def tar(*members: bytes) -> bytes:
    """Return an archive of *members* with its end."""
    return b"".join(members) + END


def padded(data: bytes) -> bytes:
    """Return *data* filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    patch: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """Return one header block. Numbers given as bytes go in as they are; *patch* overwrites bytes at offsets."""
    block = bytearray(BLOCK)
    for offset, length, value in (
        (0, 100, name),
        (100, 8, mode),
        (108, 8, uid),
        (116, 8, gid),
        (124, 12, size),
        (136, 12, mtime),
        (156, 1, kind),
        (157, 100, link),
        (257, 8, magic),
        (329, 8, device[0]),
        (337, 8, device[1]),
        (345, 155, prefix),
    ):
        field = b"%0*o\0" % (length - 1, value) if isinstance(value, int) else value
        assert len(field) <= length, (offset, field)
        block[offset : offset + len(field)] = field
    for offset, value in (patch or {}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def file(name: bytes, data: bytes = b"", **fields) -> bytes:
    """Return a regular file."""
    return header(name, **{"size": len(data), **fields}) + padded(data)


def directory(name: bytes, **fields) -> bytes:
    """Return a directory."""
    return header(name, **{"kind": b"5", "mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields) -> bytes:
    """Return a symbolic link."""
    return header(name, **{"kind": b"2", "mode": 0o777, "link": target, **fields})


def hard_link(name: bytes, target: bytes, **fields) -> bytes:
    """Return a hard link."""
    return header(name, **{"kind": b"1", "link": target, **fields})


def whiteout(directory: bytes, name: bytes) -> bytes:
    """Return the whiteout that hides *name* in *directory*."""
    return file(directory + b"/.wh." + name)


def opaque(directory: bytes) -> bytes:
    """Return the whiteout that hides everything in *directory*."""
    return file(directory + b"/.wh..wh..opq")


def records(pairs: Mapping[bytes, bytes] | list[tuple[bytes, bytes]]) -> bytes:
    """Return the body of a pax header."""
    result = b""
    for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        result += str(length).encode() + rest
    return result


def pax(pairs: Mapping[bytes, bytes] | list[tuple[bytes, bytes]], *, kind: bytes = b"x") -> bytes:
    """Return a pax header for the next member or, with *kind* ``g``, for all that follow."""
    return file(b"PaxHeaders/x", records(pairs), kind=kind)


def long_name(name: bytes, *, kind: bytes = b"L") -> bytes:
    """Return GNU's header for the next member's long name or, with *kind* ``K``, its long link."""
    return file(b"././@LongLink", name + b"\0", kind=kind, magic=GNU)


def base256(value: int, length: int = 12) -> bytes:
    """Return *value* as GNU writes what does not fit in octal digits."""
    number = value & ((1 << (8 * length - 1)) - 1) | 1 << (8 * length - 1)
    return number.to_bytes(length, "big")
