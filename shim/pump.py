"""From one descriptor to another, no faster than the slower one."""

import errno
import os
from collections.abc import Callable
from functools import partial

from shim import log, loop

_CHUNK = 64 << 10  # bytes moved at once, the size of a pipe
_SPLICE_F_NONBLOCK = 2


class Pump:
    """Moves bytes between two non-blocking descriptors.

    It ends at the end of the source (EIO is the end of a terminal), or when nobody reads the target any more, and then
    calls *done*. It closes neither. A *target* of -1 drops everything; a target that fails (a full disk) loses output,
    and never holds up its process.
    """

    def __init__(self, source: int, target: int, done: Callable[[], None], *, splice: bool = False) -> None:
        self.ended = loop.Event()
        self._source = source
        self._target = target
        self._done = done
        self._move = self._splice if splice else self._copy
        self._pending = memoryview(b"")
        loop.add_reader(source, self._step)

    def stop(self) -> None:
        """Move no more. Does not call *done*."""
        if self.ended.is_set():
            return  # the numbers may be another stream's by now
        loop.remove_reader(self._source)
        if self._target >= 0:
            loop.remove_writer(self._target)
        self.ended.set()

    def _step(self, *, target_was_full: bool = False) -> None:
        """Move once, then wait for whichever end was too slow."""
        try:
            more = self._move()
        except BlockingIOError:
            if not target_was_full:
                loop.remove_reader(self._source)
                loop.add_writer(self._target, partial(self._step, target_was_full=True))
                return
            if self._pending:
                return  # room for a part only
            more = True  # there is room, so it is the source that has nothing
        except OSError as exc:
            if exc.errno not in {errno.EIO, errno.EPIPE}:
                log.error(f"a stream of a process failed: {exc.strerror}")
            more = False
        if not more:
            self.stop()
            self._done()
        elif target_was_full:
            loop.remove_writer(self._target)
            loop.add_reader(self._source, self._step)

    def _splice(self) -> bool:
        return os.splice(self._source, self._target, _CHUNK, flags=_SPLICE_F_NONBLOCK) > 0

    def _copy(self) -> bool:
        if not self._pending:
            try:
                self._pending = memoryview(os.read(self._source, _CHUNK))
            except BlockingIOError:
                return True
            if not self._pending:
                return False
        while self._pending:
            self._pending = self._pending[self._write(self._pending) :]
        return True

    def _write(self, data: memoryview) -> int:
        if self._target >= 0:
            try:
                return os.write(self._target, data)
            except (BlockingIOError, BrokenPipeError):
                raise
            except OSError:
                pass
        return len(data)
