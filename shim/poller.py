"""Callbacks on epoll: for descriptors that are ready, and times that have come. ``shim.loop`` runs coroutines on it.

There is one poller in a process; the functions of this module are about it. A callback that fails is logged.

What a worker waits for keeps it awake (see ``shim.handover``): a descriptor, a timer, a task. One that its owner can
take up again in another process is marked *resumable*.
"""

import select
from collections import deque
from collections.abc import Callable
from time import monotonic

from shim import log

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_BROKEN = select.EPOLLERR | select.EPOLLHUP  # whoever waits learns of it from its next call


class Timer:
    """A call to come."""

    __slots__ = ("callback", "resumable", "when")

    def __init__(self, when: float, callback: Callable[[], None], resumable: bool) -> None:
        self.when = when
        self.callback = callback
        self.resumable = resumable

    def cancel(self) -> None:
        _poller.timers.discard(self)


class _Watch:
    """Who waits for a descriptor."""

    __slots__ = ("reader", "resumable", "writer")

    def __init__(self) -> None:
        self.reader: Callable[[], object] | None = None
        self.writer: Callable[[], object] | None = None
        self.resumable = False  # the reader; a writer has something to write, and is not

    def mask(self) -> int:
        return (_IN if self.reader else 0) | (_OUT if self.writer else 0)


class _Poller:
    """The state of the one poller."""

    def __init__(self) -> None:
        self.ready: deque[Callable[[], None]] = deque()
        self.timers: set[Timer] = set()  # few: no order is kept
        self.watches: dict[int, _Watch] = {}
        self.epoll: select.epoll | None = None


_poller = _Poller()


def open() -> None:
    """Begin anew. Raises RuntimeError if the poller is open."""
    global _poller
    if _poller.epoll is not None:
        raise RuntimeError("the loop runs already")
    _poller = _Poller()
    _poller.epoll = select.epoll()


def close() -> None:
    assert _poller.epoll is not None
    _poller.epoll.close()
    _poller.epoll = None


def fileno() -> int:
    """Return the poller's own descriptor."""
    assert _poller.epoll is not None
    return _poller.epoll.fileno()


def turn(limit_s: float | None = None) -> bool:
    """Wait for what comes next, for *limit_s* seconds at most, and do all that has come; return whether it was any."""
    assert _poller.epoll is not None
    ready = _poller.ready
    for fd, mask in _poller.epoll.poll(_patience(limit_s)):
        # A callback before this one may have closed the descriptor, and opened another by the same number.
        watch = _poller.watches.get(fd)
        if watch is not None:
            ready.append(_notice(watch, mask))
    if _poller.timers:
        now = monotonic()
        due = [timer for timer in _poller.timers if timer.when <= now]
        for timer in sorted(due, key=lambda timer: timer.when):
            _poller.timers.discard(timer)
            ready.append(timer.callback)
    count = len(ready)
    for _ in range(count):  # what these add waits for the next turn
        callback = ready.popleft()
        try:
            callback()
        except Exception as exc:
            log.exception("a callback failed", exc)
    return count > 0


def _patience(limit_s: float | None) -> float | None:
    if _poller.ready:
        return 0
    if not _poller.timers:
        return limit_s
    next_timer = max(0.0, min(timer.when for timer in _poller.timers) - monotonic())
    return next_timer if limit_s is None else min(next_timer, limit_s)


def _notice(watch: _Watch, mask: int) -> Callable[[], None]:
    def notify() -> None:
        if watch.reader is not None and mask & (_IN | _BROKEN):
            watch.reader()
        if watch.writer is not None and mask & (_OUT | _BROKEN):
            watch.writer()

    return notify


def resumable_readers() -> list[int] | None:
    """Return the descriptors waited for, if all that is waited for is resumable; None otherwise."""
    if _poller.ready or not all(timer.resumable for timer in _poller.timers):
        return None
    if not all(watch.resumable and watch.writer is None for watch in _poller.watches.values()):
        return None
    return list(_poller.watches)


def call_soon(callback: Callable[[], None]) -> None:
    """Have *callback* called in the next turn."""
    _poller.ready.append(callback)


def call_later(seconds: float, callback: Callable[[], None], *, resumable: bool = False) -> Timer:
    timer = Timer(monotonic() + seconds, callback, resumable)
    _poller.timers.add(timer)
    return timer


def add_reader(fd: int, callback: Callable[[], object], *, resumable: bool = False) -> None:
    """Have *callback* called whenever *fd* is readable, at its end, or broken."""
    watch = _watch(fd)
    watch.reader = callback
    watch.resumable = resumable
    _renew(fd, watch)


def remove_reader(fd: int) -> bool:
    """Return whether there was one. Remove it before *fd* is closed."""
    watch = _poller.watches.get(fd)
    if watch is None or watch.reader is None:
        return False
    watch.reader = None
    _renew(fd, watch)
    return True


def add_writer(fd: int, callback: Callable[[], object]) -> None:
    """Have *callback* called whenever *fd* takes more, or is broken."""
    watch = _watch(fd)
    watch.writer = callback
    _renew(fd, watch)


def remove_writer(fd: int) -> bool:
    """Return whether there was one. Remove it before *fd* is closed."""
    watch = _poller.watches.get(fd)
    if watch is None or watch.writer is None:
        return False
    watch.writer = None
    _renew(fd, watch)
    return True


def _watch(fd: int) -> _Watch:
    assert _poller.epoll is not None
    watch = _poller.watches.get(fd)
    if watch is None:
        _poller.epoll.register(fd, 0)  # the callback makes it known what for
        watch = _poller.watches[fd] = _Watch()
    return watch


def _renew(fd: int, watch: _Watch) -> None:
    assert _poller.epoll is not None
    if mask := watch.mask():
        _poller.epoll.modify(fd, mask)
    else:
        del _poller.watches[fd]
        _poller.epoll.unregister(fd)
