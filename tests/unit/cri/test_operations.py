"""Operations that retries join."""

import asyncio

import pytest

from runtimed.cri.operations import Operations
from runtimed.errors import FailedPrecondition, Internal


async def test_a_second_caller_gets_what_the_first_began():
    operations, gate, begun = Operations(), asyncio.Event(), []

    async def work():
        begun.append(1)
        await gate.wait()
        return "result"

    callers = [asyncio.create_task(operations.run("key", work, "request")) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*callers) == ["result"] * 3
    assert begun == [1]
    assert await operations.run("key", work, "another request") == "result"  # it has ended: a new one
    assert begun == [1, 1]


async def test_another_request_for_the_same_is_refused_while_the_first_runs():
    operations, gate = Operations(), asyncio.Event()
    first = asyncio.create_task(operations.run(("run", "pod"), gate.wait, "one"))
    await asyncio.sleep(0)
    with pytest.raises(FailedPrecondition, match="run pod is in progress for another request"):
        await operations.run(("run", "pod"), gate.wait, "two")
    gate.set()
    await first


async def test_it_goes_on_when_its_caller_leaves_and_who_asks_again_joins():
    operations, gate = Operations(), asyncio.Event()
    caller = asyncio.create_task(operations.run("key", gate.wait))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    again = asyncio.create_task(operations.run("key", gate.wait))
    await asyncio.sleep(0)
    gate.set()
    assert await again is True


async def test_a_failure_is_everybodys_and_the_next_try_is_a_new_one():
    operations = Operations()

    async def fail():
        await asyncio.sleep(0)
        raise Internal("broken")

    results = await asyncio.gather(*(operations.run("key", fail) for _ in range(2)), return_exceptions=True)
    assert [str(result) for result in results] == ["broken"] * 2

    async def work():
        return 1

    assert await operations.run("key", work) == 1


async def test_closing_cancels_what_does_not_end(monkeypatch):
    monkeypatch.setattr("runtimed.cri.operations._END_WITHIN_S", 0.01)
    operations, undone = Operations(), []

    async def hang():
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(1)

    caller = asyncio.create_task(operations.run("key", hang))
    await asyncio.sleep(0)
    await operations.close()
    await asyncio.wait([caller])
    assert (undone, caller.cancelled()) == ([1], True)
