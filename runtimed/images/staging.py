"""Files that arrive before it is known what they are: ingests of one import, until they are blobs or it ends."""

import secrets
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.images.following import Followed, Following
from runtimed.metadata import leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.oci import digest as digests

_HEAD = 16  # bytes; enough to tell how a layer is compressed
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A file that has arrived; size in bytes. Without a ref the content store had it before."""

    digest: str
    size: int
    ref: str = ""
    head: bytes = b""  # its first bytes
    followed: Followed | None = None  # what was made of it on the way


class Staging:
    """Keeps what arrives in ingests that *lease* holds. Blocks."""

    def __init__(
        self, content: Content, db: Database, namespace: str, lease: str, following: Following | None = None
    ) -> None:
        self._content = content
        self._db = db
        self._namespace = namespace
        self._lease = lease
        self._following = following
        self._prefix = f"import-{secrets.token_hex(8)}"
        self._count = 0
        self._refs: set[str] = set()
        self._guard = threading.Lock()  # two threads that commit the same bytes

    def add(self, pieces: Iterable[bytes | memoryview], *, size: int, expected: str = "", what: str = "") -> Staged:
        """Keep a file of *size* bytes (0: any) called *what*; *expected* is the digest that it claims, if it does.

        The bytes of what the content store has already are not asked for.

        Raises:
            InvalidArgument: another size, or digest.
            ResourceExhausted: no space left.
        """
        self._count += 1
        ref = f"{self._prefix}-{self._count}"
        try:
            ingest = self._content.begin(self._namespace, ref, total=size, expected=expected, lease=self._lease)
        except AlreadyExists:
            size = self._content.info(self._namespace, expected).size
            with self._content.open(self._namespace, expected) as blob:
                return Staged(digest=expected, size=size, head=blob.read(_HEAD))
        with ingest:
            self._refs.add(ref)
            head = b""
            followed = self._following.begin(ingest.data_path, size) if self._following else None
            for piece in pieces:
                if len(head) < _HEAD:
                    head += piece[: _HEAD - len(head)]
                ingest.write(piece)
                if followed:
                    followed.grown(ingest.offset)
            if size and ingest.offset != size:
                raise InvalidArgument(f"{what} has {ingest.offset} bytes, not {size}")
            digest = ingest.digest(digests.split(expected)[0] if expected else "sha256")
            if expected and digest != expected:
                raise InvalidArgument(f"{what} is damaged: its content has digest {digest}")
            if followed:
                followed.whole(ingest.offset)
            return Staged(digest=digest, size=ingest.offset, ref=ref, head=head, followed=followed)

    def read(self, staged: Staged, limit: int, what: str) -> bytes:
        """Return the whole file. Raises InvalidArgument if it has more than *limit* bytes."""
        if staged.size > limit:
            raise InvalidArgument(f"{what} has {staged.size} bytes; more than {limit} are refused")
        if not staged.ref or staged.ref not in self._refs:
            return self._content.read(self._namespace, staged.digest, limit)
        with self._content.begin(self._namespace, staged.ref, lease=self._lease) as ingest:
            return ingest.data_path.read_bytes()

    def pieces(self, staged: Staged) -> Iterable[bytes]:
        """Yield the bytes of the file."""
        with (
            self._content.begin(self._namespace, staged.ref, lease=self._lease) as ingest,
            ingest.data_path.open("rb") as file,
        ):
            while piece := file.read(_CHUNK):
                yield piece

    def commit(self, staged: Staged, marks: Mapping[str, str]) -> None:
        """Make a blob of the file, durable and held by the lease, with *marks* for labels as far as it is new."""
        with self._guard, suppress(AlreadyExists):
            if staged.ref not in self._refs:
                return
            expected = staged.digest
            with self._content.begin(self._namespace, staged.ref, expected=expected, lease=self._lease) as ingest:
                ingest.adopt(staged.size, staged.digest)
                ingest.commit(staged.size, staged.digest, marks, self._lease)
            self._refs.discard(staged.ref)

    def hold(self, digest: str) -> None:
        """Let the lease hold a blob that may have been there before. Raises NotFound if it is not, DataLoss."""
        self._db.submit(_hold, self._namespace, self._lease, digest).result()
        self._content.path(self._namespace, digest)

    def clear(self) -> None:
        """Remove what has not become a blob."""
        for ref in self._refs:
            with suppress(NotFound):
                self._content.abort(self._namespace, ref)
        self._refs.clear()


def _hold(tx: Tx, namespace: str, lease: str, digest: str) -> None:
    leases.add_resource(tx, namespace, lease, leases.Resource("content", digest))
