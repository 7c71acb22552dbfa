"""What the server makes of peers that do not keep to HTTP/2, or use it to do harm."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimed.api import content_pb2 as pb
from runtimed.errors import Internal
from runtimed.rpc.grpc_client import Channel
from runtimed.rpc.http2 import PREFACE, REFUSED_STREAM, block_frames, data_frame, header_frames
from tests.fakes.grpc_echo import CONTENT, Echo, ours

INFO = [(b":method", b"POST"), (b":path", f"{CONTENT}/Info".encode()), (b"content-type", b"application/grpc")]
RST_STREAM, SETTINGS, PING, GOAWAY = 3, 4, 6, 7


def frame(kind, flags, id, payload):
    return len(payload).to_bytes(3) + bytes((kind, flags)) + id.to_bytes(4) + payload


@pytest.fixture
async def path(tmp_path):
    async with ours(f"{tmp_path}/s", Echo()):
        yield tmp_path / "s"


@asynccontextmanager
async def peer(path):
    """A connection on which the preface has been sent."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(PREFACE)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def first(reader, kind):
    """Return stream and payload of the next frame of *kind*; others are passed over."""
    async with asyncio.timeout(5):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == kind:
                return int.from_bytes(head[5:]), payload


async def answers(path):
    channel = Channel(path)
    request = pb.InfoRequest(digest="x").SerializeToString()
    answer = await channel.unary(f"{CONTENT}/Info", [], request)
    await channel.close()
    return pb.InfoResponse.FromString(answer).info.digest == "x"


async def test_headers_that_unfold_to_more_than_is_taken_end_the_connection(path):
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000  # kept in the table, so that a byte stands for it afterwards
    async with peer(path) as (reader, writer):
        writer.write(block_frames(1, entry + b"\xbe" * 60000))
        _, reason = await first(reader, GOAWAY)
        assert b"more headers than are taken" in reason
    assert await answers(path)


async def test_a_peer_that_asks_and_never_reads_is_cut_off(path):
    async with peer(path) as (_, writer):
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while True:  # some 100 MB, were they all taken
                    writer.write(frame(PING, 0, 0, bytes(8)) * 10000)
                    await writer.drain()
        assert writer.transport.is_closing()
    assert await answers(path)


async def test_more_calls_than_are_taken_at_once_are_refused_and_not_kept(path):
    begun = header_frames(1, INFO)
    async with peer(path) as (reader, writer):
        for id in range(1, 2 * 4097 + 1, 2):
            writer.write(begun[:5] + id.to_bytes(4) + begun[9:])
        id, code = await first(reader, RST_STREAM)
        assert (id, int.from_bytes(code)) == (2 * 4096 + 1, REFUSED_STREAM)
    assert await answers(path)


async def test_calls_that_are_begun_and_reset_leave_nothing(tmp_path):
    request = b"\0\0\0\0\6" + pb.InfoRequest(digest="wait").SerializeToString()
    async with ours(f"{tmp_path}/s", Echo()) as server, peer(tmp_path / "s") as (reader, writer):
        for id in range(1, 4001, 2):
            writer.write(header_frames(id, INFO) + data_frame(id, request, is_last=True))
            writer.write(frame(RST_STREAM, 0, id, bytes(4)))
        writer.write(frame(PING, 0, 0, b"finished"))
        assert (await first(reader, PING))[1] == b"finished"
        async with asyncio.timeout(5):
            while server.calls:
                await asyncio.wait(server.calls)


async def test_a_request_that_is_no_message_is_refused_by_name(path):
    channel = Channel(path)
    with pytest.raises(Internal, match="not the message that the method takes"):
        await channel.unary(f"{CONTENT}/Info", [], b"\xff\xff")
    await channel.close()


async def test_a_server_stops_though_a_peer_does_not_read(tmp_path):
    async with ours(f"{tmp_path}/s", Echo()) as server, peer(tmp_path / "s") as (reader, writer):
        read = pb.ReadContentRequest(offset=15 << 20, size=9).SerializeToString()
        writer.write(frame(8, 0, 0, (1 << 30).to_bytes(4)))  # a window for all of it
        writer.write(frame(SETTINGS, 0, 0, (4).to_bytes(2) + (1 << 30).to_bytes(4)))
        head = [(b":method", b"POST"), (b":path", f"{CONTENT}/Read".encode())]
        writer.write(header_frames(1, head))
        writer.write(data_frame(1, b"\0" + len(read).to_bytes(4) + read, is_last=True))
        await first(reader, 0)
        reader._transport.pause_reading()
        async with asyncio.timeout(5):
            await server.stop(0.1)
        assert not server.calls


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 9),
    st.one_of(
        st.binary(max_size=40),
        st.just(header_frames(1, INFO)[9:]),
        st.just(b"\0\0\0\0\3" + pb.InfoRequest(digest="x").SerializeToString()),
    ),
)


@given(st.lists(FRAMES, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_frames_come_the_server_answers_others(path, sent):
    async with peer(path) as (_, writer):
        writer.write(b"".join(sent))
        assert await answers(path)
