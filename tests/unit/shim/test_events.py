"""The publisher against a daemon that comes and goes."""

import contextlib
import os
import pickle
import socket
from math import inf
from time import monotonic

import pytest

from runtimed.api import events_pb2
from runtimed.errors import InvalidArgument
from shim import events, log, loop, ttrpc
from shim import messages as pb
from tests.unit.shim.loops import on_loop


class Daemon:
    REQUESTS = {"Forward": pb.ForwardRequest}
    READS: frozenset[str] = frozenset()
    RESUMABLE = frozenset[str]()

    def __init__(self, path):
        self.path = path
        self.received = []
        self.arrived = loop.Event()
        self.refuse = False

    def open(self):
        self.server = ttrpc.Server({events.EVENTS: self})
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen()
        self.server.serve(sock)

    def close(self):
        self.server.close()
        self.path.unlink()

    async def Forward(self, request):
        if self.refuse:
            self.refuse = False
            raise InvalidArgument("no")
        self.received.append(request.envelope)
        self.arrived.set()
        return pb.Empty()

    async def got(self, count):
        """Wait until *count* events have come in all; return their pids."""
        with loop.timeout(10):
            while len(self.received) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return [pb.TaskExit.FromString(envelope.event.value).pid for envelope in self.received]


@pytest.fixture
def daemon(tmp_path):
    return Daemon(tmp_path / "s")


@on_loop
async def test_who_takes_them_over_goes_on_with_the_same_patience(daemon, monkeypatch):
    """As a worker does with what the one before it has left."""
    monkeypatch.setattr(events, "_FIRST_RETRY_S", 5.0)
    publisher = events.Publisher(f"unix://{daemon.path}", "ns")
    assert publisher.next_try == inf
    publisher.publish(pb.TaskExit(pid=1))
    before = monotonic()
    while publisher.next_try < before + 5:  # until it has tried once
        await loop.sleep(0)
    publisher._sending.cancel()
    next_one = pickle.loads(pickle.dumps(publisher))
    assert next_one.next_try == publisher.next_try
    daemon.open()
    for _ in range(10):
        await loop.sleep(0)
    assert daemon.received == []
    next_one.wake()
    assert await daemon.got(1) == [1]
    await next_one.close(1)
    assert next_one.next_try == inf
    daemon.close()


@contextlib.asynccontextmanager
async def publishing(daemon):
    daemon.open()
    publisher = events.Publisher(f"unix://{daemon.path}", "ns")
    yield publisher
    await publisher.close(1)
    daemon.close()


@on_loop
async def test_events_arrive_in_order_with_all_that_belongs_to_them(daemon):
    async with publishing(daemon) as publisher:
        for number in range(20):
            publisher.publish(pb.TaskExit(container_id="c", pid=number))
        assert await daemon.got(20) == list(range(20))
        envelope = daemon.received[0]
        assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/exit")
        assert envelope.event.type_url == "containerd.events.TaskExit"
        assert envelope.timestamp.seconds > 0


@on_loop
async def test_they_wait_for_a_daemon_that_is_away(daemon):
    async with publishing(daemon) as publisher:
        publisher.publish(pb.TaskExit(pid=1))
        await daemon.got(1)
        for _ in range(10):  # turns for the answer
            await loop.sleep(0)
        daemon.close()
        publisher.publish(pb.TaskExit(pid=2))
        publisher.publish(pb.TaskExit(pid=3))
        daemon.open()
        publisher.wake()
        assert await daemon.got(3) == [1, 2, 3]


@on_loop
async def test_an_event_that_the_daemon_refuses_does_not_hold_up_the_others(daemon, monkeypatch):
    said, saying = os.pipe()
    monkeypatch.setattr(log, "_fd", saying)
    async with publishing(daemon) as publisher:
        daemon.refuse = True
        publisher.publish(pb.TaskExit(pid=1))
        publisher.publish(pb.TaskExit(pid=2))
        assert await daemon.got(1) == [2]
        assert os.read(said, 1000) == b'level=error msg="the daemon refused an event: no"\n'
    os.close(said)
    os.close(saying)


@on_loop
async def test_of_too_many_the_oldest_go(daemon, monkeypatch):
    async with publishing(daemon) as publisher:
        monkeypatch.setattr(events, "MAX_QUEUED", 5)
        daemon.close()
        for number in range(10):
            publisher.publish(pb.TaskExit(pid=number))
        daemon.open()
        publisher.wake()
        assert await daemon.got(5) == [0, 6, 7, 8, 9]  # the first may be under way, and stays


@on_loop
async def test_closing_sends_what_is_queued(daemon):
    daemon.open()
    publisher = events.Publisher(str(daemon.path), "ns")
    publisher.publish(pb.TaskExit(pid=1))
    await publisher.close(5)
    assert await daemon.got(1) == [1]
    daemon.close()


@on_loop
async def test_closing_does_not_wait_for_ever(tmp_path):
    publisher = events.Publisher(str(tmp_path / "nobody"), "ns")
    publisher.publish(pb.TaskExit(pid=1))
    with loop.timeout(5):
        await publisher.close(0.05)


@on_loop
async def test_without_an_address_nothing_is_kept():
    publisher = events.Publisher("", "ns")
    publisher.publish(pb.TaskExit(pid=1))
    with loop.timeout(5):
        await publisher.close(60)


def test_every_task_event_has_its_topic():
    names = {name for name in events_pb2.DESCRIPTOR.message_types_by_name if name.startswith("Task")}
    assert set(events.TOPICS) == names - {"TaskIO"}
