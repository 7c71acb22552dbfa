import asyncio
from functools import partial

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import StringValue

from runtimed.api import streaming_pb2 as pb
from runtimed.api.streaming_pb2_grpc import StreamingStub, add_StreamingServicer_to_server
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from runtimed.images.progress import Progress
from runtimed.oci.descriptor import Descriptor
from runtimed.services import streaming
from runtimed.services.progress import progress_to
from runtimed.services.streaming import Stream, StreamingService, Streams, to_any, unpack
from tests.fakes.server import NAMESPACE, served


@pytest.fixture
def streams():
    return Streams()


@pytest.fixture
async def stub(tmp_path, streams):
    register = partial(add_StreamingServicer_to_server, StreamingService(streams))
    async with served(tmp_path / "socket", register) as channel:
        yield StreamingStub(channel)


async def opened(stub, id="s"):
    """Open a stream as containerd's client does; return the call after its answer."""
    call = stub.Stream(metadata=NAMESPACE)
    await call.write(to_any(pb.StreamInit(id=id)))
    answer = await call.read()
    assert (answer.type_url, answer.value) == ("google.protobuf.Empty", b"")
    return call


async def send_for_ever(stream):
    while True:
        await stream.send(StringValue())


async def all_of(call):
    """Return what still comes."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def test_an_opened_stream_carries_messages_both_ways(stub, streams):
    call = await opened(stub)
    stream = await streams.get("default", "s")
    await call.write(to_any(StringValue(value="up")))
    received = StringValue()
    unpack(await stream.receive(), received)
    assert received.value == "up"

    await stream.send(StringValue(value="down"))
    assert (await call.read()).type_url == "google.protobuf.StringValue"
    stream.close()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_what_was_sent_before_the_close_arrives(stub, streams):
    call = await opened(stub)
    stream = await streams.get("default", "s")
    for number in range(10):
        await stream.send(StringValue(value=str(number)))
    stream.close()
    with pytest.raises(Unavailable):
        await stream.send(StringValue())
    assert len(await all_of(call)) == 10


async def test_a_client_that_has_sent_all_can_still_receive(stub, streams):
    call = await opened(stub)
    stream = await streams.get("default", "s")
    await call.done_writing()
    assert await stream.receive() is None
    await stream.send(StringValue())
    assert await call.read()
    stream.close()


async def test_a_client_that_goes_ends_the_stream(stub, streams):
    call = await opened(stub)
    stream = await streams.get("default", "s")
    receiving = asyncio.create_task(stream.receive())
    call.cancel()
    assert await receiving is None
    with pytest.raises(Unavailable):
        await send_for_ever(stream)
    await opened(stub)  # the ID is free again


async def test_a_stream_is_waited_for_if_the_request_overtakes_it(stub, streams):
    waiting = asyncio.create_task(streams.get("default", "late"))
    await asyncio.sleep(0)
    await opened(stub, "late")
    assert await waiting


async def test_a_stream_that_is_never_opened_is_not_found(streams, monkeypatch):
    monkeypatch.setattr(streaming, "_LOOKUP_LIMIT_S", 0.01)
    with pytest.raises(NotFound, match="stream 'x': open it before the request that names it"):
        await streams.get("default", "x")


async def test_streams_of_another_namespace_are_not_seen(stub, streams, monkeypatch):
    monkeypatch.setattr(streaming, "_LOOKUP_LIMIT_S", 0.01)
    await opened(stub)
    with pytest.raises(NotFound):
        await streams.get("other", "s")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (to_any(StringValue(value="x")), grpc.StatusCode.INVALID_ARGUMENT),
        (Any(type_url="containerd.services.streaming.v1.StreamInit", value=b"\xff"), grpc.StatusCode.INVALID_ARGUMENT),
        (to_any(pb.StreamInit(id="")), grpc.StatusCode.INVALID_ARGUMENT),
        (to_any(pb.StreamInit(id="a\nb")), grpc.StatusCode.INVALID_ARGUMENT),
        (None, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_stream_must_begin_with_its_id(stub, first, code):
    call = stub.Stream(metadata=NAMESPACE)
    if first is not None:
        await call.write(first)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is code


async def test_an_id_can_be_open_only_once(stub, streams):
    await opened(stub)
    call = stub.Stream(metadata=NAMESPACE)
    await call.write(to_any(pb.StreamInit(id="s")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(AlreadyExists), streams.registered("default", "s", Stream()):
        pass


def test_an_any_is_taken_with_and_without_a_host_in_its_type():
    message = StringValue(value="x")
    for url in ("google.protobuf.StringValue", "type.googleapis.com/google.protobuf.StringValue"):
        into = StringValue()
        unpack(Any(type_url=url, value=message.SerializeToString()), into)
        assert into == message
    with pytest.raises(InvalidArgument, match="where google.protobuf.StringValue is expected"):
        unpack(to_any(pb.StreamInit()), StringValue())


async def test_progress_that_nobody_reads_holds_nothing_up_and_ends_with_the_newest(monkeypatch):
    stream = Stream()
    descriptor = Descriptor(media_type="m", digest="sha256:" + "a" * 64, size=10_000)
    async with progress_to(stream) as report:
        for offset in range(10_000):
            report(Progress(event="downloading", name="x", progress=offset, total=10_000, descriptor=descriptor))
        report(Progress(event="complete", name="x"))
    sent = []
    while (message := await stream.outgoing.get()) is not None:
        sent.append(message)
    assert len(sent) < 10


async def test_progress_for_a_client_that_has_gone_is_dropped():
    stream = Stream()
    stream.close()
    async with progress_to(stream) as report:
        report(Progress(event="complete"))
        await asyncio.sleep(0)
        report(Progress(event="complete"))
