"""The multiplexer between two ends of a socket, and against bytes of another encoder: this file's own."""

import asyncio
import socket
import struct

import pytest

from runtimed.nri import mux
from runtimed.rpc.frames import MAX_MESSAGE


async def pair():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return [await asyncio.open_unix_connection(sock=end) for end in ends]


async def opened(stream):
    trunk = mux.Mux(*stream)
    channels = trunk.open(1), trunk.open(2)
    trunk.start()
    return trunk, channels


async def exactly(channel, length):
    data = b""
    while len(data) < length:
        piece = await channel.read(1 << 16)
        assert piece, "the channel has ended"
        data += piece
    return data


async def test_each_channel_gets_its_own():
    near, far = await pair()
    trunk, (one, two) = await opened(near)
    other, (their_one, their_two) = await opened(far)
    one.write(b"first")
    two.write(b"second")
    their_two.write(b"back")
    await one.drain()
    assert await exactly(their_two, 6) == b"second"
    assert await exactly(their_one, 5) == b"first"
    assert await exactly(two, 4) == b"back"
    trunk.close()
    assert await their_one.read() == b""
    for end in (trunk, other):
        await end.wait_closed()


@pytest.mark.parametrize(
    ("length", "lengths"), [(1, [1]), (4096, [4096]), (4097, [4096, 1]), (100_000, [4096, 95_904])]
)
async def test_a_frame_is_in_pieces_that_go_plugins_can_read(length, lengths):
    near, (reader, writer) = await pair()
    trunk, (one, _) = await opened(near)
    one.write(b"x" * length)
    await one.drain()
    for expected in lengths:
        id, found = struct.unpack(">II", await reader.readexactly(8))
        assert (id, found) == (1, expected)
        await reader.readexactly(found)
    trunk.close()
    writer.close()
    await trunk.wait_closed()


async def test_what_is_in_pieces_of_any_size_arrives_whole():
    near, (_, writer) = await pair()
    trunk, (one, _) = await opened(near)
    for byte in b"abc":
        writer.write(struct.pack(">II", 1, 1) + bytes([byte]))
    writer.write(struct.pack(">II", 7, 4) + b"none")  # of a channel that nobody has opened
    writer.write(struct.pack(">II", 1, 0))
    writer.write(struct.pack(">II", 1, 3) + b"def")
    assert await exactly(one, 6) == b"abcdef"
    writer.close()
    assert await one.read() == b""
    await trunk.wait_closed()


async def test_a_piece_longer_than_a_frame_ends_it():
    near, (reader, writer) = await pair()
    trunk, (one, _) = await opened(near)
    writer.write(struct.pack(">II", 1, MAX_MESSAGE + 11))
    assert await one.read() == b""
    assert await reader.read() == b""
    writer.close()
    await trunk.wait_closed()


async def test_what_is_not_read_is_not_taken_in_without_end():
    near, (_, writer) = await pair()
    trunk, (_, two) = await opened(near)
    for _ in range(16):
        writer.write(struct.pack(">II", 2, 1 << 20) + bytes(1 << 20))
    most = got = 0
    while got < 16 << 20:
        most = max(most, two._length)
        got += len(await two.read())
        await asyncio.sleep(0)  # so that the trunk is read as fast as it can be
    assert 1 << 20 < most <= mux._MOST_UNREAD + (64 << 10)
    writer.close()
    trunk.close()
    await trunk.wait_closed()
