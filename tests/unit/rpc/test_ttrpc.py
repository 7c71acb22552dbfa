"""The ttrpc client and server against each other, and the server against bytes that no client would send."""

import asyncio
import socket
import struct

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimed.api import ttrpc_pb2 as pb
from runtimed.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
    Unimplemented,
)
from runtimed.rpc import ttrpc
from runtimed.rpc.frames import MAX_MESSAGE

ECHO = "test.Echo"


class Handlers:
    """Handlers that a test can hold open and look into."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.cancelled = asyncio.Event()

    def service(self):
        return {
            "Say": ttrpc.Method(StringValue, self.say),
            "Wait": ttrpc.Method(StringValue, self.wait),
            "Fail": ttrpc.Method(StringValue, self.fail),
            "Namespace": ttrpc.Method(Empty, self.namespace),
            "Grow": ttrpc.Method(BytesValue, self.grow),
        }

    async def say(self, request, metadata):
        return StringValue(value=request.value)

    async def wait(self, request, metadata):
        self.entered.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return StringValue(value=request.value)

    async def fail(self, request, metadata):
        raise {"not found": NotFound("task 'x'"), "runc": RuntimedError("runc: no")}.get(
            request.value, ZeroDivisionError("oops")
        )

    async def namespace(self, request, metadata):
        return StringValue(value=metadata.get("ns", ""))

    async def grow(self, request, metadata):
        return BytesValue(value=bytes(MAX_MESSAGE))


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def path(handlers, tmp_path):
    server = ttrpc.Server({ECHO: handlers.service()})
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    await server.serve(sock)
    yield tmp_path / "s"
    await server.close()
    assert server.connections == 0


@pytest.fixture
async def client(path):
    client = await ttrpc.Client.connect(path)
    yield client
    await client.close()


async def say(client, text="hello", **kwargs):
    return (await client.call(ECHO, "Say", StringValue(value=text), StringValue, **kwargs)).value


async def test_a_call_is_answered(client):
    assert await say(client) == "hello"


async def test_calls_overtake_each_other(client, handlers):
    slow = asyncio.create_task(client.call(ECHO, "Wait", StringValue(value="slow"), StringValue))
    await handlers.entered.acquire()
    assert await say(client, "quick") == "quick"
    assert not slow.done()
    handlers.gate.set()
    assert (await slow).value == "slow"


async def test_metadata_reaches_the_handler(client):
    answer = await client.call(ECHO, "Namespace", Empty(), StringValue, metadata={"ns": "blue"})
    assert answer.value == "blue"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("not found", NotFound, "task 'x'"),
        ("runc", RuntimedError, "runc: no"),
        ("a bug", RuntimedError, "ZeroDivisionError: oops"),
    ],
)
async def test_errors_keep_class_and_text(client, text, error, message):
    with pytest.raises(error) as caught:
        await client.call(ECHO, "Fail", StringValue(value=text), StringValue)
    assert type(caught.value) is error
    assert str(caught.value) == message


@pytest.mark.parametrize(("service", "method"), [("no.Such", "Say"), (ECHO, "NoSuch")])
async def test_what_is_not_registered_is_unimplemented(client, service, method):
    with pytest.raises(Unimplemented, match="[Nn]o.?Such"):
        await client.call(service, method, Empty(), Empty)


async def test_a_deadline_ends_the_call_on_both_sides(client, handlers):
    with pytest.raises(DeadlineExceeded, match="no answer"):
        await client.call(ECHO, "Wait", StringValue(), StringValue, timeout_s=0.05)
    await asyncio.wait_for(handlers.cancelled.wait(), 5)
    assert await say(client) == "hello"


async def test_the_server_keeps_the_deadline_for_a_client_that_does_not(raw):
    await raw.send(1, pb.Request(service=ECHO, method="Wait", timeout_nano=1_000_000))
    assert (await raw.receive()).status.code == DeadlineExceeded.code


async def test_a_request_that_is_too_long_is_refused_before_it_is_sent(client):
    with pytest.raises(ResourceExhausted, match="exceeds the maximum"):
        await say(client, "x" * MAX_MESSAGE)
    assert await say(client) == "hello"


async def test_a_response_that_is_too_long_becomes_an_error(client):
    with pytest.raises(ResourceExhausted, match="exceeds the maximum"):
        await client.call(ECHO, "Grow", BytesValue(), BytesValue)
    assert await say(client) == "hello"


async def test_a_disconnected_client_fails_its_calls(client, handlers):
    waiting = asyncio.create_task(client.call(ECHO, "Wait", StringValue(), StringValue))
    await handlers.entered.acquire()
    await client.close()
    with pytest.raises(Unavailable, match="closed before the answer"):
        await waiting
    assert client.closed.done()
    with pytest.raises(Unavailable, match="is closed"):
        await say(client)
    await asyncio.wait_for(handlers.cancelled.wait(), 5)  # the server noticed


async def test_a_client_notices_that_the_server_has_gone(tmp_path):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    client = await ttrpc.Client.connect(tmp_path / "s")
    peer, _ = listening.accept()
    waiting = asyncio.create_task(say(client))
    await asyncio.get_running_loop().run_in_executor(None, peer.recv, 100)
    peer.close()
    with pytest.raises(Unavailable):
        await waiting
    await asyncio.wait_for(client.closed, 5)
    await client.close()
    listening.close()


async def test_connecting_to_nothing_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="there is no such socket"):
        await ttrpc.Client.connect(tmp_path / "nobody")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "dead"))
    sock.close()
    with pytest.raises(Unavailable, match="refused"):
        await ttrpc.Client.connect(tmp_path / "dead")


# What no client of ours would send.


class Raw:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, stream, request, type=1, length=None):
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        self.writer.write(struct.pack(">IIBB", len(payload) if length is None else length, stream, type, 0) + payload)
        await self.writer.drain()

    async def receive(self):
        length, self.stream, type, flags = struct.unpack(">IIBB", await self.reader.readexactly(10))
        assert (type, flags) == (2, 0)
        return pb.Response.FromString(await self.reader.readexactly(length))


@pytest.fixture
async def raw(path):
    reader, writer = await asyncio.open_unix_connection(path)
    yield Raw(reader, writer)
    writer.close()
    await writer.wait_closed()


def saying(text):
    return pb.Request(service=ECHO, method="Say", payload=StringValue(value=text).SerializeToString())


async def test_a_message_that_is_too_long_is_answered_and_the_connection_stays(raw):
    await raw.send(1, bytes(MAX_MESSAGE + 1))
    answer = await raw.receive()
    assert (raw.stream, answer.status.code) == (1, ResourceExhausted.code)
    await raw.send(3, saying("still here"))
    assert StringValue.FromString((await raw.receive()).payload).value == "still here"


@pytest.mark.parametrize(
    ("stream", "payload"),
    [(1, b"\xff\xff"), (2, b""), (1, pb.Request(service=ECHO, method="Say", payload=b"\xff").SerializeToString())],
)
async def test_a_malformed_request_is_answered_and_the_connection_stays(raw, stream, payload):
    await raw.send(stream, payload)
    assert (await raw.receive()).status.code == InvalidArgument.code
    await raw.send(3, saying("still here"))
    assert not (await raw.receive()).status.code


async def test_a_stream_id_is_used_once(raw):
    await raw.send(3, saying("first"))
    assert not (await raw.receive()).status.code
    await raw.send(3, saying("again"))
    assert (await raw.receive()).status.code == InvalidArgument.code


async def test_data_frames_are_ignored(raw):
    await raw.send(1, b"data", type=3)
    await raw.send(3, saying("x"))
    await raw.receive()
    assert raw.stream == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_bytes_hurt_nobody_else(tmp_path_factory, garbage):
    async def scenario():
        server = ttrpc.Server({ECHO: Handlers().service()})
        path = tmp_path_factory.mktemp("ttrpc") / "s"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        await server.serve(sock)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        await reader.read()  # until the server has had enough
        writer.close()
        client = await ttrpc.Client.connect(path)
        assert await say(client) == "hello"
        await client.close()
        await server.close()

    asyncio.run(scenario())


@given(st.binary(max_size=300), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_client_survives_random_answers(garbage, kind):
    async def scenario():
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        client = ttrpc.Client(reader, writer, "garbage")
        theirs.sendall(struct.pack(">IIBB", len(garbage), 1, kind, 0) + garbage + garbage)
        call = asyncio.create_task(say(client))
        await asyncio.sleep(0)
        theirs.shutdown(socket.SHUT_WR)
        result = (await asyncio.gather(call, return_exceptions=True))[0]
        assert isinstance(result, RuntimedError | str)
        await client.close()
        theirs.close()

    asyncio.run(scenario())
