"""Pulling an image: from a source's root descriptor to blobs, snapshots and a name.

A pull holds a lease until the image is named. Whatever ends it before that leaves no snapshot and no lease; blobs that
have arrived, and the bytes of those that have not quite, stay for a day, for the next pull.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from runtimed import labels
from runtimed.config import ImageVerification
from runtimed.errors import AlreadyExists, NotFound
from runtimed.images import holding
from runtimed.images.blobs import Blobs
from runtimed.images.dropping import drops
from runtimed.images.progress import Progress, Report
from runtimed.images.repair import Repairer
from runtimed.images.requests import Pulled, Request, Unpack
from runtimed.images.running import RunningPull
from runtimed.images.sources import Source
from runtimed.images.timings import ANNOTATION, Clock, Timings
from runtimed.images.unpack import Unpacker
from runtimed.images.verifying import Verifier
from runtimed.images.visiting import Tools, Visit, Visitor
from runtimed.metadata import images, leases, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.images import Image
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci.descriptor import Descriptor
from runtimed.snapshots.snapshotter import Kind, layer_directory
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

log = logging.getLogger(__name__)


class Puller:
    """Pulls images, several at a time; what two of them need is fetched and unpacked once."""

    def __init__(
        self,
        content: Content,
        db: Database,
        snapshotters: Mapping[str, Snapshots],
        pool: Pool,
        repairer: Repairer | None = None,
        verifier: Verifier | None = None,
        *,
        foreign_layers: bool = False,
    ) -> None:
        """With *foreign_layers* they are had from the source like others; else an image that has one is refused."""
        self.listener: Callable[[Timings], None] | None = None  # hears of each pull that succeeded
        self.running: set[RunningPull] = set()
        self._db = db
        self._snapshotters = snapshotters
        self._blobs = Blobs(content, db)
        self._tools = Tools(
            content=content,
            unpacker=Unpacker(content, db, pool, repairer),
            snapshotters=snapshotters,
            verifier=verifier or Verifier(ImageVerification(), content),
            foreign_layers=foreign_layers,
        )

    async def pull(self, namespace: str, source: Source, request: Request, report: Report) -> list[Pulled]:
        """Pull what *source* refers to into *namespace* and return the image under each of its names.

        Raises:
            NotFound: there is no such image, or nothing in it for a platform that was asked for, or no such
                snapshotter.
            InvalidArgument, Unimplemented: documents or layers that are not what they should be, or cannot be unpacked.
            Unauthenticated, PermissionDenied, Unavailable, DataLoss: from the source, naming it.
            ResourceExhausted: no space left.
        """
        self.check(request)
        is_dropping = await self._db.read(drops, namespace)
        if is_dropping and request.unpacks and request.platforms:
            request = replace(request, drops_layers=True)
        running = RunningPull(namespace, str(source.reference), report)
        clock = Clock(running.report)
        report = clock.report
        async with (
            holding.lease_of(self._db, namespace, request.lease, fetches=True) as lease,
            source,
            self._noted(running),
        ):
            report(Progress(event=f"Resolving from OCI Registry ({source.reference})"))
            root = await source.resolve()
            report(Progress(event=f"Pulling from OCI Registry ({source.reference})"))
            report(Progress(event="fetching image content", name=request.names[0], descriptor=root))

            async def fetch(descriptor: Descriptor, parents: tuple[str, ...]) -> None:
                await self._blobs.fetch(
                    namespace, source, descriptor, parents, lease, report, drops_layers=request.drops_layers
                )

            name = str(source.reference)
            visit = Visit(
                namespace=namespace, subject=f"image {name}", request=request, fetch=fetch, lease=lease, report=report
            )
            await self.visitor(visit).visit(root, (request.names[0],), name)
            pulled = [
                await self._db.write(store_image, namespace, name, root, request.labels) for name in request.names
            ]
        for one in pulled:
            report(Progress(event="saved", name=one.image.name, descriptor=one.image.target))
        timings = clock.timings()
        log.info("image pulled", extra={"image": str(source.reference), "digest": root.digest, **_logged(timings)})
        if self.listener is not None:
            self.listener(timings)
        told = msgspec.structs.replace(root, annotations={ANNOTATION: msgspec.json.encode(timings).decode()})
        report(Progress(event=f"Completed pull from OCI Registry ({source.reference})", descriptor=told))
        return pulled

    @asynccontextmanager
    async def _noted(self, running: RunningPull) -> AsyncIterator[None]:
        self.running.add(running)
        try:
            yield
        finally:
            self.running.remove(running)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be done. Raises NotFound: there is no such snapshotter."""
        for unpack in request.unpacks:
            if unpack.snapshotter not in self._snapshotters:
                known = ", ".join(sorted(self._snapshotters)) or "none"
                raise NotFound(f"snapshotter {unpack.snapshotter!r}; there are: {known}")

    def layer_directory(self, unpack: Unpack) -> Path | None:
        """Return where layers that *unpack* wants are made files of; None: they are extracted."""
        return layer_directory(self._snapshotters[unpack.snapshotter].snapshotter)

    def visitor(self, visit: Visit) -> Visitor:
        """Return what goes through an image, and unpacks it."""
        return Visitor(self._tools, visit)


def _logged(timings: Timings) -> dict[str, object]:
    """Return *timings* for a log message: the layers as their number, and the seconds of all of them."""
    facts = {name: value for name, value in msgspec.structs.asdict(timings).items() if name != "layers"}
    return facts | {
        "layers": len(timings.layers),
        "download_s": round(sum(layer.download_s for layer in timings.layers), 4),
        "unpack_s": round(sum(layer.unpack_s for layer in timings.layers), 4),
    }


async def recover(db: Database, content: Content, snapshotters: Mapping[str, Snapshots]) -> None:
    """Remove what the pulls and imports of a daemon that was killed have left: half-made snapshots, and their leases.

    What had been downloaded stays, for whoever pulls again; of imports nothing does. Call at start, before the first.
    """
    for namespace, lease in await db.read(_leases_of_ours):
        is_of_a_fetch = holding.is_of_a_fetch(lease)
        for resource in await db.read(leases.resources, namespace, lease.id):
            snapshots = snapshotters.get(resource.type.removeprefix("snapshots/"))
            if snapshots is not None:
                await blocking(_remove_if_active, snapshots, namespace, resource.id)
            elif resource.type == "ingests" and not is_of_a_fetch:
                with suppress(NotFound):
                    await blocking(content.abort, namespace, resource.id)
        await db.write(holding.abandon if is_of_a_fetch else holding.release, namespace, lease.id)


def _leases_of_ours(tx: Tx) -> list[tuple[str, leases.Lease]]:
    return [
        (namespace.name, lease)
        for namespace in namespaces.list(tx)
        for lease in leases.list(tx, namespace.name)
        if labels.PULL in lease.labels
    ]


def _remove_if_active(snapshots: Snapshots, namespace: str, key: str) -> None:
    with suppress(NotFound):
        if snapshots.stat(namespace, key).kind is Kind.ACTIVE:
            snapshots.remove(namespace, key)


def store_image(tx: Tx, namespace: str, name: str, target: Descriptor, marks: Mapping[str, str]) -> Pulled:
    """Let *name* point to *target*, whether it is there or not."""
    image = Image(name=name + target.digest if name.endswith("@") else name, target=target, labels=marks)
    try:
        return Pulled(images.create(tx, namespace, image), True)
    except AlreadyExists:
        return Pulled(images.update(tx, namespace, image), False)
