import asyncio

import pytest

from runtimed.errors import Unavailable
from runtimed.images.joining import Joint


class Job:
    """A job that ends when it is let go, and counts how often it was begun and cancelled."""

    def __init__(self, error=None):
        self.begun = self.cancelled = 0
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.error = error

    async def __call__(self, tell):
        self.begun += 1
        self.tell = tell
        self.started.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error


async def test_of_several_who_ask_one_begins_the_job_and_all_see_it_through():
    joint, job = Joint(), Job()
    callers = [asyncio.create_task(joint.run("k", job)) for _ in range(3)]
    await job.started.wait()
    job.may_end.set()
    assert sorted(await asyncio.gather(*callers)) == [False, False, True]
    assert job.begun == 1


async def test_each_hears_what_the_job_tells():
    joint, job = Joint(), Job()
    one: list[int] = []
    other: list[int] = []
    callers = [asyncio.create_task(joint.run("k", job, heard.append)) for heard in (one, other)]
    await job.started.wait()
    job.tell(5)
    job.may_end.set()
    await asyncio.gather(*callers)
    assert one == other == [5]


async def test_each_hears_how_the_job_failed():
    joint, job = Joint(), Job(error=Unavailable("x"))
    callers = [asyncio.create_task(joint.run("k", job)) for _ in range(2)]
    await job.started.wait()
    job.may_end.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results == [job.error, job.error]


async def test_a_cancelled_caller_leaves_the_others_waiting():
    joint, job = Joint(), Job()
    first, second = (asyncio.create_task(joint.run("k", job)) for _ in range(2))
    await job.started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    job.may_end.set()
    assert await second is False
    assert job.cancelled == 0


async def test_when_the_last_caller_is_cancelled_so_is_the_job():
    joint, job = Joint(), Job()
    caller = asyncio.create_task(joint.run("k", job))
    await job.started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert job.cancelled == 1
    assert joint.owner("k") is None


async def test_who_comes_while_a_job_is_being_cancelled_begins_his_own():
    joint = Joint()
    stopping, may_stop = asyncio.Event(), asyncio.Event()

    async def slow_to_stop(tell):
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await may_stop.wait()

    first = asyncio.create_task(joint.run("k", slow_to_stop))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await stopping.wait()
    job = Job()
    second = asyncio.create_task(joint.run("k", job))
    await asyncio.sleep(0)
    assert job.begun == 0
    may_stop.set()
    await job.started.wait()
    job.may_end.set()
    assert await second is True
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_job_that_is_cancelled_before_it_ran_leaves_nothing():
    joint, job = Joint(), Job()
    caller = asyncio.create_task(joint.run("k", job))
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert joint.owner("k") is None
    assert job.begun == 0


async def test_different_keys_are_different_jobs():
    joint, one, other = Joint(), Job(), Job()
    callers = [asyncio.create_task(joint.run(key, job, owner=key)) for key, job in (("a", one), ("b", other))]
    await one.started.wait()
    await other.started.wait()
    assert joint.owner("a") == "a"
    one.may_end.set()
    other.may_end.set()
    assert await asyncio.gather(*callers) == [True, True]
