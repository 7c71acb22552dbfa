"""Pulling an image: from a source's root descriptor to blobs, snapshots and a name.

A pull holds a lease until the image is named. Whatever ends it before that leaves no snapshot and no lease; blobs that
have arrived, and the bytes of those that have not quite, stay for a day, for the next pull.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from runtimed import labels
from runtimed.config import ImageVerification
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.images import holding
from runtimed.images.blobs import Blobs
from runtimed.images.dropping import drops
from runtimed.images.expecting import Expecting
from runtimed.images.progress import Progress, Report, ref_of
from runtimed.images.repair import Repairer
from runtimed.images.running import RunningPull
from runtimed.images.sources import Source
from runtimed.images.timings import ANNOTATION, Clock, Timings
from runtimed.images.unpack import Unpacker
from runtimed.images.verifying import Verifier
from runtimed.metadata import images, leases, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.images import Image
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.snapshots.snapshotter import Kind
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

log = logging.getLogger(__name__)

LAYERS_AT_ONCE = 3  # downloads of one pull
_DOCUMENTS_AT_ONCE = 8
_MAX_DEPTH = 4  # indexes in indexes
_MAX_MANIFESTS = 1000  # of one image


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """Make snapshots of the layers of what runs on *platform*."""

    snapshotter: str
    platform: Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to pull and what to make of it."""

    names: tuple[str, ...]  # of the image; one that ends in "@" gets the root's digest
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()  # of an index: the best manifest for each; none: all manifests
    all_metadata: bool = False  # also manifests and configs, without layers, of the other platforms
    manifest_limit: int = 0  # of each index, the first so many of those wanted; 0: all
    unpacks: tuple[Unpack, ...] = ()
    lease: str = ""  # of the client; without it a pull makes its own
    drops_layers: bool = False  # blobs of layers are not kept once these are unpacked; see images/dropping.py


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image as stored; whether the name is new."""

    image: Image
    is_new: bool


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
        self._verifier = verifier or Verifier(ImageVerification(), content)
        self._content = content
        self._foreign_layers = foreign_layers
        self._db = db
        self._snapshotters = snapshotters
        self._blobs = Blobs(content, db)
        self._unpacker = Unpacker(content, db, pool, repairer)

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
        async with lease_of(self._db, namespace, request.lease, fetches=True) as lease, source, self._noted(running):
            report(Progress(event=f"Resolving from OCI Registry ({source.reference})"))
            root = await source.resolve()
            report(Progress(event=f"Pulling from OCI Registry ({source.reference})"))
            report(Progress(event="fetching image content", name=request.names[0], descriptor=root))

            async def fetch(descriptor: Descriptor, parents: tuple[str, ...]) -> None:
                await self._blobs.fetch(
                    namespace, source, descriptor, parents, lease, report, drops_layers=request.drops_layers
                )

            subject = f"image {source.reference}"
            await self.visitor(namespace, subject, request, fetch, lease, report).visit(
                root, (request.names[0],), str(source.reference)
            )
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

    def visitor(
        self, namespace: str, subject: str, request: Request, fetch: "Fetch", lease: str, report: Report
    ) -> "Visitor":
        """Return what brings an image here by *fetch*, and unpacks it. *subject* names it in errors."""
        return Visitor(
            self._content,
            self._unpacker,
            self._snapshotters,
            self._verifier,
            namespace,
            subject,
            request,
            fetch,
            lease,
            report,
            foreign_layers=self._foreign_layers,
        )


def _logged(timings: Timings) -> dict[str, object]:
    """Return *timings* for a log message: the layers as their number, and the seconds of all of them."""
    facts = {name: value for name, value in msgspec.structs.asdict(timings).items() if name != "layers"}
    return facts | {
        "layers": len(timings.layers),
        "download_s": round(sum(layer.download_s for layer in timings.layers), 4),
        "unpack_s": round(sum(layer.unpack_s for layer in timings.layers), 4),
    }


@asynccontextmanager
async def lease_of(db: Database, namespace: str, given: str, *, fetches: bool) -> AsyncIterator[str]:
    """Hold a lease: the client's, which is left alone, or one that goes when the block ends."""
    if given:
        await db.read(leases.get, namespace, given)
        yield given
        return
    async with holding.held_lease(db, namespace, fetches=fetches) as lease:
        yield lease


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


# Sees to it that a blob is in the content store and held; the names of what it is part of go into progress messages.
Fetch = Callable[[Descriptor, tuple[str, ...]], Awaitable[None]]


class Visitor:
    """Goes through an image from a root descriptor down: fetches what is wanted of it, unpacks layers."""

    def __init__(
        self,
        content: Content,
        unpacker: Unpacker,
        snapshotters: Mapping[str, Snapshots],
        verifier: Verifier,
        namespace: str,
        subject: str,
        request: Request,
        fetch: Fetch,
        lease: str,
        report: Report,
        *,
        foreign_layers: bool,
    ) -> None:
        self._foreign_layers = foreign_layers
        self._content = content
        self._unpacker = unpacker
        self._snapshotters = snapshotters
        self._verifier = verifier
        self._namespace = namespace
        self._subject = subject
        self._request = request
        self._fetch = fetch
        self._lease = lease
        self._report = report
        self._documents = asyncio.Semaphore(_DOCUMENTS_AT_ONCE)
        self._layers = asyncio.Semaphore(LAYERS_AT_ONCE)
        self._manifests = 0

    async def visit(self, root: Descriptor, parents: tuple[str, ...], name: str) -> None:
        """Bring everything below *root* here and unpack it, if its verifiers accept it as *name*. Raises as they do."""
        accepted = await self._verifier.verify(self._namespace, name, root)
        await self._visit(root, parents, 0, with_layers=True)
        await self._verifier.keep(self._namespace, root.digest, accepted)

    async def _visit(self, descriptor: Descriptor, parents: tuple[str, ...], depth: int, *, with_layers: bool) -> None:
        if descriptor.media_type in manifest.MANIFESTS:
            await self._image(descriptor, parents, with_layers=with_layers)
            return
        if descriptor.media_type not in manifest.INDEXES:
            await self._fetch(descriptor, parents)
            return
        if depth == _MAX_DEPTH:
            raise InvalidArgument(f"{self._subject}: more than {_MAX_DEPTH} indexes inside each other")
        entries = manifest.children(descriptor, await self._document(descriptor, parents, manifest.MAX_SIZE))
        chosen = self._choose(entries)
        async with _together() as group:
            for entry in entries if self._request.all_metadata else chosen:
                visit = self._visit(
                    entry, (ref_of(descriptor),), depth + 1, with_layers=with_layers and entry in chosen
                )
                group.create_task(visit)

    def _choose(self, entries: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the entries of an index whose layers are wanted."""
        self._manifests += len(entries)
        if self._manifests > _MAX_MANIFESTS:
            raise InvalidArgument(f"{self._subject}: more than {_MAX_MANIFESTS} manifests")
        limit = self._request.manifest_limit or None
        if not self._request.platforms:
            return list(entries[:limit])
        chosen: list[Descriptor] = []
        for wanted in self._request.platforms:
            best = platforms.select(entries, wanted, self._subject)
            if best not in chosen:
                chosen.append(best)
        return chosen[:limit]

    async def _image(self, descriptor: Descriptor, parents: tuple[str, ...], *, with_layers: bool) -> None:
        document = await self._document(descriptor, parents, manifest.MAX_SIZE)
        config, *layers = manifest.children(descriptor, document)
        if self._foreign_layers:
            layers = [manifest.distributable(layer) for layer in layers]
        below = (ref_of(descriptor),)
        unpacks: list[Unpack] = []
        parsed: manifest.ImageConfig | None = None
        if config.media_type in manifest.CONFIGS:
            parsed = manifest.parse_config(config, await self._document(config, below, manifest.MAX_CONFIG_SIZE))
            if with_layers:
                self._check_platform(parsed)
                unpacks = [u for u in self._request.unpacks if _runs_on(parsed, u.platform)]
        else:
            await self._fetch(config, below)
        # All that may be refused is, before the first layer is asked for.
        if unpacks:
            manifest.check_layers(descriptor, layers)
        elif foreign := [layer for layer in layers if manifest.is_foreign(layer)]:
            manifest.check_layers(descriptor, foreign)
        diff_ids = (parsed.rootfs.diff_ids or ()) if parsed else ()
        if unpacks and len(diff_ids) != len(layers):
            raise InvalidArgument(
                f"manifest {descriptor.digest} has {len(layers)} layers, but its config {len(diff_ids)} diff IDs"
            )
        if not with_layers:
            return
        dropped = await self._unpacked(unpacks, layers, diff_ids) if self._request.drops_layers else set()
        async with Expecting(self._namespace, self._unpacker) as expecting, _together() as group:
            if len(unpacks) == 1:
                expecting.plan(self._snapshotters[unpacks[0].snapshotter], layers, diff_ids)
            # The largest first: what comes last should not be what takes longest.
            by_size = sorted(layers, key=lambda layer: -layer.size)
            arrivals = {
                layer.digest: group.create_task(
                    self._layer(layer, below, expecting, is_wanted=layer.digest not in dropped)
                )
                for layer in by_size
            }
            for unpack in unpacks:
                group.create_task(self._unpack(unpack, config, layers, diff_ids, arrivals, expecting))

    def _check_platform(self, config: manifest.ImageConfig) -> None:
        """Refuse an image that says it is for another platform; of an index, this repeats the choice."""
        wanted = self._request.platforms
        if wanted and not any(_runs_on(config, platform) for platform in wanted):
            raise NotFound(
                f"{self._subject} is for {platforms.format(config.platform)}, not for "
                + " or ".join(platforms.format(platform) for platform in wanted)
            )

    async def _unpack(
        self,
        unpack: Unpack,
        config: Descriptor,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        arrivals: Mapping[str, "asyncio.Task[None]"],
        expecting: Expecting,
    ) -> None:
        """Unpack *layers*, each when it has arrived, and let the config hold the top one."""
        snapshots = self._snapshotters[unpack.snapshotter]
        parent = ""
        async with _together() as group:
            for layer, diff_id, chain_id in zip(layers, diff_ids, manifest.chain_ids(diff_ids), strict=True):
                arrival = arrivals[layer.digest]
                unpacking = self._unpack_one(snapshots, layer, arrival, parent, diff_id, chain_id, expecting)
                group.create_task(unpacking)
                parent = chain_id
        if parent:
            key = labels.GC_REF_SNAPSHOT + unpack.snapshotter
            await blocking(self._content.update, self._namespace, config.digest, {key: parent}, [f"labels.{key}"])

    async def _unpack_one(
        self,
        snapshots: Snapshots,
        layer: Descriptor,
        arrival: "asyncio.Task[None]",
        parent: str,
        diff_id: str,
        chain_id: str,
        expecting: Expecting,
    ) -> None:
        await arrival
        await self._unpacker.unpack(
            self._namespace,
            snapshots,
            layer,
            parent=parent,
            diff_id=diff_id,
            chain_id=chain_id,
            lease=self._lease,
            tell=partial(self._tell, layer),
            expected=expecting.of(chain_id),
        )
        await expecting.over(chain_id)

    def _tell(self, layer: Descriptor, event: str) -> None:
        done = layer.size if event == "extracted" else 0
        self._report(Progress(event=event, name=ref_of(layer), progress=done, total=layer.size, descriptor=layer))

    async def _document(self, descriptor: Descriptor, parents: tuple[str, ...], limit: int) -> bytes:
        async with self._documents:
            await self._fetch(descriptor, parents)
        return await blocking(self._content.read, self._namespace, descriptor.digest, limit)

    async def _layer(
        self, descriptor: Descriptor, parents: tuple[str, ...], expecting: Expecting, *, is_wanted: bool
    ) -> None:
        if not is_wanted:
            self._tell(descriptor, "already exists")
            return
        async with self._layers:
            await expecting.begin(descriptor)
            await self._fetch(descriptor, parents)

    async def _unpacked(
        self, unpacks: Sequence[Unpack], layers: Sequence[Descriptor], diff_ids: Sequence[str]
    ) -> set[str]:
        """Return the digests of layers that are unpacked wherever they are to be, and hold the snapshots."""
        needed: set[str] = set()
        for unpack in unpacks:
            snapshots = self._snapshotters[unpack.snapshotter]
            for layer, chain_id in zip(layers, manifest.chain_ids(diff_ids), strict=True):
                if not await self._unpacker.hold(self._namespace, snapshots, chain_id, self._lease):
                    needed.add(layer.digest)
        return {layer.digest for layer in layers} - needed if unpacks else set()


def _runs_on(config: manifest.ImageConfig, wanted: Platform) -> bool:
    return not (config.os and config.architecture) or platforms.matches(config.platform, wanted)


def store_image(tx: Tx, namespace: str, name: str, target: Descriptor, marks: Mapping[str, str]) -> Pulled:
    """Let *name* point to *target*, whether it is there or not."""
    image = Image(name=name + target.digest if name.endswith("@") else name, target=target, labels=marks)
    try:
        return Pulled(images.create(tx, namespace, image), True)
    except AlreadyExists:
        return Pulled(images.update(tx, namespace, image), False)


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Hold a task group whose first failure, not a group of them, is what the caller hears."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None
