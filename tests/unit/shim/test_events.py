"""The publisher against a daemon that comes and goes."""

import asyncio
import socket

import pytest
from google.protobuf.empty_pb2 import Empty

from runtimed.api import events_pb2, events_ttrpc_pb2
from runtimed.errors import InvalidArgument
from runtimed.rpc import ttrpc
from shim import events


class Daemon:
    def __init__(self, path):
        self.path = path
        self.received = []
        self.arrived = asyncio.Semaphore(0)
        self.refuse = False

    async def open(self):
        forward = ttrpc.Method(events_ttrpc_pb2.ForwardRequest, self._forward)
        self.server = ttrpc.Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": forward}})
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen()
        await self.server.serve(sock)

    async def close(self):
        await self.server.close()
        self.path.unlink()

    async def _forward(self, request, metadata):
        if self.refuse:
            self.refuse = False
            raise InvalidArgument("no")
        assert metadata == {"containerd-namespace-ttrpc": "ns"}
        self.received.append(request.envelope)
        self.arrived.release()
        return Empty()

    async def got(self, count):
        async with asyncio.timeout(10):
            for _ in range(count):
                await self.arrived.acquire()
        return [events_pb2.TaskExit.FromString(envelope.event.value).pid for envelope in self.received]


@pytest.fixture
async def daemon(tmp_path):
    daemon = Daemon(tmp_path / "s")
    await daemon.open()
    yield daemon
    await daemon.close()


@pytest.fixture
async def publisher(daemon):
    publisher = events.Publisher(f"unix://{daemon.path}", "ns")
    yield publisher
    await publisher.close(1)


async def test_events_arrive_in_order_with_all_that_belongs_to_them(daemon, publisher):
    for number in range(20):
        publisher.publish(events_pb2.TaskExit(container_id="c", pid=number))
    assert await daemon.got(20) == list(range(20))
    envelope = daemon.received[0]
    assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/exit")
    assert envelope.event.type_url == "containerd.events.TaskExit"
    assert envelope.timestamp.seconds > 0


async def test_they_wait_for_a_daemon_that_is_away(daemon, publisher):
    publisher.publish(events_pb2.TaskExit(pid=1))
    await daemon.got(1)
    await daemon.close()
    publisher.publish(events_pb2.TaskExit(pid=2))
    publisher.publish(events_pb2.TaskExit(pid=3))
    await daemon.open()
    publisher.wake()
    assert await daemon.got(2) == [1, 2, 3]


async def test_an_event_that_the_daemon_refuses_does_not_hold_up_the_others(daemon, publisher, caplog):
    daemon.refuse = True
    publisher.publish(events_pb2.TaskExit(pid=1))
    publisher.publish(events_pb2.TaskExit(pid=2))
    assert await daemon.got(1) == [2]
    assert "the daemon refused an event" in caplog.text


async def test_of_too_many_the_oldest_go(daemon, publisher, monkeypatch):
    monkeypatch.setattr(events, "MAX_QUEUED", 5)
    await daemon.close()
    for number in range(10):
        publisher.publish(events_pb2.TaskExit(pid=number))
    await daemon.open()
    publisher.wake()
    assert await daemon.got(5) == [0, 6, 7, 8, 9]  # the first may be under way, and stays


async def test_closing_sends_what_is_queued(daemon):
    publisher = events.Publisher(str(daemon.path), "ns")
    publisher.publish(events_pb2.TaskExit(pid=1))
    await publisher.close(5)
    assert await daemon.got(1) == [1]


async def test_closing_does_not_wait_for_ever(tmp_path):
    publisher = events.Publisher(str(tmp_path / "nobody"), "ns")
    publisher.publish(events_pb2.TaskExit(pid=1))
    async with asyncio.timeout(5):
        await publisher.close(0.05)


async def test_without_an_address_nothing_is_kept():
    publisher = events.Publisher("", "ns")
    publisher.publish(events_pb2.TaskExit(pid=1))
    async with asyncio.timeout(5):
        await publisher.close(60)


def test_every_task_event_has_its_topic():
    names = {name for name in events_pb2.DESCRIPTOR.message_types_by_name if name.startswith("Task")}
    assert set(events.TOPICS) == names - {"TaskIO"}
