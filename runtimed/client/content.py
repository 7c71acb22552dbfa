"""Content: blobs by their digests."""

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed.api import content_pb2 as pb
from runtimed.client import records
from runtimed.client.connection import Connection, service
from runtimed.client.records import Blob, Ingest
from runtimed.errors import NotFound, Unavailable
from runtimed.rpc.grpc_client import Call, Lost

_CONTENT = service(pb, "Content")
_CHUNK = 1 << 20  # bytes
_HELD_S = 10.0  # how long another writer of the same ingest is waited for


class Content:
    """The blobs that the namespace sees. Each method that takes a digest may raise NotFound."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def info(self, digest: str) -> Blob:
        return _blob((await self._connection.call(_CONTENT.Info, pb.InfoRequest(digest=digest))).info)

    async def list(self, *filters: str) -> AsyncIterator[Blob]:
        """Yield the blobs that match any of *filters*, by digest."""
        async for answer in self._connection.messages(_CONTENT.List, pb.ListContentRequest(filters=filters)):
            for info in answer.info:
                yield _blob(info)

    async def read(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncIterator[bytes]:
        """Yield *size* bytes from *offset* on, piece by piece; 0 is all. Raises OutOfRange, DataLoss."""
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        async for answer in self._connection.messages(_CONTENT.Read, request):
            yield answer.data

    async def get(self, digest: str) -> bytes:
        """Return a whole blob, which should be a small one: a manifest, a config."""
        return b"".join([piece async for piece in self.read(digest)])

    async def write(
        self,
        data: bytes | AsyncIterable[bytes],
        *,
        expected: str = "",
        labels: Mapping[str, str] | None = None,
        ref: str = "",
    ) -> str:
        """Make a blob of *data* and return its digest.

        Do so with a lease held (``client.leases.held()``) or with a label that makes it a root, or it may be collected
        before something refers to it. With a *ref* of one's own, what was written stays for a second try when *data*
        ends early.

        Raises:
            AlreadyExists: the blob is there; nothing need be done.
            FailedPrecondition: its digest is not the *expected* one.
            Unavailable: another writer has held *ref* for longer than 10 seconds.
        """
        name = ref or f"client-{os.urandom(8).hex()}"
        try:
            async with self._writer(name, expected) as (call, written):
                offset = 0
                async for piece in _pieces(data):
                    fresh = piece[max(0, written - offset) :]
                    offset += len(piece)
                    if not fresh:
                        continue  # written before, by an earlier try
                    request = pb.WriteContentRequest(
                        action=pb.WRITE, ref=name, offset=offset - len(fresh), data=fresh, expected=expected
                    )
                    await call.send(request.SerializeToString())
                    await call.receive()  # each is answered, also with the error that it met
                commit = pb.WriteContentRequest(
                    action=pb.COMMIT, ref=name, offset=offset, total=offset, expected=expected, labels=labels
                )
                await call.send(commit.SerializeToString(), is_last=True)
                committed = pb.WriteContentResponse.FromString(await call.receive() or b"")
                await call.receive()
                return committed.digest
        except BaseException:
            if not ref:
                with suppress(NotFound):
                    await self.abort(name)
            raise

    @asynccontextmanager
    async def _writer(self, ref: str, expected: str) -> AsyncIterator[tuple[Call, int]]:
        """Hold the ingest *ref*. Yields the call, and how many bytes an earlier try has written.

        The daemon learns a moment later than its client that a try has ended, so that one is waited for, as Go's client
        does.
        """
        begin = pb.WriteContentRequest(action=pb.STAT, ref=ref, expected=expected).SerializeToString()
        deadline = time.monotonic() + _HELD_S
        pause = 0.001
        while True:
            async with self._connection.opened(_CONTENT.Write) as call:
                await call.send(begin)
                try:
                    answer = await call.receive()
                except Unavailable as exc:
                    if isinstance(exc, Lost) or time.monotonic() > deadline:
                        raise
                else:
                    yield call, pb.WriteContentResponse.FromString(answer or b"").offset
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def label(self, digest: str, labels: Mapping[str, str]) -> Blob:
        """Set these labels beside the others; an empty value removes one."""
        request = pb.UpdateRequest(
            info=pb.Info(digest=digest, labels=labels), update_mask=FieldMask(paths=[f"labels.{key}" for key in labels])
        )
        return _blob((await self._connection.call(_CONTENT.Update, request)).info)

    async def delete(self, digest: str) -> None:
        """Make it invisible here; its bytes go when no namespace sees it."""
        await self._connection.call(_CONTENT.Delete, pb.DeleteContentRequest(digest=digest))

    async def ingests(self, *filters: str) -> AsyncIterator[Ingest]:
        """Yield what is being written."""
        answer = await self._connection.call(_CONTENT.ListStatuses, pb.ListStatusesRequest(filters=filters))
        for status in answer.statuses:
            yield Ingest(
                ref=status.ref,
                offset=status.offset,
                total=status.total,
                expected=status.expected,
                started_at=records.moment(status.started_at),
                updated_at=records.moment(status.updated_at),
            )

    async def abort(self, ref: str) -> None:
        """Throw away what was written as *ref*. Raises NotFound."""
        await self._connection.call(_CONTENT.Abort, pb.AbortRequest(ref=ref))


async def _pieces(data: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]
        return
    async for chunk in data:
        for start in range(0, len(chunk), _CHUNK):
            yield chunk[start : start + _CHUNK]


def _blob(info: pb.Info) -> Blob:
    return Blob(
        digest=info.digest,
        size=info.size,
        labels=dict(info.labels),
        created_at=records.moment(info.created_at),
        updated_at=records.moment(info.updated_at),
    )
