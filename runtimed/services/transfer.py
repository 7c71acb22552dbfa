"""containerd.services.transfer.v1: images from one place to another.

From a registry into the image store (pull), from the store to a registry (push), within the store (tag), from an
archive into the store (import), from the store into an archive (export), and from a stream to a stream (echo).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from runtimed import labels
from runtimed.api import images_pb2, types_pb2
from runtimed.api import transfer_pb2 as pb
from runtimed.api import transfer_types_pb2 as types
from runtimed.embedded import images as embedded
from runtimed.errors import InvalidArgument, Unimplemented
from runtimed.images.dropping import FetchBack
from runtimed.images.exporting import Export, Exporter
from runtimed.images.importing import Import, Importer
from runtimed.images.naming import Rule
from runtimed.images.progress import Progress, Report
from runtimed.images.pull import Puller, store_image
from runtimed.images.push import Pusher
from runtimed.images.repair import Repairer
from runtimed.images.requests import Pulled, Request, Unpack
from runtimed.images.sources import LayoutSource, RegistrySource, Source
from runtimed.images.verifying import Verifier
from runtimed.metadata import images, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Platform
from runtimed.oci.reference import Reference
from runtimed.registry import pusher
from runtimed.registry.auth import AskCredentials
from runtimed.registry.client import RegistryClient
from runtimed.registry.registries import Registries
from runtimed.services.bytestreams import ByteReader, ByteWriter, echo, opened
from runtimed.services.context import Context, Publisher, lease_of, namespace_of
from runtimed.services.credentials import asking
from runtimed.services.progress import progress_to
from runtimed.services.streaming import Streams, unpack
from runtimed.workers.pool import Pool

_REGISTRY = types.OCIRegistry.DESCRIPTOR.full_name
_STORE = types.ImageStore.DESCRIPTOR.full_name
_IMPORT = types.ImageImportStream.DESCRIPTOR.full_name
_EXPORT = types.ImageExportStream.DESCRIPTOR.full_name
_READ = types.ReadStream.DESCRIPTOR.full_name
_WRITE = types.WriteStream.DESCRIPTOR.full_name
_DEFAULT_SNAPSHOTTER = "overlayfs"  # what containerd's clients mean when they name none


class TransferService:
    """Moves images between registries, archives and the store; other kinds of places are Unimplemented."""

    def __init__(
        self,
        content: Content,
        db: Database,
        snapshotters: Mapping[str, Snapshots],
        pool: Pool,
        streams: Streams,
        events: Publisher,
        registries: Registries | None = None,
        repairer: Repairer | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._db = db
        self._registries = registries or Registries()
        self._pool = pool
        self._streams = streams
        self._events = events
        foreign = self._registries.foreign_layers
        self.puller = Puller(content, db, snapshotters, pool, repairer, verifier, foreign_layers=foreign)
        self._pusher = Pusher(content, db, foreign_layers=foreign)
        self._importer = Importer(content, db, self.puller, pool)
        self._exporter = Exporter(content, db)
        self._fetch_back = FetchBack(content, db, self._registries, pool)

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> Empty:
        namespace = namespace_of(context)
        source, destination = _name(request.source), _name(request.destination)
        transfers = {
            (_REGISTRY, _STORE): self._pull,
            (_STORE, _REGISTRY): self._push,
            (_STORE, _STORE): self._tag,
            (_IMPORT, _STORE): self._import,
            (_STORE, _EXPORT): self._export,
            (_IMPORT, _EXPORT): self._echo,
            (_READ, _WRITE): self._echo,
        }
        transfer = transfers.get((source, destination))
        if transfer is None:
            raise Unimplemented(f"unable to transfer from {source} to {destination}: not implemented")
        await transfer(namespace, request, lease_of(context))
        return Empty()

    async def _pull(self, namespace: str, request: pb.TransferRequest, lease: str) -> None:
        registry, store = types.OCIRegistry(), types.ImageStore()
        unpack(request.source, registry)
        unpack(request.destination, store)
        origin = await self._source(namespace, registry)
        wanted = await self._request(namespace, store, _names(store), lease)
        async with self._progress(namespace, request.options.progress_stream) as report:
            for one in await self.puller.pull(namespace, origin, wanted, report):
                self._publish(namespace, one)

    async def _push(self, namespace: str, request: pb.TransferRequest, _: str) -> None:
        store, registry = types.ImageStore(), types.OCIRegistry()
        unpack(request.source, store)
        unpack(request.destination, registry)
        reference = references.parse(registry.reference)
        mounts = await self._pusher.mounts(namespace, store.name, reference)
        scopes = pusher.scopes(reference.repository, mounts)
        client = await self._client(namespace, registry, reference, scopes)
        wanted = [_platform(one) for one in store.platforms]
        async with (
            self._progress(namespace, request.options.progress_stream) as report,
            self._fetch_back.held(namespace, [store.name], report),
        ):
            await self._pusher.push(namespace, store.name, client, wanted, report)

    async def _tag(self, namespace: str, request: pb.TransferRequest, _: str) -> None:
        source, destination = types.ImageStore(), types.ImageStore()
        unpack(request.source, source)
        unpack(request.destination, destination)
        names = _names(destination)
        target = (await self._db.read(images.get, namespace, source.name)).target
        async with self._progress(namespace, request.options.progress_stream) as report:
            for name in names:
                one = await self._db.write(store_image, namespace, name, target, dict(destination.labels))
                self._publish(namespace, one)
                report(Progress(event="saved", name=one.image.name, descriptor=target))

    async def _import(self, namespace: str, request: pb.TransferRequest, lease: str) -> None:
        archive, store = types.ImageImportStream(), types.ImageStore()
        unpack(request.source, archive)
        unpack(request.destination, store)
        wanted = Import(
            request=await self._request(namespace, store, _full_names(store), lease),
            rules=_rules(store),
            media_type=archive.media_type,
            compress=archive.force_compress,
        )
        async with (
            opened(self._streams, namespace, archive.stream) as stream,
            self._progress(namespace, request.options.progress_stream) as report,
        ):
            for one in await self._importer.run(namespace, ByteReader(stream), wanted, report):
                self._publish(namespace, one)

    async def _export(self, namespace: str, request: pb.TransferRequest, _: str) -> None:
        store, archive = types.ImageStore(), types.ImageExportStream()
        unpack(request.source, store)
        unpack(request.destination, archive)
        if any(one.is_prefix for one in store.extra_references):
            raise Unimplemented("an export of all names with a prefix is not implemented; give the names")
        wanted = Export(
            names=_full_names(store),
            platforms=tuple(_platform(one) for one in archive.platforms),
            all_platforms=archive.all_platforms,
            without_docker=archive.skip_compatibility_manifest,
            without_foreign=archive.skip_non_distributable,
        )
        async with (
            opened(self._streams, namespace, archive.stream) as stream,
            self._progress(namespace, request.options.progress_stream) as report,
            self._fetch_back.held(namespace, wanted.names, report),
        ):
            await self._exporter.run(namespace, wanted, ByteWriter(stream), report)

    async def _echo(self, namespace: str, request: pb.TransferRequest, _: str) -> None:
        is_archive = _name(request.source) == _IMPORT
        source = types.ImageImportStream() if is_archive else types.ReadStream()
        destination = types.ImageExportStream() if is_archive else types.WriteStream()
        unpack(request.source, source)
        unpack(request.destination, destination)
        async with (
            opened(self._streams, namespace, source.stream) as incoming,
            opened(self._streams, namespace, destination.stream) as outgoing,
        ):
            await echo(incoming, outgoing)

    async def _source(self, namespace: str, registry: types.OCIRegistry) -> Source:
        reference = references.parse(registry.reference)
        if reference.host == embedded.HOST:
            return LayoutSource(embedded.layout(), reference)
        self._pool.warm()  # beside the rest of what it takes to begin
        return RegistrySource(await self._client(namespace, registry, reference), self._pool)

    async def _client(
        self, namespace: str, registry: types.OCIRegistry, reference: Reference, push_scopes: Sequence[str] = ()
    ) -> RegistryClient:
        resolver = registry.resolver
        ask: AskCredentials | None = None
        if resolver.auth_stream:
            ask = asking(await self._streams.get(namespace, resolver.auth_stream), str(reference))
        return await self._registries.client(
            reference,
            hosts_directory=resolver.host_dir,
            default_scheme=resolver.default_scheme,
            headers=dict(resolver.headers),
            credentials_of_caller=ask,
            push_scopes=push_scopes,
        )

    async def _request(self, namespace: str, store: types.ImageStore, names: tuple[str, ...], lease: str) -> Request:
        default = ""
        if any(not one.snapshotter for one in store.unpacks):
            marks = (await self._db.read(namespaces.get, namespace)).labels
            default = marks.get(labels.DEFAULT_SNAPSHOTTER) or _DEFAULT_SNAPSHOTTER
        return Request(
            names=names,
            labels=dict(store.labels),
            platforms=tuple(_platform(one) for one in store.platforms),
            all_metadata=store.all_metadata,
            manifest_limit=store.manifest_limit,
            unpacks=tuple(
                Unpack(
                    snapshotter=one.snapshotter or default,
                    platform=_platform(one.platform) if one.platform.os else platforms.host(),
                )
                for one in store.unpacks
            ),
            lease=lease,
        )

    @asynccontextmanager
    async def _progress(self, namespace: str, stream: str) -> AsyncIterator[Report]:
        """Hold a report function that sends to the client's stream, if it gave one."""
        if not stream:
            yield lambda _: None
            return
        async with progress_to(await self._streams.get(namespace, stream)) as report:
            yield report

    def _publish(self, namespace: str, pulled: Pulled) -> None:
        image = pulled.image
        if pulled.is_new:
            event = images_pb2.ImageCreate(name=image.name, labels=image.labels)
            self._events.publish(namespace, "/images/create", event)
        else:
            changed = images_pb2.ImageUpdate(name=image.name, labels=image.labels)
            self._events.publish(namespace, "/images/update", changed)


def _platform(platform: types_pb2.Platform) -> Platform:
    return platforms.normalize(
        Platform(
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant,
            os_version=platform.os_version,
            os_features=tuple(platform.os_features),
        )
    )


def _names(store: types.ImageStore) -> tuple[str, ...]:
    """Return the names that an image is to get in *store*; one that ends in "@" is to get its digest added."""
    names = _full_names(store)
    if not names:
        raise InvalidArgument("no image name: the image store that is the destination must be given one")
    return names


def _full_names(store: types.ImageStore) -> tuple[str, ...]:
    names = [store.name] if store.name else []
    names += [f"{one.name}@" if one.add_digest else one.name for one in store.extra_references if not one.is_prefix]
    return tuple(names)


def _rules(store: types.ImageStore) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            prefix=one.name,
            is_overwritten=one.allow_overwrite,
            add_digest=one.add_digest,
            only_if_unnamed=one.skip_named_digest,
        )
        for one in store.extra_references
        if one.is_prefix
    )


def _name(packed: Any) -> str:
    return packed.type_url.rpartition("/")[2] or "nothing"
