"""The shim's event loop: coroutines on ``shim.poller``, and no more than a shim needs of that.

asyncio does the same and more, but a shim that runs it writes to a thousand memory pages that it would otherwise share
with its parent: two megabytes for each container. The words here mean what they mean there, but for this:

* there is one loop in a process, and the functions of this module are about it;
* to await a task never cancels it, so nothing needs a shield;
* ``with timeout(seconds):`` is no async block;
* a task that fails is logged, unless somebody awaits it.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from runtimed.errors import RuntimedError
from shim import log, poller

T = TypeVar("T")

_END_LIMIT_S = 10.0  # for what is cancelled when the loop is to end

_tasks: "set[Task[Any]]" = set()
_current: "Task[Any] | None" = None


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
            poller.call_soon(callback)
        else:
            self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def __getstate__(self) -> tuple[Any, ...]:
        """For who takes it up in another process: the result. Those who wait are not taken along."""
        return self._is_done, self._result, self._exception

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._is_done, self._result, self._exception = state
        self._callbacks = []

    def _settle(self) -> None:
        self._is_done = True
        for callback in self._callbacks:
            poller.call_soon(callback)
        self._callbacks.clear()

    def __await__(self) -> Generator["Future[Any]", None, T]:
        if not self._is_done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine that runs by itself; :func:`spawn` makes them."""

    __slots__ = ("_coroutine", "_thrown", "_waiting", "resumable")

    def __init__(self, coroutine: Coroutine[Any, Any, T], resumable: bool) -> None:
        super().__init__()
        self.resumable = resumable
        self._coroutine = coroutine
        self._waiting: Future[Any] | None = None
        self._thrown: list[BaseException] = []
        _tasks.add(self)
        poller.call_soon(self._step)

    def cancel(self) -> None:
        """Throw Cancelled into the task where it waits. Nothing if it is done."""
        self.throw(Cancelled())

    def throw(self, exception: BaseException) -> None:
        """Throw *exception* into the task where it waits; of several each at one ``await``, in their order."""
        if self._is_done:
            return
        self._thrown.append(exception)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.remove_callback(self._step)
            self._waiting = None
            poller.call_soon(self._step)

    def take_back(self, exception: BaseException) -> None:
        """Do not throw *exception* any more, if it has not been yet."""
        if exception in self._thrown:
            self._thrown.remove(exception)

    def _step(self) -> None:
        global _current
        thrown = self._thrown.pop(0) if self._thrown else None
        self._waiting = None
        _current = self
        try:
            waiting = self._coroutine.throw(thrown) if thrown is not None else self._coroutine.send(None)
        except StopIteration as stop:
            _tasks.discard(self)
            self.set_result(stop.value)
        except BaseException as exc:
            _tasks.discard(self)
            if not self._callbacks and not isinstance(exc, Cancelled | RuntimedError):
                log.exception("a task failed", exc)
            self.set_exception(exc)
        else:
            if not self._thrown:
                self._waiting = waiting
                waiting.add_callback(self._step)
            else:
                poller.call_soon(self._step)  # there is more to throw, or it was cancelled by what it did itself
        finally:
            _current = None


class Event:
    """Set or not; tasks wait until it is."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Future[None]] = []

    def __getstate__(self) -> tuple[bool]:
        """For who takes it up in another process. Those who wait are not taken along."""
        return (self._is_set,)

    def __setstate__(self, state: tuple[bool]) -> None:
        (self._is_set,) = state
        self._waiting = []

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

    __slots__ = ("_expired", "_resumable", "_seconds", "_task", "_timer", "is_expired")

    def __init__(self, seconds: float | None, *, resumable: bool = False) -> None:
        self._seconds = seconds
        self._resumable = resumable
        self._task: Task[Any] | None = None
        self._timer: poller.Timer | None = None
        self._expired = _Expired()
        self.is_expired = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._task = _current
            self._timer = poller.call_later(self._seconds, self._expire, resumable=self._resumable)
        return self

    def _expire(self) -> None:
        if self._task is not None:  # else the block was left in the same turn
            self._task.throw(self._expired)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None and self._timer is not None:
            self._timer.cancel()
            self._task.take_back(self._expired)  # the block may have ended by something else that was thrown first
            self._task = None
        if exc is self._expired:
            self.is_expired = True
            raise TimeoutError from None


class Rest(Protocol):
    """What is done when a loop has nothing to do."""

    @property
    def after_s(self) -> float: ...

    def begin(self, readers: list[int]) -> None:
        """Called when nothing has come for *after_s* seconds; *readers* are the descriptors that are waited for."""


def run(main: Coroutine[Any, Any, T], rest: Rest | None = None) -> T:
    """Run *main* to its end in a loop of its own; what it has spawned and not awaited is cancelled then.

    With a *rest*, *main* is resumable, and it begins when all else is that goes on.
    """
    global _current
    poller.open()
    _tasks.clear()
    try:
        task = spawn(main, resumable=rest is not None)
        task.add_callback(lambda: None)  # somebody waits for it
        while not task.done():
            came = poller.turn(rest.after_s if rest is not None else None)
            if not came and rest is not None and (readers := _resumable_readers()) is not None:
                rest.begin(readers)
        _end()
        return task.result()
    finally:
        _tasks.clear()
        _current = None
        poller.close()


def _resumable_readers() -> list[int] | None:
    return poller.resumable_readers() if all(task.resumable for task in _tasks) else None


def _end() -> None:
    """Cancel each task once, and wait for them: some have to clean up."""
    cancelled: set[Task[Any]] = set()
    limit = poller.call_later(_END_LIMIT_S, lambda: None)
    while _tasks and monotonic() < limit.when:
        for task in _tasks - cancelled:
            task.cancel()
        cancelled |= _tasks
        poller.turn()


def spawn(coroutine: Coroutine[Any, Any, T], *, resumable: bool = False) -> Task[T]:
    """Run *coroutine* beside the others, from the next turn on."""
    return Task(coroutine, resumable)


def current() -> Task[Any]:
    """Return the task that runs now."""
    assert _current is not None
    return _current


async def sleep(seconds: float) -> None:
    """Wait; 0 lets the others have a turn."""
    over: Future[None] = Future()
    timer = poller.call_later(seconds, lambda: over.set_result(None))
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
