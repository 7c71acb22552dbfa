"""The event bus: who gets what, in which order, and what happens to the slow."""

import asyncio

import pytest

from runtimed.api import events_pb2, types_pb2
from runtimed.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from runtimed.events import EventBus, validate_topic


def exited(id: str, container_id: str = "c1") -> events_pb2.TaskExit:
    return events_pb2.TaskExit(container_id=container_id, id=id, exit_status=7)


async def received(bus: EventBus, subscription) -> list[types_pb2.Envelope]:
    """End the bus and return what the subscriber gets before the end."""
    bus.close()
    return [envelope async for envelope in subscription]


async def test_an_event_reaches_every_subscriber_once_and_in_order():
    bus = EventBus()
    with bus.subscribe() as one, bus.subscribe() as two:
        for number in range(3):
            bus.publish("ns", "/tasks/exit", exited(str(number)))
        for subscription in (one, two):
            envelopes = await received(bus, subscription)
            assert [events_pb2.TaskExit.FromString(e.event.value).id for e in envelopes] == ["0", "1", "2"]


async def test_the_type_url_is_the_bare_name_as_go_clients_expect():
    bus = EventBus()
    with bus.subscribe() as subscription:
        bus.publish("ns", "/tasks/exit", exited("x"))
        (envelope,) = await received(bus, subscription)
    assert envelope.event.type_url == "containerd.events.TaskExit"
    assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/exit")
    assert envelope.timestamp.seconds > 0


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["1", "2", "3"]),
        (["topic==/tasks/exit"], ["1", "2"]),
        (["namespace==moby,topic~=|^/tasks/|"], ["1"]),
        (["namespace==moby", "topic==/images/create"], ["1", "3"]),
        (["event.container_id==b"], ["2"]),
        (["event.id"], ["1", "2"]),
        (["event.name==three"], []),
        (["event.labels.x==y"], ["3"]),
        (["event.exit_status==7"], []),  # numbers cannot be matched
        (["timestamp"], []),
    ],
)
async def test_filters_choose_by_namespace_topic_and_the_events_fields(filters, ids):
    bus = EventBus()
    with bus.subscribe(filters) as subscription:
        bus.publish("moby", "/tasks/exit", exited("1", "a"))
        bus.publish("other", "/tasks/exit", exited("2", "b"))
        bus.publish("other", "/images/create", events_pb2.ContainerUpdate(labels={"x": "y"}))
        envelopes = await received(bus, subscription)
    kinds = {"/images/create": "3"}
    assert [kinds.get(e.topic) or events_pb2.TaskExit.FromString(e.event.value).id for e in envelopes] == ids


async def test_a_nested_field_can_be_matched():
    bus = EventBus()
    with bus.subscribe(["event.runtime.name==r"]) as subscription:
        bus.publish("ns", "/containers/create", events_pb2.ContainerCreate(id="c", runtime={"name": "r"}))
        bus.publish("ns", "/containers/create", events_pb2.ContainerCreate(id="c", runtime={"name": "s"}))
        assert len(await received(bus, subscription)) == 1


async def test_an_event_of_an_unknown_or_broken_type_is_passed_on_and_matches_no_field():
    bus = EventBus()
    with bus.subscribe() as everything, bus.subscribe(["event.id"]) as with_id:
        for url, value in (("their.own.Event", b"?"), ("containerd.events.TaskExit", b"\xff")):
            envelope = types_pb2.Envelope(namespace="ns", topic="/own")
            envelope.timestamp.GetCurrentTime()
            envelope.event.type_url, envelope.event.value = url, value
            bus.forward(envelope)
        assert len(await received(bus, everything)) == 2
        assert await received(bus, with_id) == []


async def test_a_subscriber_that_falls_behind_is_told_how_many_it_lost_and_nobody_waits():
    bus = EventBus(queue_length=3)
    with bus.subscribe() as slow:
        for number in range(8):
            bus.publish("ns", "/tasks/exit", exited(str(number)))
        events = aiter(slow)
        got = [await anext(events) for _ in range(3)]
        assert [events_pb2.TaskExit.FromString(envelope.event.value).id for envelope in got] == ["0", "1", "2"]
        with pytest.raises(ResourceExhausted, match="5 events lost"):
            await anext(events)


async def test_what_is_told_and_what_is_lost_is_counted_and_topics_beyond_a_hundred_together():
    bus = EventBus(queue_length=3)
    with bus.subscribe():
        assert bus.subscribers == 1
        for number in range(5):
            bus.publish("ns", "/tasks/exit", exited(str(number)))
        assert bus.lost == 2
    assert (bus.subscribers, bus.lost) == (0, 2)
    for number in range(150):
        bus.publish("ns", f"/invented/t{number}", exited("x"))
    assert bus.told["/tasks/exit"] == 5
    assert bus.told["other"] == 51
    assert len(bus.told) == 101


async def test_a_subscriber_that_keeps_up_never_loses_any():
    bus = EventBus(queue_length=1)
    with bus.subscribe() as subscription:
        events = aiter(subscription)
        for number in range(5):
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            bus.publish("ns", "/tasks/exit", exited(str(number)))
            assert events_pb2.TaskExit.FromString((await waiting).event.value).id == str(number)


async def test_who_unsubscribes_gets_no_more():
    bus = EventBus()
    with bus.subscribe() as subscription:
        bus.publish("ns", "/tasks/exit", exited("1"))
    bus.publish("ns", "/tasks/exit", exited("2"))
    envelope = await anext(aiter(subscription))
    assert events_pb2.TaskExit.FromString(envelope.event.value).id == "1"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(aiter(subscription))


async def test_subscribing_to_a_closed_bus_ends_at_once():
    bus = EventBus()
    bus.close()
    with bus.subscribe() as subscription:
        assert [envelope async for envelope in subscription] == []


@pytest.mark.parametrize("topic", ["", "tasks", "/", "//", "/tasks/", "/tasks exit", "/" + "x" * 77, "/täsks"])
def test_what_is_not_a_topic_is_refused(topic):
    with pytest.raises(InvalidArgument, match="topic"):
        validate_topic(topic)


def test_an_event_needs_namespace_and_timestamp():
    bus = EventBus()
    with pytest.raises(FailedPrecondition, match="namespace"):
        bus.publish("", "/tasks/exit", exited("1"))
    with pytest.raises(InvalidArgument, match="namespace"):
        bus.publish("../x", "/tasks/exit", exited("1"))
    with pytest.raises(InvalidArgument, match="timestamp"):
        bus.forward(types_pb2.Envelope(namespace="ns", topic="/tasks/exit"))


def test_a_filter_that_does_not_parse_is_refused():
    with pytest.raises(InvalidArgument), EventBus().subscribe(["topic=="]):
        pass


def ids(envelopes: list[types_pb2.Envelope]) -> list[str]:
    return [events_pb2.TaskExit.FromString(envelope.event.value).id for envelope in envelopes]


async def test_what_happened_before_the_bus_was_there_is_told_to_each_who_comes_soon():
    sent = types_pb2.Envelope(namespace="ns", topic="/tasks/exit")
    sent.timestamp.GetCurrentTime()  # by a shim that found no daemon
    sent.event.value = exited("queued").SerializeToString()
    bus = EventBus()
    with bus.subscribe() as early:
        bus.publish("ns", "/tasks/exit", exited("found"), was_missed=True)
        bus.forward(sent)
        bus.publish("ns", "/tasks/exit", exited("new"))
        with bus.subscribe() as late, bus.subscribe(["namespace==other"]) as other:
            bus.publish("ns", "/tasks/exit", exited("newer"))
            assert ids(await received(bus, early)) == ["found", "queued", "new", "newer"]
            assert ids(await received(bus, late)) == ["found", "queued", "newer"]
            assert ids(await received(bus, other)) == []


async def test_what_was_missed_is_not_kept_for_ever(monkeypatch):
    now = 100.0
    monkeypatch.setattr("runtimed.events.time.monotonic", lambda: now)
    bus = EventBus()
    bus.publish("ns", "/tasks/exit", exited("found"), was_missed=True)
    now += 15
    bus.publish("ns", "/tasks/exit", exited("found late"), was_missed=True)
    with bus.subscribe() as late:
        assert ids(await received(bus, late)) == []
