"""The writer on one ingest directory: append, verify, hand over.

::

    <directory>/data    the bytes so far; its length is the offset

Nothing else is kept on disk, so there is nothing that could disagree after a crash: what counts is the bytes that are
there. The hash is made from the file when an ingest is taken up again, and only if somebody asks for it.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, os_errors
from runtimed.oci import digest as digests

_CHUNK = 1 << 20  # bytes read at a time when hashing a file


class Writer:
    """Appends to an ingest. Not for several threads at once. Every method may raise what the disk says (see store)."""

    _fd = -1

    def __init__(self, directory: Path, ref: str) -> None:
        """Open the ingest, making it if it is not there; the offset is what has been written before."""
        self.ref = ref
        self.directory = directory
        self._subject = f"ingest {ref!r}"
        with os_errors(self._subject):
            directory.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(self.data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset = os.fstat(self._fd).st_size
        self._hash: Any = None if self.offset else hashlib.sha256()
        self._adopted = ""  # the digest of all bytes, as somebody else found it

    @property
    def data_path(self) -> Path:
        """The file that holds the bytes, for a worker process that appends to it; then call :meth:`adopt`."""
        return self.directory / "data"

    @property
    def updated_at(self) -> int:
        """When bytes were last written, ns UTC."""
        return os.fstat(self._fd).st_mtime_ns

    def write(self, data: bytes | memoryview) -> int:
        """Append all of *data* and return its length. If the disk is full nothing is appended: try again, or abort."""
        view = memoryview(data)
        if self._hash is None:
            self._hash = self._hashed("sha256")
        position = self.offset
        try:
            with os_errors(self._subject):
                while position - self.offset < len(view):
                    position += os.pwrite(self._fd, view[position - self.offset :], position)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._fd, self.offset)  # the hash knows nothing of a part
            raise
        self._hash.update(view)
        self._adopted = ""
        self.offset = position
        return len(view)

    def truncate(self, offset: int) -> None:
        """Forget what lies beyond *offset*. Raises InvalidArgument for an offset that is not there."""
        if not 0 <= offset <= self.offset:
            raise InvalidArgument(f"{self._subject}: cannot truncate to {offset}, it has {self.offset} bytes")
        with os_errors(self._subject):
            os.ftruncate(self._fd, offset)
        self.offset = offset
        self._adopted = ""
        self._hash = None if offset else hashlib.sha256()

    def adopt(self, offset: int, digest: str) -> None:
        """Take over what a worker process has written to :attr:`data_path`: *offset* bytes that have *digest*.

        Raises:
            FailedPrecondition: the file has another length.
        """
        digests.validate(digest)
        size = os.fstat(self._fd).st_size
        if size != offset:
            raise FailedPrecondition(f"{self._subject}: holds {size} bytes, not {offset}")
        self.offset = offset
        self._hash = None
        self._adopted = digest

    def digest(self, algorithm: str = "sha256") -> str:
        """Return the digest of the bytes so far. Reads the file if nobody has hashed all of it: may take long."""
        if self._adopted.startswith(f"{algorithm}:"):
            return self._adopted
        if algorithm != "sha256":
            self._adopted = f"{algorithm}:{self._hashed(algorithm).hexdigest()}"
            return self._adopted
        if self._hash is None:
            self._hash = self._hashed("sha256")
        return f"sha256:{self._hash.hexdigest()}"

    def verify(self, size: int, expected: str) -> str:
        """Return the digest of what was written, after comparing it and the size; 0 and "" are not compared.

        Raises:
            FailedPrecondition: another size or digest.
        """
        if size and size != self.offset:
            raise FailedPrecondition(f"{self._subject}: {self.offset} bytes were written, {size} expected")
        actual = self.digest(digests.split(expected)[0] if expected else "sha256")
        if expected and actual != expected:
            raise FailedPrecondition(f"{self._subject}: content is {actual}, {expected} expected")
        return actual

    def sync(self) -> None:
        """Wait until the bytes are on disk."""
        with os_errors(self._subject):
            os.fdatasync(self._fd)

    def move(self, target: Path) -> None:
        """Rename the data to *target*, read-only. Raises NotFound if the ingest was removed meanwhile."""
        with os_errors(self._subject):
            # The directory may have been removed and the name be another ingest's; what is renamed must be what
            # was verified.
            try:
                same = os.path.samestat(self.data_path.stat(), os.fstat(self._fd))
            except FileNotFoundError:
                same = False
            if not same:
                raise NotFound(f"{self._subject}: aborted while it was being written")
            os.fchmod(self._fd, 0o444)
            self.data_path.replace(target)

    def move_back(self, target: Path) -> None:
        """Undo :meth:`move`: the bytes are an ingest again."""
        with os_errors(self._subject):
            target.replace(self.data_path)
            os.fchmod(self._fd, 0o600)

    def close(self) -> None:
        """Let go of the file; the bytes stay. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _hashed(self, algorithm: str) -> Any:
        state = hashlib.new(algorithm)
        position = 0
        with os_errors(self._subject):
            while position < self.offset:
                chunk = os.pread(self._fd, min(_CHUNK, self.offset - position), position)
                if not chunk:
                    raise FailedPrecondition(f"{self._subject}: became shorter while it was read")
                state.update(chunk)
                position += len(chunk)
        return state
