"""What a content store keeps and promises: blobs by digest, and the ingests they are written as.

A *blob* is committed content; its name is its digest and its bytes never change. An *ingest* is content being
written; it has a directory and becomes a blob by being committed. Namespaces, labels and refs are not known here:
:mod:`runtimed.metadata.content` says who may see what.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from runtimed.content.ingest import Writer
from runtimed.oci.descriptor import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A blob as one namespace sees it. ``size`` is bytes, times are nanoseconds since the epoch, UTC."""

    digest: str
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An ingest as one namespace sees it. ``offset`` and ``total`` are bytes; ``total`` is 0 until a client said it."""

    ref: str
    offset: int
    total: int = 0
    expected: str = ""
    started_at: int = 0
    updated_at: int = 0


class ContentStore(Protocol):
    """Blobs and ingests on some storage. Every method blocks; all may be called from several threads at once.

    A digest that is not well formed is InvalidArgument everywhere. An error of the storage is the class of its errno:
    ResourceExhausted when it is full.
    """

    def size(self, digest: str) -> int:
        """Return the size of a blob in bytes. Raises NotFound."""

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it. It stays readable if the blob is deleted. Raises NotFound."""

    def path(self, digest: str) -> Path:
        """Return where the blob is, or would be."""

    def delete(self, digest: str) -> None:
        """Remove a blob. Raises NotFound."""

    def digests(self) -> Iterator[str]:
        """Yield the digest of every blob. What is written or deleted meanwhile may or may not be among them."""

    def ingest_path(self, directory: str) -> Path:
        """Return where a :class:`Writer` for the ingest of that name works; letters and digits only.

        One writer at a time: the caller sees to that.
        """

    def commit(self, writer: Writer, size: int, expected: str) -> tuple[str, int]:
        """Make a blob of what was written; return its digest and size. On return it survives a power cut.

        *size* (bytes; 0: any) and *expected* (a digest; "": any, and then it is sha256) are compared first. A blob that
        is there already is replaced by the same, verified bytes; whoever reads it is not disturbed. The ingest
        directory is left, empty: see :meth:`remove_ingest`. The writer must not write again. After a failure the
        ingest is as it was.

        Raises:
            FailedPrecondition: size or digest is another.
            NotFound: the ingest has been removed meanwhile.
        """

    def ingest_size(self, directory: str) -> tuple[int, int]:
        """Return the bytes an ingest holds, and when it was last written to (ns UTC). Nothing yet: (0, 0)."""

    def remove_ingest(self, directory: str) -> None:
        """Remove an ingest with its bytes. One that is gone is success."""

    def ingests(self) -> Iterator[str]:
        """Yield the name of every ingest directory."""

    def write_index(self, images: Iterable[Descriptor]) -> None:
        """Say which blobs are images. Each carries its name as an annotation."""
