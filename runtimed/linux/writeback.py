"""sync_file_range(2): have a file that grows written to disk while it grows, so that the sync at its end is short."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing
_EVERY = 8 << 20  # bytes
_WITHIN = 2 * _EVERY  # in which the disk has had time to take what was written before


class Writeback:
    """The file *fd*, written from *start* (bytes) on. Promises nothing: what has to be on disk is synced all the same.

    So errors are nobody's concern here. The kernel tells of them at the sync. Unless *keep*, the page cache need not
    have what is on disk from *after* (bytes) on: memory that is used again and again is much cheaper than new memory.
    """

    def __init__(self, fd: int, start: int = 0, *, keep: bool = True, after: int = 0) -> None:
        self._fd = fd
        self._begun = start
        self._keep = keep
        self._dropped = max(start, after)

    def grown(self, size: int) -> None:
        """Take note that the file holds *size* bytes now, of which the last may be written again soon."""
        if size - self._begun >= _EVERY:
            self.end(size)
            if not self._keep and (length := size - _WITHIN - self._dropped) > 0:
                os.posix_fadvise(self._fd, self._dropped, length, os.POSIX_FADV_DONTNEED)
                self._dropped += length

    def end(self, size: int) -> None:
        """Begin with all that is left up to *size*."""
        offset, length = ctypes.c_int64(self._begun), ctypes.c_int64(size - self._begun)
        self._begun = size
        _libc.sync_file_range(ctypes.c_int(self._fd), offset, length, ctypes.c_uint(_WRITE))
