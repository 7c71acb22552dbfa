"""Events of tasks, as far as they are not of real ones; of those: e2e/test_cri_containers.py."""

import asyncio
from types import SimpleNamespace
from typing import Any

from runtimed.api import events_pb2, types_pb2
from runtimed.cri import container_exit
from runtimed.cri.images import NAMESPACE
from runtimed.events import EventBus


class Found:
    """A container that tells when it is looked for."""

    def __init__(self):
        self.is_oom = False
        self.was_asked = asyncio.Event()

    def find(self, id):
        if id == "c":
            self.was_asked.set()
            return self
        return None


async def test_what_is_no_event_ends_no_watch():
    """Any client may publish what it likes; from then on the ends of containers would be missed."""
    found = Found()
    core: Any = SimpleNamespace(state=SimpleNamespace(containers=found, coming={}, sandboxes=found))
    events, ready = EventBus(), asyncio.Event()
    watching = asyncio.create_task(container_exit.watch(core, events, ready))
    async with asyncio.timeout(20):
        await ready.wait()
        for topic in ("/tasks/oom", "/tasks/exit"):
            envelope = types_pb2.Envelope(namespace=NAMESPACE, topic=topic)
            envelope.timestamp.GetCurrentTime()
            envelope.event.value = b"\xff\xff"
            events.forward(envelope)
        events.publish(NAMESPACE, "/tasks/oom", events_pb2.TaskOOM(container_id="c"))
        await asyncio.wait([watching, asyncio.ensure_future(found.was_asked.wait())],
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        assert found.is_oom
        events.close()
        await watching
