"""The Transfer service: what the daemon does with images; its progress, its questions and archives over streams."""

import asyncio
import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from runtimed.api import streaming_pb2 as streaming
from runtimed.api import transfer_pb2 as pb
from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.client.connection import Connection, service
from runtimed.client.records import Credentials
from runtimed.errors import RuntimedError
from runtimed.oci.descriptor import Platform
from runtimed.oci.reference import Reference
from runtimed.rpc.grpc_client import Call

log = logging.getLogger(__name__)

_WINDOW = 8 << 20  # bytes that the daemon may have under way
_DOCKER_HOSTS = {"docker.io", "index.docker.io", "registry-1.docker.io"}


async def pull(
    client: Connection,
    reference: Reference,
    *,
    platform: Platform,
    snapshotter: str,
    plain_http: bool,
    credentials: Credentials | None,
    report: Callable[[types.Progress], None],
) -> None:
    """Let the daemon pull *reference*, unpack it for *snapshotter* and name it; *report* hears of each step.

    Raises:
        RuntimedError: as the daemon says; NotFound, Unauthenticated and Unavailable are about the registry.
    """
    wanted = _platform(platform)
    unpack = types.UnpackConfiguration(platform=wanted, snapshotter=snapshotter)
    store = types.ImageStore(name=str(reference), platforms=[wanted], unpacks=[unpack])
    async with _registry(client, reference, plain_http, credentials) as registry:
        await _transfer(client, registry, store, report)


async def push(
    client: Connection,
    name: str,
    reference: Reference,
    *,
    chosen: Sequence[Platform],
    plain_http: bool,
    credentials: Credentials | None,
    report: Callable[[types.Progress], None],
) -> None:
    """Let the daemon push the image *name* as *reference*, all of it or for the *chosen* platforms.

    Raises as :func:`pull`.
    """
    store = types.ImageStore(name=name, platforms=[_platform(one) for one in chosen])
    async with _registry(client, reference, plain_http, credentials) as registry:
        await _transfer(client, store, registry, report)


async def tag(client: Connection, name: str, names: Sequence[str]) -> None:
    """Let the image *name* have *names* as well. Raises NotFound."""
    first, *others = names
    extra = [types.ImageReference(name=other) for other in others]
    destination = types.ImageStore(name=first, extra_references=extra)
    await _transfer(client, types.ImageStore(name=name), destination, lambda _: None)


async def import_archive(
    client: Connection,
    source: AsyncIterable[bytes],
    *,
    prefix: str,
    is_default_prefix: bool,
    chosen: Sequence[Platform],
    unpacks: Sequence[types.UnpackConfiguration],
    compress: bool,
    report: Callable[[types.Progress], None],
) -> list[str]:
    """Let the daemon import the archive *source*; return the names that its images have got.

    Tags without a name get *prefix*, images without any name that and their digest. If it is the default, full names in
    the archive are taken as they are, else only those that begin with it.

    Raises RuntimedError, as the daemon says, and what *source* raises.
    """
    names: list[str] = []

    def hear(step: types.Progress) -> None:
        if step.event == "saved":
            names.append(step.name)
        report(step)

    rule = types.ImageReference(
        name=prefix, is_prefix=True, allow_overwrite=is_default_prefix, add_digest=True, skip_named_digest=True
    )
    store = types.ImageStore(platforms=[_platform(one) for one in chosen], unpacks=unpacks, extra_references=[rule])
    async with _stream(client) as stream:
        archive = types.ImageImportStream(stream=stream.id, force_compress=compress)
        await _both(_send_bytes(stream, source), _transfer(client, archive, store, hear))
    return names


async def export_archive(
    client: Connection,
    names: Sequence[str],
    write: Callable[[bytes], object],
    *,
    chosen: Sequence[Platform],
    all_platforms: bool,
    without_docker: bool,
    report: Callable[[types.Progress], None],
) -> None:
    """Let the daemon export the images *names*, and *write* the archive. Raises as :func:`import_archive`."""
    first, *others = names
    store = types.ImageStore(name=first, extra_references=[types.ImageReference(name=other) for other in others])
    async with _stream(client) as stream:
        archive = types.ImageExportStream(
            stream=stream.id,
            platforms=[_platform(one) for one in chosen],
            all_platforms=all_platforms,
            skip_compatibility_manifest=without_docker,
        )
        await _both(_receive_bytes(stream, write), _transfer(client, store, archive, report))


async def _both(copy: Coroutine[object, object, None], transfer: Coroutine[object, object, None]) -> None:
    """Do both; when one fails the other is cancelled."""
    tasks = [asyncio.create_task(copy), asyncio.create_task(transfer)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def _registry(
    client: Connection, reference: Reference, plain_http: bool, credentials: Credentials | None
) -> AsyncIterator[types.OCIRegistry]:
    """Hold a registry end of a transfer; questions for credentials are answered meanwhile."""
    resolver = types.RegistryResolver(default_scheme="http" if plain_http else "")
    async with AsyncExitStack() as held:
        if credentials:
            questions = await held.enter_async_context(_stream(client))
            resolver.auth_stream = questions.id
            await held.enter_async_context(_meanwhile(_answer(questions, reference, credentials)))
        yield types.OCIRegistry(reference=str(reference), resolver=resolver)


async def _transfer(
    client: Connection, source: Message, destination: Message, report: Callable[[types.Progress], None]
) -> None:
    async with _stream(client) as progress, _meanwhile(_report(progress, report)) as reporting:
        request = pb.TransferRequest(
            source=_any(source),
            destination=_any(destination),
            options=pb.TransferOptions(progress_stream=progress.id),
        )
        await client.call(service(pb, "Transfer").Transfer, request)
        # The last steps may still be under way when the answer has come.
        await asyncio.wait([reporting], timeout=1)


def _platform(platform: Platform) -> types_pb2.Platform:
    return types_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


@asynccontextmanager
async def _meanwhile(work: Coroutine[object, object, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Hold a task that does *work*; it ends with the block at the latest, and what went wrong in it is raised then."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


class _Stream:
    """Messages to and from the daemon, beside a call that names the stream by its *id*."""

    def __init__(self, id: str, call: Call) -> None:
        self.id = id
        self._call = call

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield what the daemon sends, until it ends the stream."""
        with suppress(RuntimedError):  # what went wrong is the answer of the call itself
            while (message := await self.receive()) is not None:
                yield message

    async def receive(self) -> Any | None:
        """Return what the daemon sends next; None after the last. Raises RuntimedError: the stream broke off."""
        message = await self._call.receive()
        return None if message is None else Any.FromString(message)

    async def send(self, message: Message) -> None:
        await self._call.send(_any(message).SerializeToString())

    async def offer(self, message: Message) -> bool:
        """Send *message*; say whether the daemon still takes any. Why it does not is another call's answer."""
        return await self._call.send(_any(message).SerializeToString())

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        await self._call.end()


@asynccontextmanager
async def _stream(client: Connection) -> AsyncIterator[_Stream]:
    async with client.opened(service(streaming, "Streaming").Stream) as call:
        stream = _Stream(f"rctl-{os.urandom(8).hex()}", call)
        await stream.send(streaming.StreamInit(id=stream.id))
        await call.receive()  # answered when the stream can be used
        yield stream


async def _send_bytes(stream: _Stream, source: AsyncIterable[bytes]) -> None:
    """Send what *source* yields, as fast as the daemon allows, and say that it is all."""
    updates = aiter(stream)
    window = 0
    async for data in source:
        while data:
            while window <= 0:
                update = await anext(updates, None)
                if update is None:
                    return
                window += types.WindowUpdate.FromString(update.value).update
            piece, data = data[:window], data[window:]
            if not await stream.offer(types.Data(data=piece)):
                return
            window -= len(piece)
    await stream.end()


async def _receive_bytes(stream: _Stream, write: Callable[[bytes], object]) -> None:
    """Pass on to *write*, an ordinary or asynchronous function, what the daemon sends, until it ends the stream.

    Raises:
        RuntimedError: the stream broke off.
    """
    window = 0
    while True:
        if window <= 0:
            await stream.offer(types.WindowUpdate(update=_WINDOW))
            window += _WINDOW
        message = await stream.receive()
        if message is None:
            return
        data = types.Data.FromString(message.value).data
        done = write(data)
        if isinstance(done, Awaitable):
            await done
        window -= len(data)


async def _report(stream: _Stream, report: Callable[[types.Progress], None]) -> None:
    async for message in stream:
        progress = types.Progress()
        if message.type_url.endswith(progress.DESCRIPTOR.full_name):
            progress.ParseFromString(message.value)
            report(progress)


async def _answer(stream: _Stream, reference: Reference, credentials: Credentials) -> None:
    """Answer questions for credentials, for the registry they were given for and no other (CVE-2020-15157)."""
    # The daemon leaves out a port that goes without saying.
    names = {reference.host, reference.host.removesuffix(":443"), reference.host.removesuffix(":80")}
    if reference.host == "docker.io":
        names |= _DOCKER_HOSTS
    async for message in stream:
        request = types.AuthRequest.FromString(message.value)
        answer = types.AuthResponse()
        if request.host in names:
            answer.authType = types.CREDENTIALS
            answer.username, answer.secret = credentials.username, credentials.secret
        else:
            log.warning("%r asks for credentials; those for %r are not given to it", request.host, reference.host)
        await stream.send(answer)


def _any(message: Message) -> Any:
    # The bare name, without a host: what containerd's clients send.
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
