import asyncio
import logging

import grpc
import grpc.aio
import pytest

from runtimed.api import content_pb2 as pb
from runtimed.api.content_pb2_grpc import ContentServicer, ContentStub, add_ContentServicer_to_server
from runtimed.errors import _BY_CODE, NotFound, RuntimedError
from tests.fakes.server import served


class Raising(ContentServicer):
    """Three kinds of handlers; each does what the test put into ``then``."""

    def __init__(self):
        self.then = lambda: None
        self.closed = asyncio.Event()

    async def Info(self, request, context):
        self.then()
        return pb.InfoResponse()

    async def List(self, request, context):
        try:
            yield pb.ListContentResponse()
            self.then()
            await asyncio.sleep(10 if request.filters else 0)
        finally:
            self.closed.set()

    async def Write(self, requests, context):
        async for _ in requests:
            yield pb.WriteContentResponse()
            self.then()

    async def Read(self, request, context):
        yield pb.ReadContentResponse()
        self.then()


@pytest.fixture
def servicer():
    return Raising()


@pytest.fixture
async def stub(servicer, tmp_path):
    async with served(tmp_path / "s", lambda server: add_ContentServicer_to_server(servicer, server)) as channel:
        yield ContentStub(channel)


async def info(stub):
    await stub.Info(pb.InfoRequest())


async def listing(stub):
    async for _ in stub.List(pb.ListContentRequest()):
        pass


async def write(stub):
    async for _ in stub.Write(iter([pb.WriteContentRequest()])):
        pass


async def read(stub):
    async for _ in stub.Read(pb.ReadContentRequest()):
        pass


@pytest.mark.parametrize("call", [info, listing, write, read])
async def test_an_error_is_its_status_in_every_kind_of_handler(stub, servicer, call):
    def then():
        raise NotFound("container 'x'")

    await call(stub)
    servicer.then = then
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(stub)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "container 'x'"


@pytest.mark.parametrize("error", [*_BY_CODE.values(), RuntimedError], ids=lambda error: error.__name__)
async def test_every_error_has_its_status(stub, servicer, error):
    def then():
        raise error("x")

    servicer.then = then
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await info(stub)
    assert failed.value.code().value[0] == error.code


@pytest.mark.parametrize("call", [info, listing, write, read])
async def test_a_bug_is_logged_with_its_traceback_and_answered_without_the_inside(stub, servicer, call, caplog):
    def then():
        raise OSError(5, "Input/output error", "/var/lib/runtimed/secret")

    servicer.then = then
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(stub)
    assert failed.value.code() is grpc.StatusCode.UNKNOWN
    details = str(failed.value.details())
    assert "OSError" in details
    assert "secret" not in details
    assert "secret" in caplog.text


@pytest.mark.parametrize("message", ["x" * 100_000, "€" * 100_000, "a\nb\x00\x7f\u2028"])
async def test_any_message_arrives_or_its_beginning(stub, servicer, message):
    def then():
        raise NotFound(message)

    servicer.then = then
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await info(stub)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    details = str(failed.value.details())
    assert details[:5] == message[:5]
    assert len(details) < 5000


async def test_a_client_that_goes_away_ends_the_handler(stub, servicer, caplog):
    call = stub.List(pb.ListContentRequest(filters=["wait"]))
    await anext(aiter(call))
    call.cancel()
    await asyncio.wait_for(servicer.closed.wait(), 5)
    assert "unexpectedly" not in caplog.text


async def test_a_request_is_logged_once_at_debug(stub, servicer, caplog):
    with caplog.at_level(logging.DEBUG, logger="runtimed.services.interceptors"):
        await info(stub)
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == ("request", logging.DEBUG)
    assert (record.method, record.code) == ("/containerd.services.content.v1.Content/Info", "OK")
    assert record.took_ms >= 0


async def test_a_service_that_is_not_there_is_unimplemented(tmp_path):
    async with served(tmp_path / "s") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await info(ContentStub(channel))
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
