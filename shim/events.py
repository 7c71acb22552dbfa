"""Events for the daemon: in order, one at a time, kept while it is away."""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from runtimed.api import events_ttrpc_pb2 as pb
from runtimed.errors import DeadlineExceeded, RuntimedError, Unavailable
from runtimed.rpc import ttrpc

log = logging.getLogger(__name__)

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_NAMESPACE_KEY = "containerd-namespace-ttrpc"

# Events kept while the daemon is away, about 1 MB of them. When there are more the oldest go: a daemon that has been
# away for that long asks for the state of each task anyway.
MAX_QUEUED = 2048

_CALL_LIMIT_S = 10.0
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 2.0

TOPICS = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskOOM": "/tasks/oom",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
    "TaskCheckpointed": "/tasks/checkpointed",
}


class Publisher:
    """Sends events to the ttrpc socket *address*; to nowhere if that is ""."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: deque[pb.ForwardRequest] = deque()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._woken = asyncio.Event()
        self._client: ttrpc.Client | None = None
        self._sending = asyncio.create_task(self._send())

    def publish(self, event: Message) -> None:
        """Queue *event*, a message of containerd.events. Never blocks."""
        if not self._address:
            return
        if len(self._queue) == MAX_QUEUED:
            # The first may be under way, and would then be sent a second time by whoever finds it gone.
            del self._queue[1]
            log.warning("the daemon has been away too long: an event was dropped")
        request = pb.ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.namespace = self._namespace
        envelope.topic = TOPICS[event.DESCRIPTOR.name]
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        self._queue.append(request)
        self._empty.clear()
        self._filled.set()

    def wake(self) -> None:
        """Try again at once: there is a sign that the daemon is back."""
        self._woken.set()

    async def close(self, limit_s: float) -> None:
        """Send what is queued, for *limit_s* seconds at most, and disconnect."""
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        self._sending.cancel()
        await asyncio.wait([self._sending])
        if self._client is not None:
            await self._client.close()

    async def _send(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            await self._filled.wait()
            if await self._forward(self._queue[0]):
                self._queue.popleft()
                retry_s = _FIRST_RETRY_S
                if not self._queue:
                    self._filled.clear()
                    self._empty.set()
                continue
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(retry_s):
                    await self._woken.wait()
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _forward(self, request: pb.ForwardRequest) -> bool:
        """Send one event; return whether it is done with, be it because the daemon refuses it."""
        try:
            if self._client is None or self._client.closed.done():
                if self._client is not None:
                    await self._client.close()
                self._client = None
                self._client = await ttrpc.Client.connect(self._address, timeout_s=_CALL_LIMIT_S)
            metadata = {_NAMESPACE_KEY: self._namespace}
            await self._client.call(_SERVICE, "Forward", request, Empty, timeout_s=_CALL_LIMIT_S, metadata=metadata)
        except (Unavailable, DeadlineExceeded):
            return False
        except RuntimedError as exc:
            if self._client is None:
                return False  # it could not even be connected to
            log.error("the daemon refused an event: %s", exc)
        except Exception:
            log.exception("an event could not be sent")
            return self._client is not None
        return True
