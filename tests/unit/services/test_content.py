import asyncio
import tracemalloc

import grpc
import grpc.aio
import pytest

from runtimed.api import content_pb2 as pb
from runtimed.api.content_pb2_grpc import ContentStub, add_ContentServicer_to_server
from runtimed.content.local import LocalStore
from runtimed.metadata import leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Lease, Resource
from runtimed.oci import digest as digests
from runtimed.services.content import ContentService
from tests.fakes.events import RecordedEvents
from tests.fakes.server import NAMESPACE, served

HELLO = b"hello"
DIGEST = digests.of(HELLO)
OTHER = (("containerd-namespace", "other"),)


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "metadata.db")
    yield database
    database.close()


class WatchedContent(Content):
    """Tells the event loop when an ingest is let go of."""

    def __init__(self, *args):
        super().__init__(*args)
        self.loop, self.released = asyncio.get_running_loop(), asyncio.Event()

    def release(self, *args):
        super().release(*args)
        self.loop.call_soon_threadsafe(self.released.set)

    async def nothing_is_held(self):
        async with asyncio.timeout(5):
            while self._held:
                await self.released.wait()
                self.released.clear()


@pytest.fixture
async def content(database, tmp_path):
    return WatchedContent(database, LocalStore(tmp_path / "content"))


@pytest.fixture
def events():
    return RecordedEvents()


@pytest.fixture
async def stub(content, events, tmp_path):
    service = ContentService(content, events)
    async with served(tmp_path / "s", lambda server: add_ContentServicer_to_server(service, server)) as channel:
        yield ContentStub(channel)


def message(action="STAT", **fields):
    return pb.WriteContentRequest(action=action, **fields)


async def write(stub, *messages, metadata=NAMESPACE):
    """Send *messages* one by one, each after the answer to the one before, as clients do; return the answers."""
    call = stub.Write(metadata=metadata)
    answers = []
    for one in messages:
        await call.write(one)
        answer = await call.read()
        if answer is grpc.aio.EOF:
            break
        answers.append(answer)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
    return answers


async def add(stub, data=HELLO, ref="ref", metadata=NAMESPACE, **labels):
    await write(
        stub,
        message(ref=ref, total=len(data), expected=digests.of(data)),
        message("WRITE", data=data),
        message("COMMIT", offset=len(data), total=len(data), expected=digests.of(data), labels=labels),
        metadata=metadata,
    )
    return digests.of(data)


async def read(stub, digest=DIGEST, metadata=NAMESPACE, **fields):
    return [one async for one in stub.Read(pb.ReadContentRequest(digest=digest, **fields), metadata=metadata)]


@pytest.fixture
def fails():
    """``async with``-less: await a call and return its status code's name and details."""

    async def fails(awaitable):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await awaitable
        return failed.value.code().name, failed.value.details()

    return fails


async def test_stat_write_commit(stub, events):
    stat, first, second, commit = await write(
        stub,
        message(ref="ref", total=5, expected=DIGEST),
        message("WRITE", offset=0, data=b"hel"),
        message("WRITE", offset=3, data=b"lo"),
        message("COMMIT", offset=5, total=5, expected=DIGEST, labels={"k": "v"}),
    )
    assert (stat.action, stat.offset, stat.total, stat.digest) == (pb.STAT, 0, 5, digests.of(b""))
    assert (first.action, first.offset, first.digest) == (pb.WRITE, 3, digests.of(b"hel"))
    assert (second.offset, second.digest) == (5, DIGEST)
    assert (commit.action, commit.offset, commit.digest) == (pb.COMMIT, 5, DIGEST)
    assert commit.started_at == stat.started_at
    assert commit.updated_at.ToNanoseconds() >= stat.started_at.ToNanoseconds() > 0
    info = (await stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NAMESPACE)).info
    assert (info.digest, info.size, dict(info.labels)) == (DIGEST, 5, {"k": "v"})
    assert [(ns, topic, event.digest, event.size) for ns, topic, event in events.published] == [
        ("default", "/content/create", DIGEST, 5)
    ]


async def test_everything_in_one_message(stub):
    (commit,) = await write(stub, message("COMMIT", ref="ref", data=HELLO, total=5, expected=DIGEST))
    assert commit.digest == DIGEST


async def test_a_commit_that_leaves_the_offset_out_keeps_what_was_sent(stub):
    await write(stub, message("WRITE", ref="ref", data=HELLO), message("COMMIT", total=5))
    assert (await read(stub))[0].data == HELLO


async def test_an_ingest_is_resumed_in_another_call(stub):
    await write(stub, message("WRITE", ref="ref", total=5, data=b"hel"))
    status = (await stub.Status(pb.StatusRequest(ref="ref"), metadata=NAMESPACE)).status
    assert (status.ref, status.offset, status.total) == ("ref", 3, 5)
    stat, _ = await write(stub, message(ref="ref"), message("COMMIT", offset=3, data=b"lo", expected=DIGEST))
    assert (stat.offset, stat.digest, stat.total) == (3, digests.of(b"hel"), 0)
    assert (await read(stub))[0].data == HELLO


async def test_writing_at_0_starts_over(stub):
    await write(
        stub, message("WRITE", ref="ref", data=b"wrong"), message("WRITE", data=HELLO), message("COMMIT", offset=5)
    )
    assert (await read(stub))[0].data == HELLO


@pytest.mark.parametrize("offset", [2, 4, 99, -1])
async def test_writing_anywhere_else_is_out_of_range(stub, fails, offset):
    messages = [message("WRITE", ref="ref", data=b"hel"), message("WRITE", offset=offset, data=b"lo")]
    code, details = await fails(write(stub, *messages))
    assert code == "OUT_OF_RANGE"
    assert f"write at {offset}" in details
    assert "offset is 3" in details


async def test_the_first_message_needs_a_ref(stub, fails):
    assert (await fails(write(stub, message("WRITE", data=HELLO))))[0] == "INVALID_ARGUMENT"


async def test_a_call_without_any_message_is_nothing(stub):
    assert await write(stub) == []


@pytest.mark.parametrize("commit", [{"total": 6}, {"expected": digests.of(b"other")}])
async def test_another_size_or_digest_is_a_failed_precondition_and_the_ingest_stays(stub, fails, events, commit):
    messages = [message("WRITE", ref="ref", data=HELLO), message("COMMIT", offset=5, **commit)]
    assert (await fails(write(stub, *messages)))[0] == "FAILED_PRECONDITION"
    assert (await stub.Status(pb.StatusRequest(ref="ref"), metadata=NAMESPACE)).status.offset == 5
    assert events.published == []
    await stub.Abort(pb.AbortRequest(ref="ref"), metadata=NAMESPACE)
    assert (await fails(stub.Status(pb.StatusRequest(ref="ref"), metadata=NAMESPACE)))[0] == "NOT_FOUND"
    assert (await fails(stub.Abort(pb.AbortRequest(ref="ref"), metadata=NAMESPACE)))[0] == "NOT_FOUND"


async def test_the_total_that_was_said_first_is_compared_at_the_end(stub, fails):
    messages = [message(ref="ref", total=6), message("WRITE", data=HELLO), message("COMMIT", offset=5)]
    assert (await fails(write(stub, *messages)))[0] == "FAILED_PRECONDITION"


async def test_what_is_there_is_already_exists_on_the_first_message(stub, fails):
    await add(stub)
    assert (await fails(write(stub, message(ref="again", expected=DIGEST))))[0] == "ALREADY_EXISTS"
    # In another namespace too, and then it is visible there.
    assert (await fails(read(stub, metadata=OTHER)))[0] == "NOT_FOUND"
    assert (await fails(write(stub, message(ref="r", expected=DIGEST), metadata=OTHER)))[0] == "ALREADY_EXISTS"
    assert (await read(stub, metadata=OTHER))[0].data == HELLO


async def test_what_is_there_is_already_exists_on_a_later_message_and_the_ingest_is_gone(stub, fails):
    await add(stub)
    for last in (message("WRITE", offset=3, expected=DIGEST), message("COMMIT", offset=3, data=b"lo", expected=DIGEST)):
        assert (await fails(write(stub, message("WRITE", ref="r", data=b"hel"), last)))[0] == "ALREADY_EXISTS"
        assert not (await stub.ListStatuses(pb.ListStatusesRequest(), metadata=NAMESPACE)).statuses


async def test_an_ingest_that_another_call_holds_is_unavailable_until_that_ends(stub, fails):
    holding = stub.Write(metadata=NAMESPACE)
    await holding.write(message(ref="ref"))
    await holding.read()
    assert (await fails(write(stub, message(ref="ref"))))[0] == "UNAVAILABLE"
    await holding.done_writing()
    assert await holding.read() is grpc.aio.EOF
    await write(stub, message(ref="ref"))


async def test_a_client_that_disconnects_leaves_its_bytes_and_frees_the_ref(stub, content):
    call = stub.Write(metadata=NAMESPACE)
    await call.write(message("WRITE", ref="ref", data=b"hel"))
    await call.read()
    call.cancel()
    await content.nothing_is_held()
    (stat,) = await write(stub, message(ref="ref"))
    assert stat.offset == 3


async def test_many_clients_that_come_and_go_leave_no_ref_held(stub, content):
    async def come_and_go(number):
        call = stub.Write(metadata=NAMESPACE)
        await call.write(message("WRITE", ref=f"ref-{number}", data=b"x" * 1000))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        call.cancel()

    await asyncio.gather(*(come_and_go(number) for number in range(50)))
    # Which of them were taken up at all nobody can say; what was is let go of, and every ref is free.
    await content.nothing_is_held()
    for number in range(50):
        await write(stub, message(ref=f"ref-{number}"))


async def test_a_lease_of_the_request_holds_what_is_written(stub, database):
    await database.write(leases.create, "default", Lease(id="l"))
    await add(stub, metadata=(*NAMESPACE, ("containerd-lease", "l"), ("containerd-lease", "other")))
    assert await database.read(leases.resources, "default", "l") == [Resource("content", DIGEST)]


async def test_the_first_namespace_header_counts(stub):
    await add(stub, metadata=(("containerd-namespace", "moby"), ("containerd-namespace", "buildkit")))
    assert await read(stub, metadata=(("containerd-namespace", "moby"),))


async def test_a_request_without_a_namespace_is_a_failed_precondition(stub, fails):
    code, details = await fails(stub.Info(pb.InfoRequest(digest=DIGEST)))
    assert code == "FAILED_PRECONDITION"
    assert "containerd-namespace" in details


@pytest.mark.parametrize("namespace", ["../x", "a/b", "x" * 77])
async def test_a_namespace_that_is_not_valid_is_an_invalid_argument(stub, fails, namespace):
    metadata = (("containerd-namespace", namespace),)
    assert (await fails(stub.Info(pb.InfoRequest(digest=DIGEST), metadata=metadata)))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, 0, HELLO), (2, 0, b"llo"), (1, 3, b"ell"), (3, 100, b"lo"), (-4, 0, HELLO), (0, -1, HELLO), (5, 0, b"")],
)
async def test_a_part_is_read(stub, offset, size, expected):
    await add(stub)
    assert b"".join([one.data for one in await read(stub, offset=offset, size=size)]) == expected


async def test_reading_past_the_end_is_out_of_range(stub, fails):
    await add(stub)
    assert (await fails(read(stub, offset=6)))[0] == "OUT_OF_RANGE"


@pytest.mark.parametrize("digest", ["", "sha256:x", "sha256:../../../etc/shadow"])
async def test_a_digest_that_is_not_well_formed_is_an_invalid_argument(stub, fails, digest):
    for call in (
        read(stub, digest),
        stub.Info(pb.InfoRequest(digest=digest), metadata=NAMESPACE),
        stub.Delete(pb.DeleteContentRequest(digest=digest), metadata=NAMESPACE),
        stub.Update(pb.UpdateRequest(info=pb.Info(digest=digest)), metadata=NAMESPACE),
    ):
        assert (await fails(call))[0] == "INVALID_ARGUMENT"


async def test_a_large_blob_streams_in_pieces(stub):
    data = bytes(range(256)) * 12_000  # 3 MB
    digest = await add(stub, data)
    pieces = await read(stub, digest)
    assert max(len(one.data) for one in pieces) <= 1 << 20
    assert [one.offset for one in pieces] == [0, 1 << 20, 2 << 20]
    assert b"".join([one.data for one in pieces]) == data


async def test_blobs_are_listed_in_pages(stub, fails):
    for number in range(250):
        await add(stub, b"%d" % number)
    pages = [one async for one in stub.List(pb.ListContentRequest(), metadata=NAMESPACE)]
    assert [len(one.info) for one in pages] == [100, 100, 50]
    found = [
        one
        async for one in stub.List(pb.ListContentRequest(filters=[f"digest=={digests.of(b'7')}"]), metadata=NAMESPACE)
    ]
    assert [one.digest for page in found for one in page.info] == [digests.of(b"7")]
    assert [one async for one in stub.List(pb.ListContentRequest(), metadata=OTHER)] == []


async def test_blobs_with_long_labels_never_make_a_message_too_large(stub, content):
    labels = {f"k{number}": "v" * 4000 for number in range(500)}  # 2 MB
    for number in range(20):
        digest = await add(stub, b"%d" % number)
        content.update("default", digest, labels)
    pages = [one async for one in stub.List(pb.ListContentRequest(), metadata=NAMESPACE)]
    assert sum(len(one.info) for one in pages) == 20
    assert max(one.ByteSize() for one in pages) < 4 << 20


async def test_labels_are_updated_by_mask(stub, fails):
    await add(stub, a="1")
    request = pb.UpdateRequest(info=pb.Info(digest=DIGEST, labels={"containerd.io/gc.ref.content.l.0": "sha256:x"}))
    request.update_mask.paths.append("labels.containerd.io/gc.ref.content.l.0")
    info = (await stub.Update(request, metadata=NAMESPACE)).info
    assert dict(info.labels) == {"a": "1", "containerd.io/gc.ref.content.l.0": "sha256:x"}
    for paths in (["size"], [""]):
        request = pb.UpdateRequest(info=pb.Info(digest=DIGEST))
        request.update_mask.paths.extend(paths)
        assert (await fails(stub.Update(request, metadata=NAMESPACE)))[0] == "INVALID_ARGUMENT"


async def test_a_deleted_blob_is_gone_and_says_so(stub, fails, events):
    await add(stub)
    await stub.Delete(pb.DeleteContentRequest(digest=DIGEST), metadata=NAMESPACE)
    assert (await fails(read(stub)))[0] == "NOT_FOUND"
    assert (await fails(stub.Delete(pb.DeleteContentRequest(digest=DIGEST), metadata=NAMESPACE)))[0] == "NOT_FOUND"
    assert events.topics == ["/content/create", "/content/delete"]


@pytest.mark.slow
async def test_a_large_blob_needs_little_memory(stub):
    piece, count = b"x" * (1 << 20), 200
    tracemalloc.start()

    async def pieces():
        yield message(ref="ref", total=count << 20)
        for number in range(count):
            yield message("WRITE", offset=number << 20, data=piece)
        yield message("COMMIT", offset=count << 20)

    async for answer in stub.Write(pieces(), metadata=NAMESPACE):
        digest = answer.digest
    size = 0
    async for one in stub.Read(pb.ReadContentRequest(digest=digest), metadata=NAMESPACE):
        size += len(one.data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == count << 20
    assert peak < 64 << 20


@pytest.mark.parametrize("size", [0, 3, 5])
async def test_a_blob_with_other_bytes_is_not_read_where_they_are_compared(content, stub, fails, size):
    await write(stub, message("COMMIT", ref="ref", data=HELLO, total=5, expected=DIGEST))
    content.verifies = True
    assert (await read(stub, size=size))[0].data == HELLO[: size or 5]
    path = content.path("default", DIGEST)
    path.chmod(0o644)
    path.write_bytes(b"HELLO")
    name, details = await fails(read(stub, size=size))
    assert (name, "other bytes" in details) == ("DATA_LOSS", True)
