"""The examples of RFC 7541 appendix C, and what is not HPACK."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimed.rpc.hpack import Decoder, Malformed, encode

FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]
DATE = b"Mon, 21 Oct 2013 20:13:21 GMT"
ANSWERS = [
    [(b":status", b"302"), (b"cache-control", b"private"), (b"date", DATE), (b"location", b"https://www.example.com")],
    [(b":status", b"307"), (b"cache-control", b"private"), (b"date", DATE), (b"location", b"https://www.example.com")],
]


@pytest.mark.parametrize(
    "blocks",
    [
        # C.3, without Huffman code
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        # C.4, with
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ],
    ids=["plain", "huffman"],
)
def test_the_requests_of_the_standard_are_read_one_after_the_other(blocks):
    decoder = Decoder()
    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == [FIRST, SECOND, THIRD]


def test_an_answer_of_the_standard_is_read_from_a_table_that_shrinks():
    decoder = Decoder()
    decoder.decode(b"\x3f\xe1\x01")  # a table of 256 bytes, as the example has it
    first = (
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
    )
    assert [decoder.decode(bytes.fromhex(block)) for block in (first, "4883640effc1c0bf")] == ANSWERS
    with pytest.raises(Malformed):
        decoder.decode(b"\xc2")  # of the five entries one had to go


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=8))
def test_what_is_written_is_read(headers):
    assert Decoder().decode(encode(headers)) == headers


@given(st.binary(max_size=60))
def test_anything_is_read_or_refused(block):
    with suppress(Malformed):
        Decoder().decode(block)


@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3f\xe1\xff\x03", b"\x00\x05ab", b"\x00", b"\x00\x81\x00\x00"],
    ids=["index 0", "endless integer", "large table", "short string", "no string", "wrong padding"],
)
def test_what_is_malformed_is_refused(block):
    with pytest.raises(Malformed):
        Decoder().decode(block)
