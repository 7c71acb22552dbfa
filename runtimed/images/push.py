"""Pushing an image: layers and configs first, then the manifests, from the leaves to the root, which gets the name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from runtimed import labels
from runtimed.errors import InvalidArgument, NotFound, about, os_errors
from runtimed.images.holding import held_lease
from runtimed.images.progress import Progress, Report, ref_of
from runtimed.metadata import images
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Resource
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.oci.reference import Reference
from runtimed.registry import pusher
from runtimed.registry.client import RegistryClient
from runtimed.threads import blocking

_BLOBS_AT_ONCE = 3
_CHUNK = 256 << 10  # bytes read at a time
_MAX_DEPTH = 4  # indexes in indexes


class _Node(msgspec.Struct, frozen=True):
    """A manifest or index, and what has to be in the registry before it."""

    descriptor: Descriptor
    data: bytes
    manifests: tuple["_Node", ...] = ()
    blobs: tuple[Descriptor, ...] = ()


class Pusher:
    """Pushes images of the store."""

    def __init__(self, content: Content, db: Database, *, foreign_layers: bool = False) -> None:
        """With *foreign_layers* they are pushed, too; else a registry gets none, and wants none."""
        self._foreign_layers = foreign_layers
        self._content = content
        self._db = db

    async def mounts(self, namespace: str, name: str, target: Reference) -> list[str]:
        """Return the repositories of the registry of *target* that the image's root is known to be in.

        Raises NotFound: no such image, or its root is not here.
        """
        image = await self._db.read(images.get, namespace, name)
        return await self.sources(namespace, image.target.digest, target)

    async def push(
        self, namespace: str, name: str, client: RegistryClient, wanted: Sequence[Platform], report: Report
    ) -> Descriptor:
        """Push the image *name* to the reference of *client* and return the descriptor that it has there.

        Without *wanted* platforms all of an index is pushed, as it is. With them an index of those manifests is, or the
        manifest itself if there is one: registries take no index whose manifests they do not have.

        Raises:
            NotFound: no such image, nothing for a platform, or a blob that is not here.
            Unauthenticated, PermissionDenied, Unavailable, DataLoss: from the registry, naming it.
        """
        image = await self._db.read(images.get, namespace, name)
        async with held_lease(self._db, namespace, [Resource("content", image.target.digest)]), client:
            report(Progress(event=f"Pushing to OCI Registry ({client.reference})"))
            report(Progress(event="pushing content", name=name, descriptor=image.target))
            with about(f"image {name}"):
                root = await self._plan(namespace, image.target, wanted, 0)
            job = _Push(self, self._content, namespace, client, report)
            await job.manifest(root, client.reference.object)
            report(Progress(event="pushed content", name=name, descriptor=root.descriptor))
        report(Progress(event=f"Completed push to OCI Registry ({client.reference})", descriptor=root.descriptor))
        return root.descriptor

    async def _plan(self, namespace: str, descriptor: Descriptor, wanted: Sequence[Platform], depth: int) -> _Node:
        """Return what is to be pushed; nothing is sent before all of it is known to be here."""
        data = await self._read(namespace, descriptor)
        entries = manifest.children(descriptor, data)
        if descriptor.media_type in manifest.MANIFESTS:
            blobs = tuple(entry for entry in entries if self._foreign_layers or not manifest.is_foreign(entry))
            for blob in blobs:
                await blocking(self._content.path, namespace, blob.digest)
            return _Node(descriptor, data, blobs=blobs)
        if descriptor.media_type not in manifest.INDEXES:
            raise InvalidArgument(f"media type {descriptor.media_type[:128]!r} is not an image's")
        if depth == _MAX_DEPTH:
            raise InvalidArgument(f"more than {_MAX_DEPTH} indexes inside each other")
        chosen = list(entries)
        if wanted:
            best = [platforms.select(entries, one, "the index") for one in wanted]
            chosen = [entry for entry in entries if entry in best]
        if wanted and len(chosen) == 1:
            return await self._plan(namespace, _plain(chosen[0]), wanted, depth + 1)
        if len(chosen) < len(entries):
            descriptor, data = _reduced(descriptor, data, chosen)
        nodes = [await self._plan(namespace, one, (), depth + 1) for one in chosen]
        return _Node(descriptor, data, manifests=tuple(nodes))

    async def _read(self, namespace: str, descriptor: Descriptor) -> bytes:
        try:
            return await blocking(self._content.read, namespace, descriptor.digest, manifest.MAX_SIZE)
        except NotFound:
            which = f" for {platforms.format(descriptor.platform)}" if descriptor.platform else ""
            raise NotFound(
                f"manifest {descriptor.digest}{which} is not here; pull it for all platforms, or push only some"
            ) from None

    async def sources(self, namespace: str, digest: str, target: Reference) -> list[str]:
        """Return the other repositories of the registry of *target* that have the blob, as far as is known."""
        info = await blocking(self._content.info, namespace, digest)
        known = info.labels.get(labels.DISTRIBUTION_SOURCE + target.host, "").split(",")
        return [one for one in known if one and one != target.repository]


class _Push:
    """One push under way."""

    def __init__(
        self, pusher: Pusher, content: Content, namespace: str, client: RegistryClient, report: Report
    ) -> None:
        self._pusher = pusher
        self._content = content
        self._namespace = namespace
        self._client = client
        self._report = report
        self._slots = asyncio.Semaphore(_BLOBS_AT_ONCE)
        self._begun: set[str] = set()

    async def manifest(self, node: _Node, name: str) -> None:
        """Push all that *node* needs, and then itself as *name*."""
        for child in node.manifests:
            await self.manifest(child, child.descriptor.digest)
        await self._blobs([blob for blob in node.blobs if blob.digest not in self._begun])
        outcome = await pusher.push_manifest(self._client, node.descriptor, node.data, name)
        self._tell(node.descriptor, outcome, node.descriptor.size)

    async def _blobs(self, blobs: Sequence[Descriptor]) -> None:
        unique = {blob.digest: blob for blob in blobs}
        self._begun |= unique.keys()
        tasks = [asyncio.create_task(self._blob(blob)) for blob in unique.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _blob(self, blob: Descriptor) -> None:
        self._tell(blob, "waiting", 0)
        async with self._slots:
            path = await blocking(self._content.path, self._namespace, blob.digest)
            sources = await self._pusher.sources(self._namespace, blob.digest, self._client.reference)

            async def read(offset: int, length: int) -> AsyncIterator[bytes]:
                async for piece in pieces(path, offset, length):
                    yield piece
                    offset += len(piece)
                    self._tell(blob, "uploading", offset)

            with about(f"blob {blob.digest}"):
                outcome = await pusher.push_blob(self._client, blob, read, mount_from=sources[0] if sources else "")
        self._tell(blob, outcome, blob.size)

    def _tell(self, descriptor: Descriptor, event: str, done: int) -> None:
        event = "complete" if event == pusher.Outcome.MOUNTED else str(event)
        self._report(
            Progress(event=event, name=ref_of(descriptor), progress=done, total=descriptor.size, descriptor=descriptor)
        )


async def pieces(path: Path, offset: int, length: int) -> AsyncIterator[bytes]:
    """Yield *length* bytes of a file from *offset* on, never holding more than a piece."""
    with os_errors(f"content {path.name}"):
        file = await blocking(path.open, "rb", 0)
    with file:
        await blocking(file.seek, offset)
        while length and (piece := await blocking(file.read, min(_CHUNK, length))):
            length -= len(piece)
            yield piece


def _plain(descriptor: Descriptor) -> Descriptor:
    """Return an index's entry as a root: what the index says of it is not its own."""
    return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)


def _reduced(descriptor: Descriptor, data: bytes, chosen: Sequence[Descriptor]) -> tuple[Descriptor, bytes]:
    """Return an index like *data* of the *chosen* entries only."""
    document = msgspec.json.decode(data)
    document["manifests"] = list(chosen)
    reduced = msgspec.json.encode(document)
    return msgspec.structs.replace(_plain(descriptor), digest=digests.of(reduced), size=len(reduced)), reduced
