"""From one descriptor to another, no faster than the slower one."""

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from shim import log, loop, poller

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
        self._read()

    def __getstate__(self) -> dict[str, Any]:
        assert not self._pending  # else it waits to write, and keeps the worker awake
        return {name: value for name, value in vars(self).items() if name != "_pending"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _pending=memoryview(b""))
        if not self.ended.is_set():
            self._read()

    def _read(self) -> None:
        poller.add_reader(self._source, self._step, resumable=True)

    def stop(self) -> None:
        """Move no more. Does not call *done*."""
        if self.ended.is_set():
            return  # the numbers may be another stream's by now
        poller.remove_reader(self._source)
        if self._target >= 0:
            poller.remove_writer(self._target)
        self.ended.set()

    def _step(self, *, target_was_full: bool = False) -> None:
        """Move once, then wait for whichever end was too slow."""
        try:
            more = self._move()
        except BlockingIOError:
            if not target_was_full:
                poller.remove_reader(self._source)
                poller.add_writer(self._target, partial(self._step, target_was_full=True))
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
            poller.remove_writer(self._target)
            self._read()

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
