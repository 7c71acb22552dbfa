"""containerd.services.content.v1: blobs and ingests over gRPC."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import BinaryIO, TypeVar

from google.protobuf.empty_pb2 import Empty

from runtimed.api import content_pb2 as pb
from runtimed.api import events_pb2
from runtimed.content import store
from runtimed.errors import AlreadyExists, DataLoss, InvalidArgument, OutOfRange, os_errors
from runtimed.metadata.content import Content, Ingest
from runtimed.services.context import Context, Publisher, lease_of, namespace_of, timestamp
from runtimed.services.fieldmask import paths_of
from runtimed.threads import blocking

T = TypeVar("T")

_CHUNK = 1 << 20  # bytes of a blob in one message
_PIECE = 64 << 10  # bytes that are read in the event loop's thread if they are in memory
_PAGE = 100  # blobs in one message of List, unless their labels are long:
_PAGE_BYTES = 1 << 20


class ContentService:
    """Blobs by digest, ingests by ref; bytes stream through in pieces of at most 1 MiB or as the client cut them."""

    def __init__(self, content: Content, events: Publisher) -> None:
        self._content = content
        self._events = events

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        info = self._content.info(namespace_of(context), request.digest)  # one row
        return pb.InfoResponse(info=_info(info))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        info = await blocking(
            self._content.update,
            namespace_of(context),
            request.info.digest,
            dict(request.info.labels),
            paths_of(request.update_mask),
        )
        return pb.UpdateResponse(info=_info(info))

    async def List(self, request: pb.ListContentRequest, context: Context) -> AsyncIterator[pb.ListContentResponse]:
        infos = await blocking(self._content.list, namespace_of(context), list(request.filters))
        page, size = pb.ListContentResponse(), 0
        for info in map(_info, infos):
            if len(page.info) >= _PAGE or (page.info and size + info.ByteSize() > _PAGE_BYTES):
                yield page
                page, size = pb.ListContentResponse(), 0
            page.info.append(info)
            size += info.ByteSize()
        if page.info:
            yield page

    async def Delete(self, request: pb.DeleteContentRequest, context: Context) -> Empty:
        namespace = namespace_of(context)
        await blocking(self._content.delete, namespace, request.digest)
        self._events.publish(namespace, "/content/delete", events_pb2.ContentDelete(digest=request.digest))
        return Empty()

    async def Read(self, request: pb.ReadContentRequest, context: Context) -> AsyncIterator[pb.ReadContentResponse]:
        namespace = namespace_of(context)
        if 0 < request.size <= _CHUNK:  # the Go client reads a blob by calls for 32 KiB each
            at_once = request.size <= _PIECE and not self._content.verifies  # which may take a while
            data = self._read_cached(namespace, request) if at_once else None
            if data is None:
                data = await blocking(self._read_piece, namespace, request)
            if data:
                yield pb.ReadContentResponse(offset=max(request.offset, 0), data=data)
            return
        async with _held(lambda: self._content.open(namespace, request.digest)) as file:
            offset, end = _range(file, request)
            while offset < end:
                data = await blocking(_pread, file, min(_CHUNK, end - offset), offset)
                yield pb.ReadContentResponse(offset=offset, data=data)
                offset += len(data)

    def _read_cached(self, namespace: str, request: pb.ReadContentRequest) -> bytes | None:
        """Return a piece if it is in memory, which a manifest is that was just used. Never waits for the disk."""
        with self._content.open(namespace, request.digest) as file:
            offset, end = _range(file, request)
            buffer = bytearray(end - offset)
            try:
                count = os.preadv(file.fileno(), [buffer], offset, os.RWF_NOWAIT) if buffer else 0
            except OSError:  # EAGAIN: not in memory; EOPNOTSUPP: a file system that cannot tell
                return None
            return bytes(buffer) if count == len(buffer) else None

    def _read_piece(self, namespace: str, request: pb.ReadContentRequest) -> bytes:
        with self._content.open(namespace, request.digest) as file:
            offset, end = _range(file, request)
            return _pread(file, end - offset, offset) if offset < end else b""

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        status = await blocking(self._content.status, namespace_of(context), request.ref)
        return pb.StatusResponse(status=_status(status))

    async def ListStatuses(self, request: pb.ListStatusesRequest, context: Context) -> pb.ListStatusesResponse:
        statuses = await blocking(self._content.statuses, namespace_of(context), list(request.filters))
        return pb.ListStatusesResponse(statuses=map(_status, statuses))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> Empty:
        await blocking(self._content.abort, namespace_of(context), request.ref)
        return Empty()

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], context: Context
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """Write one ingest; each message is answered, and COMMIT is the last.

        The ingest is this call's alone until it ends. A client that goes away leaves its bytes, and a later call with
        the same ref goes on at the offset that STAT answers.
        """
        first = await anext(aiter(requests), None)
        if first is None:
            return
        namespace, lease = namespace_of(context), lease_of(context)
        if not first.ref:
            raise InvalidArgument("the first message must have a ref")
        total = first.total

        def begin() -> Ingest:
            return self._content.begin(namespace, first.ref, total=first.total, expected=first.expected, lease=lease)

        async with _held(begin) as ingest:
            request: pb.WriteContentRequest | None = first
            while request is not None:
                total = request.total or total
                answer = await blocking(self._write, namespace, ingest, request, total)
                if answer.action == pb.COMMIT:
                    event = events_pb2.ContentCreate(digest=answer.digest, size=answer.offset)
                    self._events.publish(namespace, "/content/create", event)
                    yield answer
                    return
                yield answer
                request = await anext(aiter(requests), None)

    def _write(
        self, namespace: str, ingest: Ingest, request: pb.WriteContentRequest, total: int
    ) -> pb.WriteContentResponse:
        """Do what one message asks for. Blocks."""
        answer = pb.WriteContentResponse(action=request.action, total=total, started_at=timestamp(ingest.started_at))
        if request.action == pb.COMMIT:
            # containerd starts over at offset 0 also when there is nothing to write; a client that just leaves the
            # offset out of its last message would lose everything it sent.
            if request.data or request.offset:
                _append(ingest, request)
            info = ingest.commit(total, request.expected, dict(request.labels))
            answer.offset, answer.digest = info.size, info.digest
            answer.updated_at.CopyFrom(timestamp(info.updated_at))
            return answer
        if request.expected and self._content.is_whole(namespace, request.expected):
            self._content.abort(namespace, ingest.ref)
            raise AlreadyExists(f"content {request.expected}")
        if request.action == pb.WRITE:
            _append(ingest, request)
        elif request.action != pb.STAT:
            raise InvalidArgument(f"ingest {ingest.ref!r}: unknown action {request.action}")
        answer.offset, answer.digest = ingest.offset, ingest.digest()
        answer.updated_at.CopyFrom(timestamp(ingest.updated_at))
        return answer


def _append(ingest: Ingest, request: pb.WriteContentRequest) -> None:
    """Write at the offset that is given, which is the current one, or 0 to start over."""
    if request.offset not in (0, ingest.offset):
        raise OutOfRange(f"ingest {ingest.ref!r}: write at {request.offset}, but the current offset is {ingest.offset}")
    if request.offset == 0 and ingest.offset:
        ingest.truncate(0)
    if request.data:
        ingest.write(request.data)


def _range(file: BinaryIO, request: pb.ReadContentRequest) -> tuple[int, int]:
    """Return where to begin and where to end. Raises OutOfRange."""
    size = os.fstat(file.fileno()).st_size
    offset = max(request.offset, 0)
    if offset > size:
        raise OutOfRange(f"content {request.digest}: offset {offset} is past its {size} bytes")
    return offset, size if request.size <= 0 else min(size, offset + request.size)


def _pread(file: BinaryIO, size: int, offset: int) -> bytes:
    with os_errors("content"):
        data = os.pread(file.fileno(), size, offset)
    if not data:
        raise DataLoss("content: its file became shorter while it was read")
    return data


@asynccontextmanager
async def _held(make: Callable[[], AbstractContextManager[T]]) -> AsyncIterator[T]:
    """Hold what *make* returns, made and closed in a worker thread, also if the call is cancelled in between."""
    held = ExitStack()
    try:
        yield await blocking(lambda: held.enter_context(make()))
    finally:
        await blocking(held.close)


def _info(info: store.Info) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status(status: store.Status) -> pb.Status:
    return pb.Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
    )
