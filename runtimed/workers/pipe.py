"""Bytes from one thread to another, so that two cores can work on one layer."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from runtimed.diff.compression import Readable

_MAX_WAITING = 4 << 20  # bytes
_CHUNK = 256 * 1024


class Abandoned(Exception):
    """There will be no more bytes, and those there were are worth nothing."""


class Pipe:
    """What one thread puts, another reads. As a context manager it is the reader's, who may leave at any time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._waiting = 0  # bytes
        self._is_ended = False
        self._is_abandoned = False  # by either

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    @property
    def is_abandoned(self) -> bool:
        return self._is_abandoned

    def put(self, data: bytes | memoryview) -> None:
        """Give *data*, which nobody changes any more. Waits while much waits to be read."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < _MAX_WAITING or self._is_abandoned)
            if data and not self._is_abandoned:
                self._chunks.append(memoryview(data))
                self._waiting += len(data)
                self._changed.notify()

    def end(self) -> None:
        """Say that all has been put."""
        with self._changed:
            self._is_ended = True
            self._changed.notify()

    def abandon(self) -> None:
        """Have nobody wait any more, neither to put nor to read."""
        with self._changed:
            self._is_abandoned = True
            self._chunks.clear()
            self._changed.notify()

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, b"" at the end. Raises Abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._is_ended or self._is_abandoned)
            if self._is_abandoned:
                raise Abandoned
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._waiting -= len(chunk)
            self._changed.notify()
        return chunk.obj if isinstance(chunk.obj, bytes) and len(chunk.obj) == len(chunk) else bytes(chunk)


@contextmanager
def read_ahead(layer: Readable) -> Iterator[Readable]:
    """Hold what reads *layer* in a thread of its own, some megabytes ahead. What that raises, reading here does."""
    ahead = _Ahead(layer)
    thread = threading.Thread(target=ahead.run)
    thread.start()
    try:
        yield ahead
    finally:
        ahead.pipe.abandon()
        thread.join()


class _Ahead:
    def __init__(self, layer: Readable) -> None:
        self.pipe = Pipe()
        self._layer = layer
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.pipe.is_abandoned and (data := self._layer.read(_CHUNK)):
                self.pipe.put(data)
        except BaseException as exc:
            self._error = exc
        self.pipe.end()

    def read(self, size: int, /) -> bytes:
        data = self.pipe.read(size)
        if not data and self._error is not None:
            raise self._error
        return data
