"""Sparse files in tar archives: maps of where the stored bytes belong (GNU tar manual, "Sparse Formats")."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from runtimed.errors import InvalidArgument

Segment = tuple[int, int]  # offset and length, in bytes

MAX_SEGMENTS = 1 << 17  # a map is held in memory


def from_header(header: bytes, number: Callable[[bytes], int], next_block: Callable[[], bytes]) -> list[Segment]:
    """Return the map of an old GNU header (type ``S``): four segments in it, 21 in each block that continues it."""
    segments = _pairs(header[386:482], number)
    is_continued = header[482] != 0
    while is_continued:
        block = next_block()
        segments += _pairs(block[:504], number)
        is_continued = block[504] != 0
        if len(segments) > MAX_SEGMENTS:
            raise InvalidArgument(f"tar: a sparse file of more than {MAX_SEGMENTS} segments")
    return segments


def _pairs(fields: bytes, number: Callable[[bytes], int]) -> list[Segment]:
    return [
        (number(fields[at : at + 12]), number(fields[at + 12 : at + 24]))
        for at in range(0, len(fields), 24)
        if fields[at + 12] != 0  # unused slots are zeros
    ]


def from_numbers(numbers: Sequence[int]) -> list[Segment]:
    """Return the map that *numbers*, offset and length in turn, describe (pax formats 0.0 and 0.1)."""
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
        raise InvalidArgument(f"tar: a sparse map of {len(numbers)} numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def from_data(next_block: Callable[[], bytes]) -> list[Segment]:
    """Return the map that precedes a file's data (pax format 1.0): a count and that many pairs, a number a line."""
    numbers = _lines(next_block)
    count = next(numbers)
    if count > MAX_SEGMENTS:
        raise InvalidArgument(f"tar: a sparse file of more than {MAX_SEGMENTS} segments")
    return from_numbers(list(islice(numbers, 2 * count)))


def _lines(next_block: Callable[[], bytes]) -> Iterator[int]:
    text = b""
    while True:
        *lines, text = (text + next_block()).split(b"\n")
        for line in lines:
            if not line.isdigit() or len(line) > 20:
                raise InvalidArgument("tar: a sparse map is not made of numbers")
            yield int(line)
        if len(text) > 20:
            raise InvalidArgument("tar: a sparse map is not made of numbers")


def check(segments: Sequence[Segment], size: int, stored: int) -> None:
    """Refuse a map that does not fit a file of *size* bytes of which *stored* are in the archive.

    Raises:
        InvalidArgument: segments overlap, run backwards or past the end, or do not add up.
    """
    end = 0
    total = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            raise InvalidArgument("tar: a sparse map overlaps or leaves its file")
        end = offset + length
        total += length
    if total != stored:
        raise InvalidArgument(f"tar: a sparse map of {total} bytes for {stored} stored bytes")
