"""A layer that becomes a layer file while its blob arrives: each byte passes through memory once, and both cores work.

What can go wrong with the layer is nobody's concern here: the blob is what was asked for, and who unpacks it then meets
the same error, and tells.
"""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from runtimed.diff import compression
from runtimed.diff.apply import Applied
from runtimed.errors import RuntimedError
from runtimed.workers.layer_file import LayerFile
from runtimed.workers.pipe import Abandoned, Pipe


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
        self.pipe = Pipe()
        self._file: LayerFile | None = LayerFile(directory)
        self._applied: Applied | None = None
        self._thread = threading.Thread(target=self._receive, args=(self._file, media_type))
        self._thread.start()

    def _receive(self, file: LayerFile, media_type: str) -> None:
        with self.pipe, suppress(RuntimedError, OSError, MemoryError, Abandoned):
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
