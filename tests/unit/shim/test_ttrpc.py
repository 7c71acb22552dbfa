"""The shim's ttrpc against itself, and against bytes that no client would send. The daemon's has tests of its own."""

import contextlib
import os
import resource
import socket
import struct

import pytest

from runtimed.errors import DeadlineExceeded, InvalidArgument, NotFound, RuntimedError, Unavailable, Unimplemented
from runtimed.rpc import frames
from shim import loop, ttrpc
from shim import messages as pb
from tests.unit.shim.loops import on_loop

SERVICE = "test.Test"


class Service:
    """KeyValue is a message with two strings, no more."""

    REQUESTS = {"Say": pb.KeyValue, "Read": pb.KeyValue, "Change": pb.KeyValue}
    READS = frozenset({"Say", "Read"})
    RESUMABLE = frozenset[str]()

    def __init__(self):
        self.gate = loop.Event()
        self.ended = []

    async def Say(self, request):
        match request.key:
            case "not found":
                raise NotFound("task 'x'")
            case "bug":
                raise ZeroDivisionError("oops")
            case "no descriptors":
                os.open("/no/such/file", os.O_RDONLY)
        return pb.KeyValue(value=request.value * int(request.key or 1))

    async def Read(self, request):
        try:
            await self.gate.wait()
        finally:
            self.ended.append("read")
        return request

    async def Change(self, request):
        await self.gate.wait()
        self.ended.append("change")
        return request


class Peers:
    def __init__(self):
        self.service = Service()
        self.server = ttrpc.Server({SERVICE: self.service})

    def client(self):
        return ttrpc.Client(self.raw())

    def raw(self):
        ours, theirs = socket.socketpair()
        self.server.attach(theirs)
        return ours


async def call(client, method="Say", key="", value="", limit_s=10):
    return (await client.call(SERVICE, method, pb.KeyValue(key=key, value=value), pb.KeyValue, limit_s)).value


@on_loop
async def test_calls_are_answered_each_with_its_own_answer():
    peers = Peers()
    client = peers.client()
    tasks = [loop.spawn(call(client, value=str(number))) for number in range(50)]
    assert [await task for task in tasks] == [str(number) for number in range(50)]
    client.close()
    peers.server.close()


@pytest.mark.parametrize(
    ("method", "key", "error", "message"),
    [
        ("Say", "not found", NotFound, "task 'x'"),
        ("Say", "bug", RuntimedError, "ZeroDivisionError: oops"),
        ("Say", "no descriptors", NotFound, "No such file or directory"),
        ("Sing", "", Unimplemented, "method Sing of service test.Test"),
    ],
)
@on_loop
async def test_errors_travel_as_their_class(method, key, error, message):
    peers = Peers()
    client = peers.client()
    with pytest.raises(error, match=message):
        await call(client, method, key)
    assert await call(client, value="goes on") == "goes on"
    client.close()
    peers.server.close()


@on_loop
async def test_the_time_of_a_call_is_limited_on_both_sides():
    peers = Peers()
    client = peers.client()
    with pytest.raises(DeadlineExceeded):
        await call(client, "Read", limit_s=0.02)
    await loop.sleep(0.02)
    assert peers.service.ended == ["read"]
    client.close()
    peers.server.close()


@on_loop
async def test_what_changes_something_goes_on_when_the_caller_leaves_and_what_reads_does_not():
    peers = Peers()
    client = peers.client()
    calls = [loop.spawn(call(client, method)) for method in ("Read", "Change")]
    await loop.sleep(0.01)
    client.close()
    for one in calls:
        with pytest.raises(Unavailable):
            await one
    await loop.sleep(0.01)
    assert peers.service.ended == ["read"]
    peers.service.gate.set()
    await loop.sleep(0.01)
    assert peers.service.ended == ["read", "change"]
    assert peers.server.connections == 0
    peers.server.close()


@on_loop
async def test_a_client_that_does_not_read_is_read_no_more_and_holds_nobody_up():
    peers = Peers()
    raw, client = peers.raw(), peers.client()
    raw.setblocking(False)
    payload = pb.KeyValue(key="100000", value="x").SerializeToString()
    request = pb.Request(service=SERVICE, method="Say", payload=payload).SerializeToString()
    sent = 0
    for stream in range(1, 100_000, 2):
        try:
            raw.send(frames.packed(stream, frames.REQUEST, request))
        except BlockingIOError:
            break
        sent += 1
        await loop.sleep(0)
    assert sent < 50_000  # the server has stopped to read
    assert await call(client, value="served") == "served"
    raw.close()
    client.close()
    peers.server.close()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (struct.pack(">IIBB", 3, 1, 1, 0) + b"\xff\xff\xff", InvalidArgument),
        (struct.pack(">IIBB", 0, 2, 1, 0), InvalidArgument),
        (struct.pack(">IIBB", frames.MAX_MESSAGE + 1, 1, 1, 0) + bytes(frames.MAX_MESSAGE + 1), RuntimedError),
    ],
    ids=["no request", "even stream", "too long"],
)
@on_loop
async def test_bytes_that_are_no_call_are_answered_and_the_connection_stays(sent, error):
    peers = Peers()
    raw = peers.raw()
    raw.setblocking(False)
    good = pb.Request(service=SERVICE, method="Say", payload=pb.KeyValue(value="x").SerializeToString())
    data = memoryview(sent + frames.packed(3, frames.REQUEST, good.SerializeToString()))
    splitter = frames.Splitter()
    answers: list[frames.Frame] = []
    while len(answers) < 2:
        if data:
            with contextlib.suppress(BlockingIOError):
                data = data[raw.send(data) :]
        await loop.sleep(0)
        with contextlib.suppress(BlockingIOError):
            answers += splitter.feed(raw.recv(65536))
    first, second = (pb.Response.FromString(frame.payload or b"") for frame in answers)
    assert first.status is not None
    assert first.status.code == error.code or first.status.code == 8  # too long: resource exhausted
    assert pb.KeyValue.FromString(second.payload).value == "x"
    raw.close()
    peers.server.close()


@on_loop
async def test_out_of_descriptors_a_client_waits_until_there_are_some(tmp_path):
    peers = Peers()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    peers.server.serve(listening)
    client = ttrpc.Client(ttrpc.connected(str(tmp_path / "s")))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        answer = loop.spawn(call(client, value="late"))
        await loop.sleep(0.05)
        assert not answer.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert await answer == "late"
    client.close()
    peers.server.close()


def test_nobody_there_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="there is no such socket"):
        ttrpc.connected(str(tmp_path / "s"))
