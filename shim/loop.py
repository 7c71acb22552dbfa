"""The shim's event loop: coroutines on epoll, and no more than a shim needs of that.

asyncio does the same and more, but a shim that runs it writes to a thousand memory pages that it would otherwise share
with its parent: two megabytes for each container. The words here mean what they mean there, but for this:

* there is one loop in a process, and the functions of this module are about it;
* to await a task never cancels it, so nothing needs a shield;
* ``with timeout(seconds):`` is no async block;
* a callback or a task that fails is logged, unless somebody awaits it.
"""

import _signal  # type: ignore[import-not-found]  # not signal, whose wrappers cost memory
import os
import select
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from runtimed.errors import RuntimedError
from shim import log

T = TypeVar("T")

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_BROKEN = select.EPOLLERR | select.EPOLLHUP  # whoever waits learns of it from its next call


class Cancelled(BaseException):
    """Thrown into a task that is to end."""


class Future(Generic[T]):
    """Something that will be there: a result or an exception, set once."""

    __slots__ = ("_callbacks", "_exception", "_is_done", "_result")

    def __init__(self) -> None:
        self._is_done = False
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def done(self) -> bool:
        return self._is_done

    def result(self) -> T:
        """Return or raise what was set."""
        if self._exception is not None:
            raise self._exception
        return self._result  # type: ignore[return-value]  # of type T once it is done

    def set_result(self, result: T) -> None:
        self._result = result
        self._settle()

    def set_exception(self, exception: BaseException) -> None:
        self._exception = exception
        self._settle()

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Have *callback* called by the loop when this is done."""
        if self._is_done:
            _loop.ready.append(callback)
        else:
            self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def _settle(self) -> None:
        self._is_done = True
        _loop.ready.extend(self._callbacks)
        self._callbacks.clear()

    def __await__(self) -> Generator["Future[Any]", None, T]:
        if not self._is_done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine that runs by itself; :func:`spawn` makes them."""

    __slots__ = ("_coroutine", "_thrown", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._waiting: Future[Any] | None = None
        self._thrown: BaseException | None = None
        _loop.tasks.add(self)
        _loop.ready.append(self._step)

    def cancel(self) -> None:
        """Throw Cancelled into the task where it waits. Nothing if it is done."""
        self.throw(Cancelled())

    def throw(self, exception: BaseException) -> None:
        """Throw *exception* into the task where it waits; of several, a Cancelled from outside goes first."""
        if self._is_done or (self._thrown is not None and type(exception) is not Cancelled):
            return
        self._thrown = exception
        if self._waiting is not None and not self._waiting.done():
            self._waiting.remove_callback(self._step)
            self._waiting = None
            _loop.ready.append(self._step)

    def _step(self) -> None:
        thrown, self._thrown, self._waiting = self._thrown, None, None
        _loop.current = self
        try:
            waiting = self._coroutine.throw(thrown) if thrown is not None else self._coroutine.send(None)
        except StopIteration as stop:
            _loop.tasks.discard(self)
            self.set_result(stop.value)
        except BaseException as exc:
            _loop.tasks.discard(self)
            if not self._callbacks and not isinstance(exc, Cancelled | RuntimedError):
                log.exception("a task failed", exc)
            self.set_exception(exc)
        else:
            if self._thrown is None:
                self._waiting = waiting
                waiting.add_callback(self._step)
            else:
                _loop.ready.append(self._step)  # it was cancelled by what it did itself
        finally:
            _loop.current = None


class Event:
    """Set or not; tasks wait until it is."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for future in self._waiting:
            future.set_result(None)
        self._waiting.clear()

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        if not self._is_set:
            future: Future[None] = Future()
            self._waiting.append(future)
            try:
                await future
            finally:
                if future in self._waiting:
                    self._waiting.remove(future)


class Lock:
    """``async with lock:``, in the order of arrival."""

    __slots__ = ("_is_held", "_waiting")

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: deque[Future[None]] = deque()

    async def acquire(self) -> None:
        if not self._is_held:
            self._is_held = True
            return
        turn: Future[None] = Future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done():
                self.release()  # it was handed over, to one that does not want it any more
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._is_held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class _Expired(Cancelled):
    """What a timeout throws; each its own, so that it knows it again."""


class timeout:
    """``with timeout(seconds):`` raises TimeoutError at the ``await`` where the time runs out. None is no limit."""

    __slots__ = ("_expired", "_seconds", "_timer", "is_expired")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timer: Timer | None = None
        self._expired = _Expired()
        self.is_expired = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            task = _loop.current
            assert task is not None
            self._timer = call_later(self._seconds, lambda: self._expire(task))
        return self

    def _expire(self, task: Task[Any]) -> None:
        if self._timer is not None:  # else the block was left in the same turn
            task.throw(self._expired)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exc is self._expired:
            self.is_expired = True
            raise TimeoutError from None


class Timer:
    """A call to come."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        _loop.timers.discard(self)


class _Watch:
    """Who waits for a descriptor."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader: Callable[[], object] | None = None
        self.writer: Callable[[], object] | None = None

    def mask(self) -> int:
        return (_IN if self.reader else 0) | (_OUT if self.writer else 0)


class _Loop:
    """The state of the one loop."""

    def __init__(self) -> None:
        self.ready: deque[Callable[[], None]] = deque()
        self.timers: set[Timer] = set()  # few: no order is kept
        self.tasks: set[Task[Any]] = set()
        self.current: Task[Any] | None = None
        self.watches: dict[int, _Watch] = {}
        self.epoll: select.epoll | None = None
        self.signals: dict[int, Callable[[], None]] = {}
        self.wake_up: tuple[int, int] | None = None

    def turn(self) -> None:
        """Wait for what comes next, and do all that has come."""
        assert self.epoll is not None
        for fd, mask in self.epoll.poll(self._patience()):
            # A callback before this one may have closed the descriptor, and opened another by the same number.
            watch = self.watches.get(fd)
            if watch is not None:
                self.ready.append(_notice(watch, mask))
        if self.timers:
            now = monotonic()
            due = [timer for timer in self.timers if timer.when <= now]
            for timer in sorted(due, key=lambda timer: timer.when):
                self.timers.discard(timer)
                self.ready.append(timer.callback)
        for _ in range(len(self.ready)):  # what these add waits for the next turn
            callback = self.ready.popleft()
            try:
                callback()
            except Exception as exc:
                log.exception("a callback failed", exc)

    def _patience(self) -> float | None:
        if self.ready:
            return 0
        if not self.timers:
            return None
        return max(0.0, min(timer.when for timer in self.timers) - monotonic())


def _notice(watch: _Watch, mask: int) -> Callable[[], None]:
    def notify() -> None:
        if watch.reader is not None and mask & (_IN | _BROKEN):
            watch.reader()
        if watch.writer is not None and mask & (_OUT | _BROKEN):
            watch.writer()

    return notify


_loop = _Loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in a loop of its own; what it has spawned and not awaited is cancelled then."""
    global _loop
    if _loop.epoll is not None:
        raise RuntimeError("the loop runs already")
    _loop = _Loop()
    _loop.epoll = select.epoll()
    try:
        task = spawn(main)
        task.add_callback(lambda: None)  # somebody waits for it
        while not task.done():
            _loop.turn()
        while _loop.tasks:
            for left in list(_loop.tasks):
                left.cancel()
            _loop.turn()
        return task.result()
    finally:
        _forget_signals()
        _loop.epoll.close()
        _loop.epoll = None


def spawn(coroutine: Coroutine[Any, Any, T]) -> Task[T]:
    """Run *coroutine* beside the others, from the next turn on."""
    return Task(coroutine)


def call_later(seconds: float, callback: Callable[[], None]) -> Timer:
    timer = Timer(monotonic() + seconds, callback)
    _loop.timers.add(timer)
    return timer


async def sleep(seconds: float) -> None:
    """Wait; 0 lets the others have a turn."""
    over: Future[None] = Future()
    timer = call_later(seconds, lambda: over.set_result(None))
    try:
        await over
    finally:
        timer.cancel()


async def settled(task: Future[Any]) -> None:
    """Wait until *task* is done, whatever comes of it."""
    if not task.done():
        done: Future[None] = Future()
        task.add_callback(lambda: done.set_result(None))
        await done


def add_reader(fd: int, callback: Callable[[], object]) -> None:
    """Have *callback* called whenever *fd* is readable, at its end, or broken."""
    watch = _watch(fd)
    watch.reader = callback
    _renew(fd, watch)


def remove_reader(fd: int) -> bool:
    """Return whether there was one. Remove it before *fd* is closed."""
    watch = _loop.watches.get(fd)
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
    watch = _loop.watches.get(fd)
    if watch is None or watch.writer is None:
        return False
    watch.writer = None
    _renew(fd, watch)
    return True


def on_signal(number: int, callback: Callable[[], None]) -> None:
    """Have *callback* called by the loop whenever the signal has come, for as long as the loop runs."""
    if _loop.wake_up is None:
        reader, writer = _loop.wake_up = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        add_reader(reader, _signalled)
    _loop.signals[number] = callback
    _signal.signal(number, _nothing)  # the wake-up pipe has the number


def _nothing(number: int, frame: object) -> None:
    pass


def _signalled() -> None:
    assert _loop.wake_up is not None
    for number in set(os.read(_loop.wake_up[0], 4096)):
        if (callback := _loop.signals.get(number)) is not None:
            callback()


def _forget_signals() -> None:
    for number in _loop.signals:
        _signal.signal(number, _signal.SIG_DFL)
    if _loop.wake_up is not None:
        _signal.set_wakeup_fd(-1)
        for fd in _loop.wake_up:
            os.close(fd)


def _watch(fd: int) -> _Watch:
    assert _loop.epoll is not None
    watch = _loop.watches.get(fd)
    if watch is None:
        _loop.epoll.register(fd, 0)  # the callback makes it known what for
        watch = _loop.watches[fd] = _Watch()
    return watch


def _renew(fd: int, watch: _Watch) -> None:
    assert _loop.epoll is not None
    if mask := watch.mask():
        _loop.epoll.modify(fd, mask)
    else:
        del _loop.watches[fd]
        _loop.epoll.unregister(fd)
