"""A layer that becomes a layer file while its blob arrives: each byte passes through memory once, and both cores work.

What can go wrong with the layer is nobody's concern here: the blob is what was asked for, and who unpacks it then meets
the same error, and tells.
"""

import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from runtimed.diff import compression
from runtimed.diff.apply import Applied
from runtimed.errors import RuntimedError
from runtimed.workers.layer_file import LayerFile

_MAX_WAITING = 4 << 20  # bytes between the two threads


class Arriving:
    """A thread that receives what is fed. A context manager; leaving it ends the thread."""

    def __init__(self, directory: Path, media_type: str) -> None:
        """Make the file on the file system of *directory*. Raises OSError."""
        self._directory = directory
        self._media_type = media_type
        self._receiving = _Receiving(directory, media_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._receiving.close()

    def feed(self, data: bytes | memoryview) -> None:
        """Give the next bytes of the blob; nobody changes them any more. Waits while too many wait."""
        self._receiving.pipe.put(data)

    def restart(self) -> None:
        """Begin anew: the bytes until now were not those of the blob. Raises OSError."""
        self._receiving.close()
        self._receiving = _Receiving(self._directory, self._media_type)

    def finish(self) -> tuple[LayerFile, Applied] | None:
        """Return the file, now the caller's, and what was received, when all was fed; None if that failed."""
        return self._receiving.finish()


class _Receiving:
    """One thread, and the file that it writes."""

    def __init__(self, directory: Path, media_type: str) -> None:
        self.pipe = _Pipe()
        self._file: LayerFile | None = LayerFile(directory)
        self._applied: Applied | None = None
        self._thread = threading.Thread(target=self._receive, args=(self._file, media_type))
        self._thread.start()

    def _receive(self, file: LayerFile, media_type: str) -> None:
        with self.pipe, suppress(RuntimedError, OSError, MemoryError, _Abandoned):
            self._applied = file.receive(compression.stream(self.pipe, media_type))

    def finish(self) -> tuple[LayerFile, Applied] | None:
        self.pipe.end()
        self._thread.join()
        if self._applied is None or self._file is None:
            return None
        file, self._file = self._file, None
        return file, self._applied

    def close(self) -> None:
        self.pipe.abandon()
        self._thread.join()
        if self._file is not None:
            self._file.close()
            self._file = None


class _Abandoned(Exception):
    """There will be no more bytes, and those there were are worth nothing."""


class _Pipe:
    """Bytes from one thread to another. As a context manager it is the reader's, who may leave at any time."""

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

    def put(self, data: bytes | memoryview) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < _MAX_WAITING or self._is_abandoned)
            if data and not self._is_abandoned:
                self._chunks.append(memoryview(data))
                self._waiting += len(data)
                self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._is_ended = True
            self._changed.notify()

    def abandon(self) -> None:
        with self._changed:
            self._is_abandoned = True
            self._chunks.clear()
            self._changed.notify()

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, b"" at the end. Raises _Abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._is_ended or self._is_abandoned)
            if self._is_abandoned:
                raise _Abandoned
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._waiting -= len(chunk)
            self._changed.notify()
        return bytes(chunk)
