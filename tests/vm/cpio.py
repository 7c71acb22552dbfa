"""The newc cpio format, as much of it as an initramfs needs.

See the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return the archive of *files*, each a path and its permissions and content; directories come by themselves."""
    entries = [(str(path), stat.S_IFDIR | 0o755, b"") for path in _parents(files)]
    entries += [(path, stat.S_IFREG | mode, content) for path, (mode, content) in files.items()]
    packed = [_entry(number, *entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*packed, _entry(0, "TRAILER!!!", 0, b"")])


def _parents(files: Mapping[str, object]) -> Iterator[PurePosixPath]:
    parents = {parent for path in files for parent in PurePosixPath(path).parents}
    return iter(sorted(parents - {PurePosixPath(".")}))


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """Return one header of 13 fields of 8 hexadecimal digits, the name, the content; each part ends on 4 bytes."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
