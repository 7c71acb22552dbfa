"""The content store in files. The directory is at all times a valid OCI image layout (OCI image-spec image-layout.md).

::

    <root>/oci-layout                    the layout's version
    <root>/index.json                    one descriptor per image name; replaced as a whole, never written in place
    <root>/blobs/<algorithm>/<hex>       committed, read-only, never written again
    <root>/ingest/<directory>/data       being written; see ingest.py

Other tools may read it while the daemon runs (``skopeo copy oci:<root>:<image name> ...``); only the daemon writes.
A blob gets its name by rename after its bytes are on disk, so a file below ``blobs`` is always whole.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from runtimed.content.ingest import Writer
from runtimed.errors import InvalidArgument, os_errors
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor

_ALGORITHMS = ("sha256", "sha384", "sha512")
_INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"


class LocalStore:
    """A :class:`runtimed.content.store.ContentStore` below one directory."""

    def __init__(self, root: Path) -> None:
        """Make the layout where it is missing; what is there is kept."""
        self.root = root
        with os_errors(f"content store {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._ingests = root / "ingest"
            self._ingests.mkdir(mode=0o700, exist_ok=True)
            (root / "blobs").mkdir(exist_ok=True)
            for algorithm in _ALGORITHMS:
                (root / "blobs" / algorithm).mkdir(exist_ok=True)
            if not (root / "oci-layout").exists():
                self._replace("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            if not (root / "index.json").exists():
                self.write_index([])

    def size(self, digest: str) -> int:
        with os_errors(f"content {digest}"):
            return self.path(digest).stat().st_size

    def open(self, digest: str) -> BinaryIO:
        with os_errors(f"content {digest}"):
            return self.path(digest).open("rb")

    def path(self, digest: str) -> Path:
        algorithm, encoded = digests.split(digest)
        return self.root / "blobs" / algorithm / encoded

    def delete(self, digest: str) -> None:
        with os_errors(f"content {digest}"):
            self.path(digest).unlink()

    def digests(self) -> Iterator[str]:
        for algorithm in _ALGORITHMS:
            with os.scandir(self.root / "blobs" / algorithm) as entries:
                for entry in entries:
                    digest = f"{algorithm}:{entry.name}"
                    if _is_digest(digest):  # anything else is not ours: leave it alone
                        yield digest

    def commit(self, writer: Writer, size: int, expected: str) -> tuple[str, int]:
        digest = writer.verify(size, expected)
        writer.sync()  # before the rename: a blob has its bytes, also after a power cut
        target = self.path(digest)
        writer.move(target)
        with os_errors(f"content {digest}"):
            _sync_directory(target.parent)
        return digest, writer.offset

    def ingest_path(self, directory: str) -> Path:
        if not directory.isalnum():  # the names are ours; a row that says otherwise must not lead outside
            raise InvalidArgument(f"ingest directory {directory!r}")
        return self._ingests / directory

    def ingest_size(self, directory: str) -> tuple[int, int]:
        try:
            found = (self.ingest_path(directory) / "data").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def remove_ingest(self, directory: str) -> None:
        with os_errors(f"ingest directory {directory}"):
            try:
                shutil.rmtree(self.ingest_path(directory))
            except FileNotFoundError:
                return

    def ingests(self) -> Iterator[str]:
        with os.scandir(self._ingests) as entries:
            for entry in entries:
                if entry.name.isalnum() and entry.is_dir(follow_symlinks=False):
                    yield entry.name

    def write_index(self, images: Iterable[Descriptor]) -> None:
        index = {"schemaVersion": 2, "mediaType": _INDEX_MEDIA_TYPE, "manifests": list(images)}
        data = msgspec.json.encode(index)
        with os_errors("content store's index.json"):
            if not (self.root / "index.json").exists() or (self.root / "index.json").read_bytes() != data:
                self._replace("index.json", data)

    def _replace(self, name: str, data: bytes) -> None:
        fresh = self.root / f"{name}.new"
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        fresh.replace(self.root / name)
        _sync_directory(self.root)


def _is_digest(text: str) -> bool:
    try:
        digests.validate(text)
    except InvalidArgument:
        return False
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
