"""Our server with grpc's client, and our client with grpc's server and with our own."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from runtimed.api import content_pb2 as pb
from runtimed.api.content_pb2_grpc import ContentStub, add_ContentServicer_to_server
from runtimed.errors import NotFound, ResourceExhausted
from runtimed.rpc.grpc_client import Cancelled, Channel, Lost
from tests.fakes.grpc_echo import CONTENT, LARGE, Echo, ours

OPTIONS = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]


@pytest.fixture
def echo():
    return Echo()


@asynccontextmanager
async def theirs(path, echo):
    server = grpc.aio.server(options=OPTIONS)
    add_ContentServicer_to_server(echo, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


@pytest.fixture
async def server(tmp_path, echo):
    async with ours(f"{tmp_path}/s", echo) as server:
        yield server


@pytest.fixture
async def stub(server, tmp_path):
    """grpc's client of our server."""
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s", options=OPTIONS) as channel:
        yield ContentStub(channel)


@pytest.fixture(params=[ours, theirs])
async def channel(request, tmp_path, echo):
    """Our client of both servers."""
    async with request.param(f"{tmp_path}/s", echo):
        channel = Channel(tmp_path / "s")
        yield channel
        await channel.close()


async def info(channel, digest):
    answer = await channel.unary(
        f"{CONTENT}/Info", [("key", "value")], pb.InfoRequest(digest=digest).SerializeToString()
    )
    return pb.InfoResponse.FromString(answer).info.digest


async def reading(channel, **fields):
    call = await channel.call(f"{CONTENT}/Read", [], pb.ReadContentRequest(**fields).SerializeToString())
    try:
        while (message := await call.receive()) is not None:
            yield pb.ReadContentResponse.FromString(message)
    finally:
        call.cancel()


# Our server


async def test_large_messages_pass_both_ways(stub):
    text = LARGE.decode("latin-1")[: 7 << 20]
    assert (await stub.Info(pb.InfoRequest(digest=text))).info.digest == text
    sizes = [len(answer.data) async for answer in stub.Read(pb.ReadContentRequest(size=3, offset=len(LARGE)))]
    assert sizes == [len(LARGE)] * 3


async def test_a_message_that_is_too_large_is_refused(stub):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Info(pb.InfoRequest(digest="x" * (17 << 20)))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Info(pb.InfoRequest(digest="x"))).info.digest == "x"


async def test_a_stream_of_requests_is_answered_as_it_comes(stub):
    call = stub.Write()
    for size in (0, 1, 1 << 20, 5, 3 << 20):
        await call.write(pb.WriteContentRequest(data=LARGE[:size]))
        assert (await call.read()).offset == size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_many_calls_go_on_at_once(stub):
    names = [f"digest-{number}" * 100 for number in range(500)]
    answers = await asyncio.gather(*(stub.Info(pb.InfoRequest(digest=name)) for name in names))
    assert [answer.info.digest for answer in answers] == names


async def test_a_reader_that_is_slow_does_not_keep_others_from_theirs(stub):
    slow = stub.Read(pb.ReadContentRequest(size=8, offset=len(LARGE)))
    assert len((await slow.read()).data) == len(LARGE)
    assert (await stub.Info(pb.InfoRequest(digest="x"))).info.digest == "x"
    for _ in range(7):
        assert len((await slow.read()).data) == len(LARGE)
    assert await slow.read() is grpc.aio.EOF


async def test_a_deadline_ends_the_handler(stub, echo):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Info(pb.InfoRequest(digest="wait"), timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await echo.ended.wait()


async def test_a_client_that_cancels_ends_the_handler(stub, echo):
    call = stub.Info(pb.InfoRequest(digest="wait"))
    await echo.begun.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await echo.ended.wait()


async def test_a_client_that_is_gone_ends_its_handlers(server, tmp_path, echo):
    channel = Channel(tmp_path / "s")
    call = await channel.call(f"{CONTENT}/Info", [], pb.InfoRequest(digest="wait").SerializeToString())
    await echo.begun.wait()
    await channel.close()
    async with asyncio.timeout(5):
        await echo.ended.wait()
    with pytest.raises(Lost):
        await call.receive()


async def test_metadata_and_messages_arrive_as_they_are(stub):
    answer = await stub.Info(pb.InfoRequest(digest="metadata"), metadata=(("key", "value, other"),))
    assert answer.info.digest == "value, other"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Info(pb.InfoRequest(digest="missing"))
    assert failed.value.details() == "content 'ä%\n'"


async def test_a_server_that_stops_cancels_what_runs_and_takes_nothing_more(server, stub, echo):
    call = stub.Info(pb.InfoRequest(digest="wait"))
    await echo.begun.wait()
    await server.stop(0.1)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Info(pb.InfoRequest())
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\1\1\4\0\0\0\1\x80",  # an index that there is not
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\1\0\0\0\0\0\1x",  # data of no stream
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\1\0\0\0\0\1" + b"\0\0\0\4\0\0\0\0\0",  # headers without an end
    ],
    ids=["HTTP/1", "rubbish", "headers", "data", "continuation"],
)
async def test_who_does_not_keep_to_the_rules_is_sent_away(server, stub, tmp_path, data):
    reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
    writer.write(data)
    async with asyncio.timeout(5):
        assert b"\x07\0" in await reader.read()  # GOAWAY, and the end
    writer.close()
    await writer.wait_closed()
    assert (await stub.Info(pb.InfoRequest(digest="x"))).info.digest == "x"


async def test_a_request_without_a_message_is_refused(server, tmp_path):
    channel = Channel(tmp_path / "s")
    call = await channel.call(f"{CONTENT}/Info", [])
    await call.end()
    with pytest.raises(Exception, match="the request has no message"):
        await call.receive()
    await channel.close()


# Our client


async def test_our_client_gets_large_messages(channel):
    text = LARGE.decode("latin-1")[: 2 << 20]
    assert await info(channel, text) == text
    sizes = [len(answer.data) async for answer in reading(channel, size=3, offset=len(LARGE))]
    assert sizes == [len(LARGE)] * 3


async def test_our_client_gets_statuses_as_errors(channel):
    with pytest.raises(NotFound, match="content 'ä%\n'"):
        await info(channel, "missing")
    assert await info(channel, "metadata") == "value"


async def test_our_client_refuses_what_is_too_large(channel):
    with pytest.raises(ResourceExhausted):
        [answer async for answer in reading(channel, size=1, offset=17 << 20)]
    assert await info(channel, "x") == "x"


async def test_our_client_streams_both_ways(channel):
    call = await channel.call(f"{CONTENT}/Write", [])
    for size in (0, 1, 1 << 20, 3 << 20):
        await call.send(pb.WriteContentRequest(data=LARGE[:size]).SerializeToString())
        assert pb.WriteContentResponse.FromString(await call.receive()).offset == size
    await call.end()
    assert await call.receive() is None


async def test_a_call_that_our_client_gives_up_ends_the_handler(channel, echo):
    waiting = asyncio.create_task(info(channel, "wait"))
    await echo.begun.wait()
    waiting.cancel()
    async with asyncio.timeout(5):
        await echo.ended.wait()
    assert await info(channel, "x") == "x"


async def test_our_client_hears_of_a_server_that_stops_and_finds_the_next(tmp_path, echo):
    channel = Channel(tmp_path / "s")
    async with ours(f"{tmp_path}/s", echo):
        waiting = asyncio.create_task(info(channel, "wait"))
        await echo.begun.wait()
    with pytest.raises((Cancelled, Lost)):
        await waiting
    with pytest.raises(Lost):
        await info(channel, "x")
    (tmp_path / "s").unlink(missing_ok=True)  # since Python 3.13 it goes with the server
    async with ours(f"{tmp_path}/s", echo):
        assert await info(channel, "x") == "x"
        await channel.close()
