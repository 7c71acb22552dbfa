"""The shim's event loop."""

import os
import pickle
import time
from contextlib import suppress
from functools import partial

import pytest

from runtimed.errors import NotFound
from shim import log, loop, poller
from tests.unit.shim.loops import on_loop


@pytest.fixture
def pipe():
    pair = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield pair
    for fd in pair:
        os.close(fd)


@pytest.fixture
def logged(monkeypatch):
    """Return what has been logged."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    monkeypatch.setattr(log, "_fd", writer)

    def read():
        try:
            return os.read(reader, 65536).decode()
        except BlockingIOError:
            return ""

    yield read
    os.close(reader)
    os.close(writer)


async def value(result, turns=1):
    for _ in range(turns):
        await loop.sleep(0)
    return result


async def failing(error):
    await loop.sleep(0)
    raise error


def test_run_returns_what_its_coroutine_returns_and_can_be_used_again():
    assert loop.run(value(1)) == 1
    assert loop.run(value(2)) == 2
    with pytest.raises(NotFound):
        loop.run(failing(NotFound("x")))


@on_loop
async def test_a_task_can_be_awaited_by_several_and_after_its_end():
    task = loop.spawn(value(7, turns=3))
    waiters = [loop.spawn(waiting(task)) for _ in range(3)]
    assert [await waiter for waiter in waiters] == [7, 7, 7]
    assert await task == 7


async def waiting(task):
    return await task


@on_loop
async def test_cancelling_who_awaits_leaves_the_task_alone():
    task = loop.spawn(value(7, turns=3))
    waiter = loop.spawn(waiting(task))
    await loop.sleep(0)
    waiter.cancel()
    with pytest.raises(loop.Cancelled):
        await waiter
    assert await task == 7


@on_loop
async def test_a_task_that_is_cancelled_before_it_began_never_begins():
    begun = []

    async def begin():
        begun.append(1)

    task = loop.spawn(begin())
    task.cancel()
    await loop.settled(task)
    assert begun == []


@on_loop
async def test_a_cancelled_task_may_take_its_time():
    steps = []

    async def slow():
        try:
            await loop.sleep(60)
        except loop.Cancelled:
            await loop.sleep(0)
            steps.append("cleaned up")
            raise

    task = loop.spawn(slow())
    await loop.sleep(0)
    task.cancel()
    await loop.settled(task)
    assert steps == ["cleaned up"]


@on_loop
async def test_a_timeout_ends_what_takes_longer():
    limit = loop.timeout(0.01)
    with pytest.raises(TimeoutError), limit:
        await loop.sleep(60)
    assert limit.is_expired


@on_loop
async def test_a_timeout_does_not_touch_what_is_in_time():
    with loop.timeout(60):
        assert await value(1) == 1
    with loop.timeout(None):
        assert await value(2) == 2


@on_loop
async def test_of_two_timeouts_the_one_that_expires_is_told():
    outer, inner = loop.timeout(60), loop.timeout(0.01)
    with outer, pytest.raises(TimeoutError), inner:
        await loop.sleep(60)
    assert inner.is_expired
    assert not outer.is_expired


@on_loop
async def test_of_two_timeouts_that_run_out_at_once_neither_is_lost():
    outer, inner = loop.timeout(0.001), loop.timeout(0)

    async def limited():
        with suppress(TimeoutError), inner:
            time.sleep(0.01)  # noqa: ASYNC251 - both are over before the loop has a turn
            await loop.sleep(60)
        await loop.sleep(60)

    with pytest.raises(TimeoutError), outer:
        await limited()
    assert inner.is_expired
    assert outer.is_expired


@on_loop
async def test_a_timeout_whose_block_was_left_by_a_cancellation_is_not_thrown_later():
    async def limited():
        with suppress(loop.Cancelled), loop.timeout(0):
            await loop.sleep(60)
        await loop.sleep(0)
        return "went on"

    task = loop.spawn(limited())
    await loop.sleep(0)
    task.cancel()  # before the timeout, which runs out in this turn
    assert await task == "went on"


@on_loop
async def test_a_cancellation_that_comes_with_a_timeout_is_thrown_as_well():
    async def limited():
        with suppress(TimeoutError), loop.timeout(0):
            await loop.sleep(60)
        await loop.sleep(60)

    task = loop.spawn(limited())
    await loop.sleep(0)
    poller.call_later(0, task.cancel)
    with pytest.raises(loop.Cancelled), loop.timeout(10):
        await task


@on_loop
async def test_a_timeout_that_expires_in_the_turn_in_which_its_block_ends_does_no_harm():
    for _ in range(50):
        with loop.timeout(0):
            pass
        await loop.sleep(0)


@on_loop
async def test_a_cancellation_is_no_timeout():
    async def limited():
        with loop.timeout(60):
            await loop.sleep(60)

    task = loop.spawn(limited())
    await loop.sleep(0)
    task.cancel()
    with pytest.raises(loop.Cancelled):
        await task


@on_loop
async def test_an_event_lets_all_go_who_wait():
    event = loop.Event()
    tasks = [loop.spawn(event.wait()) for _ in range(3)]
    await loop.sleep(0)
    event.set()
    for task in tasks:
        await task
    await event.wait()
    event.clear()
    with pytest.raises(TimeoutError), loop.timeout(0.01):
        await event.wait()


@on_loop
async def test_a_lock_is_held_by_one_in_the_order_of_arrival():
    lock, order = loop.Lock(), []

    async def hold(number):
        async with lock:
            order.append(number)
            await loop.sleep(0)
            order.append(number)

    tasks = [loop.spawn(hold(number)) for number in range(4)]
    for task in tasks:
        await task
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


@on_loop
async def test_a_lock_is_not_lost_with_one_who_is_cancelled_while_waiting_or_just_when_it_is_handed_over():
    lock = loop.Lock()
    await lock.acquire()
    waiting, handed = loop.spawn(lock.acquire()), loop.spawn(lock.acquire())
    await loop.sleep(0)
    waiting.cancel()
    await loop.sleep(0)
    lock.release()
    handed.cancel()
    await loop.settled(handed)
    with loop.timeout(1):
        async with lock:
            pass


@on_loop
async def test_a_reader_is_called_as_long_as_there_is_something(pipe):
    reader, writer = pipe
    got = []
    done = loop.Event()

    def read():
        got.append(os.read(reader, 1))
        if len(got) == 3:
            poller.remove_reader(reader)
            done.set()

    os.write(writer, b"abcd")
    poller.add_reader(reader, read)
    await done.wait()
    await loop.sleep(0)
    assert got == [b"a", b"b", b"c"]


@on_loop
async def test_a_descriptor_has_a_reader_and_a_writer(pipe):
    _, writer = pipe
    room, broken = loop.Event(), loop.Event()
    poller.add_writer(writer, room.set)
    poller.add_reader(writer, broken.set)
    await room.wait()
    assert poller.remove_writer(writer)
    assert poller.remove_reader(writer)
    assert not poller.remove_reader(writer)


@on_loop
async def test_a_callback_that_was_removed_by_another_in_the_same_turn_is_not_called(pipe):
    other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    called = []

    def called_by(number):
        called.append(number)
        poller.remove_reader(pipe[0])
        poller.remove_reader(other[0])

    for number, (reader, writer) in enumerate((pipe, other)):
        os.write(writer, b"x")
        poller.add_reader(reader, partial(called_by, number))
    await value(None, turns=3)
    assert len(called) == 1
    for fd in other:
        os.close(fd)


def fails() -> None:
    raise ZeroDivisionError


@on_loop
async def test_what_fails_unseen_is_logged_and_the_rest_goes_on(logged):
    poller.call_later(0, fails)
    task = loop.spawn(failing(ZeroDivisionError()))
    await loop.settled(loop.spawn(failing(NotFound("what a caller that left would have been told"))))
    await value(None, turns=5)
    assert task.done()
    text = logged()
    assert "a callback failed" in text
    assert "a task failed" in text
    assert "would have been told" not in text


def test_what_is_left_at_the_end_is_cancelled():
    ended = []

    async def endless():
        try:
            await loop.sleep(3600)
        finally:
            ended.append(1)

    async def main():
        loop.spawn(endless())
        await loop.sleep(0)

    loop.run(main())
    assert ended == [1]


def test_what_is_cancelled_at_the_end_has_time_to_clean_up():
    ended = []

    async def endless():
        try:
            await loop.sleep(3600)
        finally:
            await value(None, turns=5)
            ended.append(1)

    async def main():
        loop.spawn(endless())
        await loop.sleep(0)

    loop.run(main())
    assert ended == [1]


class Resting:
    """A rest that takes note of when it begins, and then has the loop end."""

    after_s = 0.01

    def __init__(self):
        self.readers = None
        self.begun = []

    def begin(self, readers):
        self.readers = readers
        for event in self.begun:
            event.set()


def rest_with(begin):
    """Return the descriptors that are waited for when a loop rests on which *begin* was called; None if it does not."""
    rest = Resting()

    async def main():
        rest.begun.append(loop.Event())
        begin()
        with suppress(TimeoutError), loop.timeout(0.2, resumable=True):
            await rest.begun[0].wait()

    loop.run(main(), rest)
    return rest.readers


def full_writer(fd):
    poller.add_reader(fd, fails, resumable=True)
    poller.add_writer(fd, fails)


def test_a_loop_rests_when_all_that_goes_on_is_resumable(pipe):
    def begin():
        loop.spawn(loop.Event().wait(), resumable=True)
        poller.add_reader(pipe[0], lambda: None, resumable=True)
        poller.call_later(60, lambda: None, resumable=True)

    assert rest_with(begin) == [pipe[0]]


@pytest.mark.parametrize(
    "begin",
    [
        lambda pipe: loop.spawn(loop.Event().wait()),
        lambda pipe: poller.call_later(60, lambda: None),
        lambda pipe: poller.add_reader(pipe[0], lambda: None),
        lambda pipe: full_writer(pipe[1]),
    ],
    ids=["task", "timer", "reader", "writer"],
)
def test_anything_else_keeps_it_awake(pipe, begin):
    os.set_blocking(pipe[1], False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"x" * 4096)
    assert rest_with(partial(begin, pipe)) is None


@on_loop
async def test_what_was_waited_for_is_taken_along_and_who_waited_is_not():
    event, future, lock = pickle.loads(pickle.dumps((loop.Event(), loop.Future(), loop.Lock())))
    assert not event.is_set()
    assert not future.done()
    async with lock:
        event.set()
        future.set_result(3)
    event, future = pickle.loads(pickle.dumps((event, future)))
    await event.wait()
    assert await future == 3
