"""Container events for subscribers that do not keep up."""

import asyncio
from functools import partial

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri.container_events import ContainerEvents


def event(id, kind):
    return pb.ContainerEventResponse(container_id=id, container_event_type=kind)


async def test_a_slow_subscriber_gets_the_last_event_of_each_container():
    events = ContainerEvents()
    with events.subscribe() as subscriber:
        for number in range(3000):
            for kind in (pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_DELETED_EVENT):
                events.publish(partial(event, f"c{number % 7}", kind))
        events.close()
        seen = [one async for one in subscriber]
    assert len(seen) <= 1000
    last = {one.container_id: one.container_event_type for one in seen}
    assert last == {f"c{number}": pb.CONTAINER_DELETED_EVENT for number in range(7)}


async def test_more_containers_than_the_queue_is_long_are_all_told():
    events = ContainerEvents()
    with events.subscribe() as subscriber:
        for number in range(2500):
            events.publish(partial(event, f"c{number}", pb.CONTAINER_CREATED_EVENT))
        events.close()
        assert len([one async for one in subscriber]) == 2500


async def test_nothing_is_made_for_nobody():
    def make():
        raise AssertionError("nobody listens")

    ContainerEvents().publish(make)


async def test_a_subscription_waits_and_ends_with_the_bus():
    events = ContainerEvents()
    with events.subscribe() as subscriber:
        waiting = asyncio.ensure_future(anext(aiter(subscriber)))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(lambda: event("a", pb.CONTAINER_STARTED_EVENT))
        assert (await waiting).container_id == "a"
        events.close()
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(subscriber))
    with events.subscribe() as late:
        assert [one async for one in late] == []
