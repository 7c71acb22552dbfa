"""Reading an image archive: an OCI image layout or what ``docker save`` writes, as a tar stream, perhaps compressed.

Everything in it is a stranger's. Files go to :class:`Staging` as they come, documents that say what they are stay in
memory and are limited, and so is how many files there are. Nothing is taken from the archive by a path of the host.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from runtimed.diff import compression
from runtimed.diff.compression import Readable
from runtimed.diff.tar import Entry, Kind, TarReader
from runtimed.errors import InvalidArgument, about
from runtimed.images.staging import Staged, Staging
from runtimed.oci import digest as digests
from runtimed.oci import manifest

LAYOUT = "oci-layout"
INDEX = "index.json"
MANIFESTS = "manifest.json"

_MAX_FILES = 50_000
_MAX_LAYOUT = 4096  # bytes; it holds a version
_MAX_LINKS = 16  # from one to the next
_CHUNK = 256 * 1024
_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
# What old versions of docker save wrote beside the manifest, for still older ones.
_LEGACY = re.compile(r"repositories|[0-9a-f]{64}/(?:VERSION|json)")


@dataclass(slots=True)
class Archive:
    """What an archive holds: its documents as they are, other files by their cleaned names."""

    layout: bytes | None = None
    index: bytes | None = None
    manifests: bytes | None = None
    files: dict[str, Staged] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # symbolic and hard ones, by name

    def find(self, name: str) -> Staged | None:
        """Return the file that *name* is, or leads to by links."""
        name = clean(name)
        for _ in range(_MAX_LINKS):
            if name in self.files or name not in self.links:
                return self.files.get(name)
            name = self.links[name]
        return None


def clean(name: str) -> str:
    """Return *name* relative to the archive's root, without ``.`` and ``..``."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def read(stream: Readable, media_type: str, staging: Staging) -> Archive:
    """Read the archive that *stream* gives, to its end; blocks for as long as that takes.

    Without *media_type* the archive may be compressed by gzip or zstd.

    Raises:
        InvalidArgument: not a tar archive, a damaged one, or one with too much of something.
        ResourceExhausted: no space left.
    """
    archive = Archive()
    with about("image archive"):
        source = stream if media_type else compression.detected(stream)[1]
        reader = TarReader(source.read)
        for entry in reader:
            _add(archive, entry, reader, staging)
            if len(archive.files) + len(archive.links) > _MAX_FILES:
                raise InvalidArgument(f"more than {_MAX_FILES} files")
        while source.read(_CHUNK):  # padding; and the checksum of a compressed archive
            pass
    return archive


def layout_version(data: bytes) -> str:
    """Return the version that an ``oci-layout`` states. Raises InvalidArgument."""
    try:
        return msgspec.json.decode(data, type=_Layout).version
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidArgument(f"image archive: {LAYOUT}: {exc}") from None


class _Layout(msgspec.Struct):
    version: str = msgspec.field(name="imageLayoutVersion")


def _add(archive: Archive, entry: Entry, reader: TarReader, staging: Staging) -> None:
    name = clean(_text(entry.name))
    # Of two with the same name the later one counts.
    match entry.kind:
        case Kind.SYMLINK:
            archive.files.pop(name, None)
            archive.links[name] = clean(posixpath.join(posixpath.dirname(name), _text(entry.link)))
            return
        case Kind.HARD_LINK:
            archive.files.pop(name, None)
            archive.links[name] = clean(_text(entry.link))
            return
        case Kind.FILE:
            archive.links.pop(name, None)
        case _:
            return
    if entry.segments is not None:
        raise InvalidArgument(f"{name!r} is a sparse file; write the archive without --sparse")
    match name:
        case "oci-layout":
            archive.layout = _document(entry, reader, name, _MAX_LAYOUT)
        case "index.json":
            archive.index = _document(entry, reader, name, manifest.MAX_SIZE)
        case "manifest.json":
            archive.manifests = _document(entry, reader, name, manifest.MAX_SIZE)
        case _ if not _LEGACY.fullmatch(name):
            what = repr(name)
            archive.files[name] = staging.add(_pieces(reader), size=entry.size, expected=_digest_of(name), what=what)


def _pieces(reader: TarReader) -> Iterator[memoryview]:
    for _, data in reader.contents():
        yield data


def _document(entry: Entry, reader: TarReader, name: str, limit: int) -> bytes:
    if entry.size > limit:
        raise InvalidArgument(f"{name} has {entry.size} bytes; more than {limit} are refused")
    return b"".join(bytes(piece) for piece in _pieces(reader))


def _digest_of(name: str) -> str:
    """Return the digest that the file *name* of an image layout must have; "" for other files."""
    match = _BLOB.fullmatch(name)
    if match is None:
        return ""
    try:
        return digests.validate(f"{match[1]}:{match[2]}")
    except InvalidArgument:  # of an algorithm that we do not know; nothing can refer to it
        return ""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
