"""Content by namespace: which namespace sees which blob, and the ingests that clients know by ref.

Rows (``blobs``, ``ingests``) and files (:mod:`runtimed.content`) are kept so that a crash at any step leaves nothing
wrong, only something to tidy:

============  =======================================  =====================================================
operation     order                                    after a crash in between
============  =======================================  =====================================================
begin         row, then directory                      a row without directory: taken up again from 0
write         bytes                                    what is there counts
commit        bytes on disk, rename to the blob, then  a blob that no row names, and an ingest without data:
              one transaction: blob row in, ingest     the client commits again. If it gives the expected
              row out, leases; then the directory      digest, the blob is found and need not be sent
abort         row, then directory                      a directory without row: swept at the next start
delete        row, then the file, if no namespace      a blob that no row names: swept at the next start
              has a row for it any more
============  =======================================  =====================================================

So a row never promises bytes that are not on disk, and a file is only removed after the last row that names it. Blobs
are shared between namespaces ("shared" policy of containerd): a blob that another namespace has becomes visible here as
soon as a client says it is about to write that digest.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from runtimed import failpoints, identifiers, labels
from runtimed.content.ingest import Writer
from runtimed.content.local import LocalStore
from runtimed.content.store import Info, Status
from runtimed.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
    os_errors,
)
from runtimed.filters import parse
from runtimed.metadata import blobs, images
from runtimed.metadata.db import Database
from runtimed.oci import digest as digests

log = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes that are hashed at a time
_READ_LIMIT = 8 << 20  # bytes; manifests and configs are far smaller


class Ingest(Writer):
    """An ingest that this writer alone holds, until it is closed; what was written stays for the next one.

    A context manager; not for several threads at once. One that nobody has any more closes itself: a caller that is
    cancelled while it waits for :meth:`Content.begin` never gets what it could close.
    """

    _claim: object = None

    def __init__(self, content: "Content", namespace: str, row: blobs.Row, lease: str, claim: object) -> None:
        ref, directory, _, self.total, self.started_at = row
        super().__init__(content.store.ingest_path(directory), ref)
        self._content = content
        self._namespace = namespace
        self._lease = lease
        self._claim = claim

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None, lease: str = ""
    ) -> Info:
        """Make a blob of what was written, visible in the namespace, with *labels*.

        From then on *lease* holds it (the lease given at begin, if none is given here). *size* in bytes and *expected*
        are compared unless 0 and "". On return it survives a power cut, the ref is free and the ingest closed. After
        FailedPrecondition or ResourceExhausted the bytes are still there.

        Raises:
            AlreadyExists: the namespace has this blob already; its labels stay as they are, the ingest is removed.
            FailedPrecondition: size or digest is another.
            NotFound: the ingest was aborted meanwhile, or there is no such lease.
            ResourceExhausted: the disk is full.
        """
        return self._content.commit(self._namespace, self, size, expected, labels or {}, lease or self._lease)

    def close(self) -> None:
        """Let go of the ingest, so that another writer can take it up."""
        super().close()
        if self._claim is not None:
            self._content.release(self._namespace, self.ref, self._claim)
            self._claim = None

    def __del__(self) -> None:
        self.close()


class Content:
    """Blobs and ingests as the namespaces see them. Blocks; any thread may call any method."""

    def __init__(self, db: Database, store: LocalStore, *, verify_on_read: bool = False) -> None:
        """*verify_on_read*: opening a blob compares it with its digest, unless it is the file that was compared."""
        self.store = store
        self.verifies = verify_on_read
        self._verified: dict[str, tuple[int, ...]] = {}  # digest -> the state of the file that was compared
        self._db = db
        self._guard = threading.Lock()
        self._held: dict[tuple[str, str], object] = {}  # (namespace, ref) -> the claim of who holds it
        # Whether a file goes or stays is decided by rows: both change under the lock of their digest.
        self._locks = [threading.Lock() for _ in range(64)]

    # -- blobs

    def info(self, namespace: str, digest: str) -> Info:
        """Return what *namespace* knows of a blob. Raises NotFound, also if only another namespace has it."""
        digests.validate(digest)
        with self._db.reading() as tx:
            return blobs.get_blob(tx, namespace, digest)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        """Return the blobs that match, by digest. Filters see ``digest``, ``size`` and ``labels``."""
        wanted = parse(filters)
        with self._db.reading() as tx:
            return blobs.list_blobs(tx, namespace, wanted)

    def update(self, namespace: str, digest: str, given: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Change labels as *paths* says (see :func:`runtimed.labels.updated`) and return the result.

        Raises:
            NotFound: the namespace has no such blob.
            InvalidArgument: a path that is not about labels, or a label that is not valid.
        """
        digests.validate(digest)
        return self._db.submit(blobs.update_blob, namespace, digest, given, paths).result()

    def delete(self, namespace: str, digest: str) -> None:
        """Make a blob invisible here, and remove its bytes if no other namespace sees it. Raises NotFound."""
        digests.validate(digest)
        with self._lock(digest):
            if self._db.submit(blobs.delete_blob, namespace, digest).result():
                return
            with suppress(NotFound):
                self.store.delete(digest)

    def open(self, namespace: str, digest: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it.

        Raises:
            NotFound: the namespace has no such blob.
            DataLoss: it should be there, but its file is missing, has another size, or other bytes where they are
                verified. Writing it again repairs that.
        """
        info = self.info(namespace, digest)
        try:
            file = self.store.open(digest)
        except NotFound:
            self.info(namespace, digest)  # NotFound, if it has been deleted meanwhile
            raise DataLoss(f"content {digest}: its file is missing; pull or write it again") from None
        if (size := file.seek(0, 2)) != info.size:
            file.close()
            raise DataLoss(f"content {digest}: its file has {size} bytes instead of {info.size}; write it again")
        file.seek(0)
        if self.verifies:
            try:
                self._verify(digest, file)
            except BaseException:
                file.close()
                raise
        return file

    def _verify(self, digest: str, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self._verified.get(digest) == state:
            return
        algorithm, encoded = digests.split(digest)
        hasher = hashlib.new(algorithm)
        with os_errors(f"content {digest}"):
            while piece := file.read(_PIECE):
                hasher.update(piece)
        if hasher.hexdigest() != encoded:
            raise DataLoss(f"content {digest}: its file has other bytes; pull or write it again")
        self._verified[digest] = state
        file.seek(0)

    def path(self, namespace: str, digest: str) -> Path:
        """Return the file of a blob, for a worker process to read. Raises as :meth:`open`."""
        with self.open(namespace, digest):
            return self.store.path(digest)

    def read(self, namespace: str, digest: str, limit: int = _READ_LIMIT) -> bytes:
        """Return a whole blob. Raises as :meth:`open`, and ResourceExhausted beyond *limit* bytes."""
        with self.open(namespace, digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ResourceExhausted(f"content {digest} is larger than the {limit} bytes that are allowed here")
        return data

    # -- ingests

    def begin(self, namespace: str, ref: str, *, total: int = 0, expected: str = "", lease: str = "") -> Ingest:
        """Take up the ingest *ref* where it was left, or start it; the caller closes it.

        *total* in bytes and *expected* are what the client says it will be, if it does. *lease* holds the ingest. If
        the blob *expected* is in the store already it becomes visible in this namespace, with the labels that follow
        from its bytes, held by *lease*, and *ref* is removed.

        Raises:
            AlreadyExists: the blob *expected* is (now) visible here: nothing need be written.
            Unavailable: another writer holds *ref*; try again later.
            NotFound: there is no such lease.
            InvalidArgument: the ref, total or digest is not valid.
        """
        identifiers.validate_name(ref, "content ref")
        if total < 0:
            raise InvalidArgument(f"ingest {ref!r}: total {total} is negative")
        claim = object()
        with self._guard:
            if self._held.setdefault((namespace, ref), claim) is not claim:
                raise Unavailable(f"ingest {ref!r} is held by another writer; try again later")
        try:
            if expected and self._share(namespace, expected, total, lease):
                self._remove_ingest(namespace, ref)
                raise AlreadyExists(f"content {expected}")
            row = self._db.submit(blobs.begin, namespace, ref, total, expected, lease).result()
            return Ingest(self, namespace, row, lease, claim)
        except BaseException:
            self.release(namespace, ref, claim)
            raise

    def release(self, namespace: str, ref: str, claim: object) -> None:
        """End *claim* on *ref*. For :class:`Ingest`."""
        with self._guard:
            if self._held.get((namespace, ref)) is claim:
                del self._held[namespace, ref]

    def commit(
        self, namespace: str, ingest: Ingest, size: int, expected: str, given: Mapping[str, str], lease: str
    ) -> Info:
        """See :meth:`Ingest.commit`, which calls this."""
        stored = labels.checked(given)
        digest = ingest.verify(size, expected)  # the long part, before the lock
        ingest.sync()
        with self._lock(digest):
            self.store.commit(ingest, size, digest)
            try:
                failpoints.hit("content.renamed")
                info, is_new = self._db.submit(blobs.commit, namespace, ingest, digest, stored, lease).result()
            except BaseException:
                with suppress(RuntimedError):  # of an ingest that was aborted meanwhile there is nothing to give back
                    self._uncommit(ingest, digest)
                raise
        ingest.close()
        self.store.remove_ingest(ingest.directory.name)
        if not is_new:
            raise AlreadyExists(f"content {digest}")
        return info

    def status(self, namespace: str, ref: str) -> Status:
        """Return how far an ingest is. Raises NotFound."""
        with self._db.reading() as tx:
            return self._status(blobs.get_ingest(tx, namespace, ref))

    def statuses(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Status]:
        """Return the ingests that match, by ref. Filters see ``ref``."""
        wanted = parse(filters)
        with self._db.reading() as tx:
            rows = blobs.list_ingests(tx, namespace)
        return wanted.select((self._status(row) for row in rows), _status_field)

    def is_whole(self, namespace: str, digest: str) -> bool:
        """Say whether *namespace* has the blob and its file has the right size."""
        try:
            return self.info(namespace, digest).size == self.store.size(digest)
        except NotFound:
            return False

    def abort(self, namespace: str, ref: str) -> None:
        """Remove an ingest with its bytes, also one that a writer holds: its commit will fail. Raises NotFound."""
        if not self._remove_ingest(namespace, ref):
            raise NotFound(f"ingest {ref!r}")

    # -- garbage collection

    def held(self) -> set[tuple[str, str]]:
        """Return namespace and ref of every ingest that has a writer."""
        with self._guard:
            return set(self._held)

    def remove_unnamed(self, digest: str) -> None:
        """Remove the bytes of a blob if no namespace has a row for it (any more)."""
        with self._lock(digest):
            with self._db.reading() as tx:
                if blobs.is_named(tx, digest):
                    return
            with suppress(NotFound):
                self.store.delete(digest)

    def drop_ingest(self, directory: str, expected: str) -> None:
        """Remove the bytes of an ingest that has no row any more.

        Those of the blob *expected* too, unless a row names it: a crash between rename and row may have left it.
        """
        self.store.remove_ingest(directory)
        if expected:
            self.remove_unnamed(expected)

    # -- as a whole

    def reconcile(self) -> None:
        """Tidy what a crash left between rows and files. Call at start, before anything is written.

        Ingest directories without a row go, and so do rows without a directory. A blob that no row names goes too,
        unless an ingest expects it: then its writer was stopped between rename and row, and will find it. A row without
        its file is left, and logged: the file may come back (a disk not mounted), and writing it again repairs that.
        """
        with self._db.reading() as tx:
            ingests = {directory: expected for _, directory, expected, _, _ in blobs.all_ingests(tx)}
            named = blobs.named(tx)
        on_disk = set(self.store.ingests())
        for directory in on_disk - set(ingests):
            self.store.remove_ingest(directory)
        there = set(self.store.digests())
        for digest in there - named - set(ingests.values()):
            with suppress(NotFound):
                self.store.delete(digest)
        # An ingest whose blob is waiting for it keeps its row, or the blob would go at the next start.
        waiting = there - named
        empty = [directory for directory in set(ingests) - on_disk if ingests[directory] not in waiting]
        if empty:
            self._db.submit(blobs.drop_ingests, empty).result()
        if missing := len(named - there):
            log.warning("blobs are recorded, but their files are missing", extra={"blobs": missing})
        self.write_index()

    def write_index(self) -> None:
        """Bring the layout's ``index.json`` up to date with the images. Costs little if nothing has changed.

        The store is a valid OCI layout at any time, since the file is replaced as a whole; that it lists the images of
        this moment is seen to at start and, while the daemon runs, shortly after each change by
        :func:`runtimed.services.layout.keep_index`.
        """
        with self._db.reading() as tx:
            self.store.write_index(images.index(tx))

    def _share(self, namespace: str, digest: str, total: int, lease: str) -> bool:
        """Make the blob visible in *namespace* if the store has it and, unless *total* is 0, it has that many bytes.

        If it is visible already nobody asks for its size, as in containerd.
        """
        digests.validate(digest)
        with self._lock(digest):
            try:
                size = self.store.size(digest)
            except NotFound:
                return False
            if total not in (0, size) and not self.is_whole(namespace, digest):
                return False  # the commit will say so
            return self._db.submit(blobs.share, namespace, digest, size, lease).result()

    def _uncommit(self, ingest: Ingest, digest: str) -> None:
        """Give the bytes back to an ingest whose row could not be written. With the digest's lock held."""
        with self._db.reading() as tx:
            is_named = blobs.is_named(tx, digest)
        if is_named:
            ingest.close()  # the file is another namespace's blob as well; it must not be written to again
        else:
            ingest.move_back(self.store.path(digest))

    def _remove_ingest(self, namespace: str, ref: str) -> bool:
        removed = self._db.submit(blobs.delete_ingest, namespace, ref).result()
        if removed:
            self.drop_ingest(*removed)
        return bool(removed)

    def _status(self, row: blobs.Row) -> Status:
        ref, directory, expected, total, started_at = row
        offset, updated_at = self.store.ingest_size(directory)
        return Status(
            ref=ref,
            offset=offset,
            total=total,
            expected=expected,
            started_at=started_at,
            updated_at=updated_at or started_at,
        )

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks[hash(digest) % len(self._locks)]


def _status_field(status: Status, path: Sequence[str]) -> str | None:
    return status.ref if path == ["ref"] else None
