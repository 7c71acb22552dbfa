"""Importing images: from the tar stream of an archive to blobs, snapshots and names.

The archive is read to its end first, into ingests: only then is it known which of its files belong to an image. Those
become blobs. Whatever ends an import early leaves no ingest, no snapshot, no name, and blobs that nothing holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtimed.errors import DataLoss, InvalidArgument, NotFound
from runtimed.images import archive as archives
from runtimed.images import docker_archive
from runtimed.images.archive import Archive
from runtimed.images.blobs import document_limit, gc_labels
from runtimed.images.following import Following
from runtimed.images.holding import lease_of
from runtimed.images.naming import Rule, names
from runtimed.images.progress import Progress, Report, ref_of
from runtimed.images.pull import Puller, store_image
from runtimed.images.requests import Pulled, Request
from runtimed.images.staging import Staged, Staging
from runtimed.images.visiting import Visit
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor
from runtimed.rollback import Rollback
from runtimed.threads import blocking, streaming
from runtimed.workers.pool import Pool

_SUBJECT = "image archive"


class ArchiveStream(Protocol):
    """What an archive is read from, by one thread; *interrupt* makes the reading fail soon."""

    def read(self, size: int, /) -> bytes: ...

    def interrupt(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What to make of an archive."""

    request: Request  # its names are for the index of the archive, if it is to be kept
    rules: tuple[Rule, ...] = ()
    media_type: str = ""  # of the stream; "": a tar archive, compressed or not
    compress: bool = False  # plain layers, where the archive says nothing of their media type


class Importer:
    """Imports archives. What it unpacks, and how, is the *puller*'s."""

    def __init__(self, content: Content, db: Database, puller: Puller, pool: Pool) -> None:
        self._pool = pool
        self._content = content
        self._db = db
        self._puller = puller

    async def run(self, namespace: str, stream: ArchiveStream, wanted: Import, report: Report) -> list[Pulled]:
        """Import the archive that *stream* gives into *namespace* and return the images under each of their names.

        Raises:
            InvalidArgument, Unimplemented: not an image archive, a damaged one, or layers that cannot be unpacked.
            NotFound: nothing in it for a platform that was asked for, a blob that neither it nor the store has, or no
                such snapshotter.
            ResourceExhausted: no space left.
        """
        self._puller.check(wanted.request)
        report(Progress(event="Importing"))
        if wanted.request.unpacks:
            self._pool.warm()  # beside the first bytes
        async with (
            lease_of(self._db, namespace, wanted.request.lease, fetches=False) as lease,
            Rollback() as steps,
            Following(self._pool, self._directory(wanted)) as following,
        ):
            staging = Staging(self._content, self._db, namespace, lease, following)
            steps.undo("remove the ingests of an import", blocking, staging.clear)  # never committed: also of success

            def read() -> tuple[Archive, bytes]:
                found = archives.read(stream, wanted.media_type, staging)
                return found, _index(found, staging, compress=wanted.compress)

            archive, index = await streaming(read, stream.interrupt)
            job = _Job(self._content, namespace, archive, staging, following, report)
            root = Descriptor(media_type=manifest.OCI_INDEX, digest=digests.of(index), size=len(index))
            entries = _chosen(manifest.children(root, index), wanted.request)
            visit = Visit(
                namespace=namespace,
                subject=_SUBJECT,
                request=wanted.request,
                fetch=job.fetch,
                lease=lease,
                report=report,
            )
            visitor = self._puller.visitor(visit)
            for entry in {entry.digest: entry for entry in entries}.values():
                named = next(iter(names(entry, wanted.rules)), _SUBJECT)
                await visitor.visit(entry, (), named)
            images = [(name, entry) for entry in entries for name in names(entry, wanted.rules)]
            if wanted.request.names:
                await job.keep_index(root, index, entries)
                images += [(name, root) for name in wanted.request.names]
            marks = wanted.request.labels
            done = [await self._db.write(store_image, namespace, name, target, marks) for name, target in images]
        for one in done:
            report(Progress(event="saved", name=one.image.name, descriptor=one.image.target))
        report(Progress(event="Completed import"))
        return done

    def _directory(self, wanted: Import) -> Path | None:
        """Return where layers are made files of while they arrive; None: nowhere."""
        if wanted.compress or len(wanted.request.unpacks) != 1:
            return None
        return self._puller.layer_directory(wanted.request.unpacks[0])


def _index(archive: Archive, staging: Staging, *, compress: bool) -> bytes:
    """Return the index of the archive's images: its own, or one made of Docker's manifest."""
    if archive.layout is not None:
        version = archives.layout_version(archive.layout)
        if version != "1.0.0":
            raise InvalidArgument(f"{_SUBJECT}: image layout version {version[:32]!r} is not 1.0.0")
        if archive.index is None:
            raise InvalidArgument(f"{_SUBJECT}: an image layout without {archives.INDEX}")
        return archive.index
    if archive.manifests is None:
        raise InvalidArgument(
            f"{_SUBJECT}: neither {archives.LAYOUT} nor {archives.MANIFESTS} is in it; it is not what docker save,"
            " skopeo or rctl images export write"
        )
    return docker_archive.convert(archive, staging, compress=compress)


def _chosen(entries: Sequence[Descriptor], request: Request) -> list[Descriptor]:
    """Return the images of the archive that are wanted: all, or those that may be for a platform."""
    wanted = request.platforms
    if not wanted:
        return list(entries[: request.manifest_limit or None])
    chosen = [
        entry
        for entry in entries
        if entry.platform is None or any(platforms.matches(entry.platform, one) for one in wanted)
    ]
    if entries and not chosen:
        there = sorted({platforms.format(entry.platform) for entry in entries if entry.platform})
        asked = " or ".join(platforms.format(one) for one in wanted)
        raise NotFound(f"{_SUBJECT} has nothing for {asked}; it has: {', '.join(there[:20])}")
    return chosen[: request.manifest_limit or None]


class _Job:
    """One import under way: its files become blobs as they are asked for."""

    def __init__(
        self,
        content: Content,
        namespace: str,
        archive: Archive,
        staging: Staging,
        following: Following,
        report: Report,
    ) -> None:
        self._following = following
        self._content = content
        self._namespace = namespace
        self._files = {staged.digest: staged for staged in archive.files.values()}
        self._staging = staging
        self._report = report

    async def fetch(self, descriptor: Descriptor, parents: tuple[str, ...]) -> None:
        """See that the blob of *descriptor* is in the namespace, labelled, and held."""
        staged = self._files.get(descriptor.digest)
        followed = staged.followed if staged else None
        if followed:
            await followed.until_read()
        await blocking(self._fetch, descriptor)
        if staged and followed:
            await self._following.give(followed, staged.digest, staged.head)
        done = Progress(
            event="complete",
            name=ref_of(descriptor),
            parents=parents,
            progress=descriptor.size,
            total=descriptor.size,
            descriptor=descriptor,
        )
        self._report(done)

    async def keep_index(self, root: Descriptor, data: bytes, entries: Sequence[Descriptor]) -> None:
        """Make a blob of the archive's index, which holds those *entries* that are here."""

        def keep() -> None:
            staged = self._staging.add([data], size=root.size, expected=root.digest)
            self._commit(staged, gc_labels(tuple(entries)))

        await blocking(keep)

    def _fetch(self, descriptor: Descriptor) -> None:
        staged = self._files.get(descriptor.digest)
        if staged is None:
            self._find(descriptor)
            staged = Staged(digest=descriptor.digest, size=descriptor.size)
        if staged.size != descriptor.size:
            raise InvalidArgument(
                f"{_SUBJECT}: {descriptor.digest} has {staged.size} bytes, but what refers to it says {descriptor.size}"
            )
        self._commit(staged, {})
        # Documents say what they hold; they are read only when they are known to be here, and whole.
        if limit := document_limit(descriptor):
            data = self._content.read(self._namespace, descriptor.digest, limit)
            self._mark(descriptor.digest, gc_labels(manifest.children(descriptor, data)))

    def _find(self, descriptor: Descriptor) -> None:
        try:
            self._staging.hold(descriptor.digest)
        except (NotFound, DataLoss):
            platform = f" for {platforms.format(descriptor.platform)}" if descriptor.platform else ""
            kind = "manifest" if descriptor.media_type in manifest.MANIFESTS else "blob"
            raise NotFound(
                f"{_SUBJECT}: {kind} {descriptor.digest}{platform} is not in it; import only the platforms that are"
            ) from None
        size = self._content.info(self._namespace, descriptor.digest).size
        if size != descriptor.size:
            raise InvalidArgument(f"{_SUBJECT}: {descriptor.digest} has {size} bytes, not {descriptor.size}")

    def _commit(self, staged: Staged, marks: Mapping[str, str]) -> None:
        self._staging.commit(staged, marks)
        self._mark(staged.digest, marks)

    def _mark(self, digest: str, marks: Mapping[str, str]) -> None:
        """Add labels to a blob that another may have made, without them."""
        there = self._content.info(self._namespace, digest).labels
        missing = {key: value for key, value in marks.items() if there.get(key) != value}
        if missing:
            self._content.update(self._namespace, digest, missing, [f"labels.{key}" for key in missing])
