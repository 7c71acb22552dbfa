"""Blobs that rctl itself reads and writes, through the Content service."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import BinaryIO

import grpc

from runtimed.api import content_pb2 as pb
from runtimed.api.content_pb2_grpc import ContentStub
from runtimed.cli.client import Client
from runtimed.errors import AlreadyExists, NotFound
from runtimed.oci.descriptor import Descriptor

_CHUNK = 1 << 20  # bytes


async def save(client: Client, descriptor: Descriptor, file: BinaryIO) -> None:
    """Write the bytes of a blob to *file*. Raises NotFound."""
    request = pb.ReadContentRequest(digest=descriptor.digest)
    async for message in client.messages(ContentStub(client.channel).Read, request):
        file.write(message.data)
    file.flush()


async def store(client: Client, descriptor: Descriptor, file: BinaryIO, marks: Mapping[str, str]) -> None:
    """Make a blob of what *file* holds, with *marks* for labels; that it is there already is fine.

    Call it with a lease held, or the blob may be collected before something refers to it.
    """
    ref = f"rctl-{os.getpid()}-{descriptor.digest}"
    stub = ContentStub(client.channel)

    async def requests() -> AsyncIterator[pb.WriteContentRequest]:
        file.seek(0)
        offset = 0
        while data := file.read(_CHUNK):
            yield pb.WriteContentRequest(
                action=pb.WRITE,
                ref=ref,
                total=descriptor.size,
                expected=descriptor.digest,
                offset=offset,
                data=data,
            )
            offset += len(data)
        yield pb.WriteContentRequest(
            action=pb.COMMIT, ref=ref, total=descriptor.size, expected=descriptor.digest, offset=offset, labels=marks
        )

    try:
        async for _ in stub.Write(requests(), metadata=client.metadata):
            pass
    except grpc.aio.AioRpcError as exc:
        error = client.error(exc)
        if isinstance(error, AlreadyExists):
            return
        with suppress(NotFound):
            await client.call(stub.Abort, pb.AbortRequest(ref=ref))
        raise error from exc
