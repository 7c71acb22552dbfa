"""The walk through an image, from its root descriptor down to its layers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from runtimed import labels
from runtimed.errors import InvalidArgument, NotFound
from runtimed.images.expecting import Expecting
from runtimed.images.progress import Progress, Report, ref_of
from runtimed.images.requests import Request, Unpack
from runtimed.images.unpack import Layer, Unpacker
from runtimed.images.verifying import Verifier
from runtimed.metadata.content import Content
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.threads import blocking

_LAYERS_AT_ONCE = 3  # downloads of one image
_DOCUMENTS_AT_ONCE = 8
_MAX_DEPTH = 4  # indexes in indexes
_MAX_MANIFESTS = 1000  # of one image

# Sees to it that a blob is in the content store and held; the names of what it is part of go into progress messages.
Fetch = Callable[[Descriptor, tuple[str, ...]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a walk takes. With *foreign_layers* they are fetched like others; else an image that has one is refused."""

    content: Content
    unpacker: Unpacker
    snapshotters: Mapping[str, Snapshots]
    verifier: Verifier
    foreign_layers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One walk: what is wanted of an image, and how it comes here. *subject* names the image in errors."""

    namespace: str
    subject: str
    request: Request
    fetch: Fetch
    lease: str
    report: Report


class Visitor:
    """Goes through an image from a root descriptor down: fetches what is wanted of it, unpacks layers."""

    def __init__(self, tools: Tools, visit: Visit) -> None:
        self._content = tools.content
        self._unpacker = tools.unpacker
        self._snapshotters = tools.snapshotters
        self._verifier = tools.verifier
        self._foreign_layers = tools.foreign_layers
        self._namespace = visit.namespace
        self._subject = visit.subject
        self._request = visit.request
        self._fetch = visit.fetch
        self._lease = visit.lease
        self._report = visit.report
        self._documents = asyncio.Semaphore(_DOCUMENTS_AT_ONCE)
        self._layers = asyncio.Semaphore(_LAYERS_AT_ONCE)
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
            for descriptor, diff_id, chain_id in zip(layers, diff_ids, manifest.chain_ids(diff_ids), strict=True):
                layer = Layer(
                    namespace=self._namespace,
                    snapshots=snapshots,
                    descriptor=descriptor,
                    parent=parent,
                    diff_id=diff_id,
                    chain_id=chain_id,
                )
                group.create_task(self._unpack_one(layer, arrivals[descriptor.digest], expecting))
                parent = chain_id
        if parent:
            key = labels.GC_REF_SNAPSHOT + unpack.snapshotter
            await blocking(self._content.update, self._namespace, config.digest, {key: parent}, [f"labels.{key}"])

    async def _unpack_one(self, layer: Layer, arrival: "asyncio.Task[None]", expecting: Expecting) -> None:
        await arrival
        tell = partial(self._tell, layer.descriptor)
        await self._unpacker.unpack(layer, self._lease, tell, expecting.of(layer.chain_id))
        await expecting.over(layer.chain_id)

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
