import io
import threading

import pytest

from runtimed.errors import InvalidArgument
from runtimed.workers.pipe import Abandoned, Pipe, read_ahead

MIB = 1 << 20


class Counting:
    """Gives zeros without an end, and counts."""

    def __init__(self) -> None:
        self.given = 0
        self.enough = threading.Event()

    def read(self, size: int, /) -> bytes:
        self.given += size
        if self.given >= 4 * MIB:
            self.enough.set()
        return bytes(size)


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_what_is_read_ahead_is_what_there_is(size):
    data = b"".join(number.to_bytes(4, "little") for number in range(500_000))
    with read_ahead(io.BytesIO(data)) as layer:
        found = []
        while piece := layer.read(size):
            assert len(piece) <= size
            found.append(piece)
        assert layer.read(size) == b""
    assert b"".join(found) == data


def test_an_error_comes_after_what_was_read_before_it():
    class Failing(io.BytesIO):
        def read(self, size=-1, /):
            if data := super().read(size):
                return data
            raise InvalidArgument("damaged")

    with read_ahead(Failing(b"good")) as layer:
        assert layer.read(100) == b"good"
        with pytest.raises(InvalidArgument, match="damaged"):
            layer.read(100)


def test_no_more_than_some_megabytes_wait_and_who_waits_to_put_them_ends():
    source = Counting()
    threads = threading.active_count()
    with read_ahead(source) as layer:
        assert source.enough.wait(20)
        layer.read(MIB)
        assert source.given <= 6 * MIB
    assert threading.active_count() == threads


def test_a_reader_that_leaves_holds_nobody_up():
    with Pipe() as pipe:
        pipe.put(b"1")
    for _ in range(10):
        pipe.put(bytes(MIB))
    assert pipe.is_abandoned


def test_what_is_abandoned_is_not_read():
    pipe = Pipe()
    pipe.put(b"1")
    pipe.abandon()
    with pytest.raises(Abandoned):
        pipe.read(1)


def test_views_and_pieces_of_them_are_read():
    pipe = Pipe()
    pipe.put(memoryview(bytearray(b"abcdef"))[1:5])
    pipe.put(b"")
    pipe.end()
    assert [pipe.read(3), pipe.read(3), pipe.read(3)] == [b"bcd", b"e", b""]
