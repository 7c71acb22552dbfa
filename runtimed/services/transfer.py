"""containerd.services.transfer.v1: images from one place to another.

From a registry into the image store (pull), from the store to a registry (push), within the store (tag).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from runtimed import labels
from runtimed.api import images_pb2, types_pb2
from runtimed.api import transfer_pb2 as pb
from runtimed.api import transfer_types_pb2 as types
from runtimed.api.transfer_pb2_grpc import TransferServicer
from runtimed.embedded import images as embedded
from runtimed.errors import AlreadyExists, InvalidArgument, Unauthenticated, Unavailable, Unimplemented
from runtimed.images.progress import Progress, Report
from runtimed.images.pull import Pulled, Puller, Request, Unpack
from runtimed.images.push import Pusher
from runtimed.images.sources import LayoutSource, RegistrySource, Source
from runtimed.metadata import images, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.images import Image
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.oci.reference import Reference
from runtimed.registry import pusher
from runtimed.registry.auth import AskCredentials, Credentials
from runtimed.registry.client import RegistryClient
from runtimed.services.context import Context, Publisher, lease_of, namespace_of
from runtimed.services.streaming import Stream, Streams, unpack
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

_REGISTRY = types.OCIRegistry.DESCRIPTOR.full_name
_STORE = types.ImageStore.DESCRIPTOR.full_name
_DEFAULT_SNAPSHOTTER = "overlayfs"  # what containerd's clients mean when they name none
_CREDENTIALS_LIMIT_S = 60.0  # the client may have to ask a person, or a helper program
_FLUSH_LIMIT_S = 5.0  # for the last progress messages, when the transfer itself is done


class TransferService(TransferServicer):
    """Pulls, pushes and tags; what runs between other kinds of places is Unimplemented."""

    def __init__(
        self,
        content: Content,
        db: Database,
        snapshotters: Mapping[str, Snapshots],
        pool: Pool,
        streams: Streams,
        events: Publisher,
    ) -> None:
        self._db = db
        self._pool = pool
        self._streams = streams
        self._events = events
        self._puller = Puller(content, db, snapshotters, pool)
        self._pusher = Pusher(content, db)

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> Empty:
        namespace = namespace_of(context)
        source, destination = _name(request.source), _name(request.destination)
        if (source, destination) == (_REGISTRY, _STORE):
            await self._pull(namespace, request, lease_of(context))
        elif (source, destination) == (_STORE, _REGISTRY):
            await self._push(namespace, request)
        elif (source, destination) == (_STORE, _STORE):
            await self._tag(namespace, request)
        else:
            raise Unimplemented(f"unable to transfer from {source} to {destination}: not implemented")
        return Empty()

    async def _pull(self, namespace: str, request: pb.TransferRequest, lease: str) -> None:
        registry, store = types.OCIRegistry(), types.ImageStore()
        unpack(request.source, registry)
        unpack(request.destination, store)
        origin = await self._source(namespace, registry)
        wanted = await self._request(namespace, store, lease)
        async with self._progress(namespace, request.options.progress_stream) as report:
            for one in await self._puller.pull(namespace, origin, wanted, report):
                self._publish(namespace, one)

    async def _push(self, namespace: str, request: pb.TransferRequest) -> None:
        store, registry = types.ImageStore(), types.OCIRegistry()
        unpack(request.source, store)
        unpack(request.destination, registry)
        reference = references.parse(registry.reference)
        mounts = await self._pusher.mounts(namespace, store.name, reference)
        scopes = pusher.scopes(reference.repository, mounts)
        client = await self._client(namespace, registry, reference, scopes)
        wanted = [_platform(one) for one in store.platforms]
        async with self._progress(namespace, request.options.progress_stream) as report:
            await self._pusher.push(namespace, store.name, client, wanted, report)

    async def _tag(self, namespace: str, request: pb.TransferRequest) -> None:
        source, destination = types.ImageStore(), types.ImageStore()
        unpack(request.source, source)
        unpack(request.destination, destination)
        names = _names(destination)
        target = (await self._db.read(images.get, namespace, source.name)).target
        async with self._progress(namespace, request.options.progress_stream) as report:
            for name in names:
                one = await self._db.write(_store, namespace, name, target, dict(destination.labels))
                self._publish(namespace, one)
                report(Progress(event="saved", name=one.image.name, descriptor=target))

    async def _source(self, namespace: str, registry: types.OCIRegistry) -> Source:
        reference = references.parse(registry.reference)
        if reference.host == embedded.HOST:
            return LayoutSource(embedded.layout(), reference)
        return RegistrySource(await self._client(namespace, registry, reference), self._pool)

    async def _client(
        self, namespace: str, registry: types.OCIRegistry, reference: Reference, push_scopes: Sequence[str] = ()
    ) -> RegistryClient:
        resolver = registry.resolver
        if resolver.host_dir:
            await blocking(_refuse_host_config, Path(resolver.host_dir), reference.host)
        ask: AskCredentials | None = None
        if resolver.auth_stream:
            ask = _asking(await self._streams.get(namespace, resolver.auth_stream), str(reference))
        return RegistryClient(
            reference,
            default_scheme=resolver.default_scheme,
            headers=dict(resolver.headers),
            credentials=ask,
            push_scopes=push_scopes,
        )

    async def _request(self, namespace: str, store: types.ImageStore, lease: str) -> Request:
        names = _names(store)
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


@asynccontextmanager
async def progress_to(stream: Stream) -> AsyncIterator[Report]:
    """Hold a report function that returns at once: a client that reads slowly misses steps, but not the last of each.

    When the block ends what is left is sent, for some seconds, and the stream is closed.
    """
    pending: dict[tuple[str, str], Progress] = {}  # the newest for each thing and event, in order
    wake = asyncio.Event()
    is_done = False

    def report(progress: Progress) -> None:
        pending[progress.event, progress.name] = progress
        wake.set()

    async def send() -> None:
        while pending or not is_done:
            if not pending:
                wake.clear()
                await wake.wait()
                continue
            progress = pending.pop(next(iter(pending)))
            await stream.send(_progress_message(progress))

    sender = asyncio.create_task(send())
    try:
        yield report
    finally:
        is_done = True
        wake.set()
        await asyncio.wait([sender], timeout=_FLUSH_LIMIT_S)
        sender.cancel()
        # A client that has gone wants no progress any more; the transfer is not the worse for it.
        await asyncio.gather(sender, return_exceptions=True)
        stream.close()


def _progress_message(progress: Progress) -> types.Progress:
    message = types.Progress(
        event=progress.event,
        name=progress.name,
        parents=progress.parents,
        progress=progress.progress,
        total=progress.total,
    )
    if descriptor := progress.descriptor:
        message.desc.CopyFrom(
            types_pb2.Descriptor(
                media_type=descriptor.media_type,
                digest=descriptor.digest,
                size=descriptor.size,
                annotations=descriptor.annotations,
            )
        )
    return message


def _asking(stream: Stream, reference: str) -> AskCredentials:
    """Return a function that asks the client for credentials over its auth stream, one question at a time."""
    lock = asyncio.Lock()

    async def ask(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        question = types.AuthRequest(host=host, reference=reference, wwwauthenticate=challenges)
        async with lock:
            try:
                async with asyncio.timeout(_CREDENTIALS_LIMIT_S):
                    await stream.send(question)
                    packed = await stream.receive()
            except Unavailable:
                packed = None
            except TimeoutError:
                raise Unavailable(
                    f"no credentials for {host} from the client in {_CREDENTIALS_LIMIT_S:.0f} s"
                ) from None
        if packed is None:
            raise Unauthenticated(f"the client was asked for credentials for {host} and has closed the stream")
        answer = types.AuthResponse()
        unpack(packed, answer)
        match answer.authType:
            case types.CREDENTIALS:
                return Credentials(username=answer.username, secret=answer.secret)
            case types.REFRESH:
                return Credentials(secret=answer.secret) if answer.secret else None
            case types.HEADER:
                return Credentials(header=answer.secret)
        return None

    return ask


def _refuse_host_config(directory: Path, host: str) -> None:
    """Refuse a hosts.toml that would be meant for *host*: to pull past a mirror or its certificates would be wrong."""
    for name in (host, host.replace(":", "_", 1) + "_", "_default"):
        if os.access(directory / name / "hosts.toml", os.F_OK):
            raise Unimplemented(f"{directory / name / 'hosts.toml'}: registry host configuration is not supported")


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
    names = [store.name] if store.name else []
    names += [f"{one.name}@" if one.add_digest else one.name for one in store.extra_references if not one.is_prefix]
    if not names:
        raise InvalidArgument("no image name: the image store that is the destination must be given one")
    return tuple(names)


def _store(tx: Tx, namespace: str, name: str, target: Descriptor, marks: Mapping[str, str]) -> Pulled:
    """Let *name* point to *target*, whether it is there or not."""
    image = Image(name=name + target.digest if name.endswith("@") else name, target=target, labels=marks)
    try:
        return Pulled(images.create(tx, namespace, image), True)
    except AlreadyExists:
        return Pulled(images.update(tx, namespace, image), False)


def _name(packed: Any) -> str:
    return packed.type_url.rpartition("/")[2] or "nothing"
