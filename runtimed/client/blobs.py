"""Blobs that rctl itself reads and writes, through the Content service."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO

from runtimed.api import content_pb2 as pb
from runtimed.client.connection import Connection, service
from runtimed.errors import AlreadyExists, NotFound, RuntimedError
from runtimed.oci.descriptor import Descriptor

_CHUNK = 1 << 20  # bytes


async def save(client: Connection, descriptor: Descriptor, file: BinaryIO) -> None:
    """Write the bytes of a blob to *file*. Raises NotFound."""
    request = pb.ReadContentRequest(digest=descriptor.digest)
    async for message in client.messages(service(pb, "Content").Read, request):
        file.write(message.data)
    file.flush()


async def store(client: Connection, descriptor: Descriptor, file: BinaryIO, marks: Mapping[str, str]) -> None:
    """Make a blob of what *file* holds, with *marks* for labels; that it is there already is fine.

    Call it with a lease held, or the blob may be collected before something refers to it.
    """
    ref = f"rctl-{os.getpid()}-{descriptor.digest}"
    content = service(pb, "Content")
    try:
        async with client.opened(content.Write) as call:
            for request in _requests(ref, descriptor, file, marks):
                await call.send(request.SerializeToString(), is_last=request.action == pb.COMMIT)
                await call.receive()  # each is answered, also with the error that it met
            await call.receive()
    except AlreadyExists:
        return
    except RuntimedError:
        with suppress(NotFound):
            await client.call(content.Abort, pb.AbortRequest(ref=ref))
        raise


def _requests(
    ref: str, descriptor: Descriptor, file: BinaryIO, marks: Mapping[str, str]
) -> Iterator[pb.WriteContentRequest]:
    size, digest = descriptor.size, descriptor.digest
    file.seek(0)
    offset = 0
    while data := file.read(_CHUNK):
        yield pb.WriteContentRequest(action=pb.WRITE, ref=ref, total=size, expected=digest, offset=offset, data=data)
        offset += len(data)
    yield pb.WriteContentRequest(action=pb.COMMIT, ref=ref, total=size, expected=digest, offset=offset, labels=marks)
