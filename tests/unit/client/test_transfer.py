"""What rctl makes of the bytes of an archive that it is sent."""

import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import transfer_types_pb2 as types
from runtimed.client.transfer import _WINDOW, _receive_bytes, _Stream
from runtimed.errors import Internal
from runtimed.services.streaming import to_any

BROKEN = Internal("it broke off")


class Call:
    """A call that reads what it is given, messages and then an end: None or an error."""

    def __init__(self, *reads):
        self.reads = list(reads)
        self.written = []

    async def receive(self):
        found = self.reads.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def send(self, message):
        self.written.append(types.WindowUpdate.FromString(Any.FromString(message).value).update)
        return True


def data(payload):
    return to_any(types.Data(data=payload)).SerializeToString()


async def received(call):
    got = bytearray()
    await _receive_bytes(_Stream("s", call), got.extend)
    return bytes(got)


async def test_all_that_comes_is_passed_on():
    call = Call(data(b"one"), data(b"two"), None)
    assert await received(call) == b"onetwo"
    assert call.written == [_WINDOW]


async def test_a_stream_that_breaks_off_is_no_whole_archive():
    with pytest.raises(Internal, match="it broke off"):
        await received(Call(data(b"one"), BROKEN))


async def test_a_window_is_given_when_the_last_one_is_used_up():
    call = Call(data(bytes(_WINDOW - 1)), data(b"x"), data(b"y"), None)
    assert len(await received(call)) == _WINDOW + 1
    assert call.written == [_WINDOW, _WINDOW]
