"""Events for the daemon: in order, one at a time, kept while it is away."""

import time
from collections import deque
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from runtimed.errors import DeadlineExceeded, RuntimedError, Unavailable
from shim import log, loop, ttrpc
from shim import messages as pb
from shim.proto import Message

EVENTS = "containerd.services.events.ttrpc.v1.Events"
_NAMESPACE_KEY = "containerd-namespace-ttrpc"

# Events kept while the daemon is away, about 1 MB of them. When there are more the oldest go: a daemon that has been
# away for that long asks for the state of each task anyway.
MAX_QUEUED = 2048

_CALL_LIMIT_S = 10.0
# A daemon that was away connects to each shim when it is back, and so wakes it: the later ones are for one that was
# only stopped. Between them the shim rests.
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 16.0

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
        self._filled = loop.Event()
        self._empty = loop.Event()
        self._empty.set()
        self._woken = loop.Event()
        self._client: ttrpc.Client | None = None
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = 0.0  # monotonic
        self._sending = loop.spawn(self._send(), resumable=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sending"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._sending = loop.spawn(self._send(), resumable=True)

    @property
    def next_try(self) -> float:
        """When it wants to send next, by the monotonic clock."""
        return self._retry_at if self._queue else inf

    def publish(self, event: Message) -> None:
        """Queue *event*, a message of containerd.events. Never blocks."""
        if not self._address:
            return
        if len(self._queue) == MAX_QUEUED:
            # The first may be under way, and would then be sent a second time by whoever finds it gone.
            del self._queue[1]
            log.warning("the daemon has been away too long: an event was dropped")
        envelope = pb.Envelope(
            timestamp=pb.Timestamp.of(time.time_ns()),
            namespace=self._namespace,
            topic=TOPICS[type(event).__name__],
            event=pb.Any.of(event),
        )
        self._queue.append(pb.ForwardRequest(envelope=envelope))
        self._empty.clear()
        self._filled.set()

    def wake(self) -> None:
        """Try again at once: there is a sign that the daemon is back."""
        self._retry_s, self._retry_at = _FIRST_RETRY_S, 0.0
        self._woken.set()

    async def close(self, limit_s: float) -> None:
        """Send what is queued, for *limit_s* seconds at most, and disconnect."""
        self.wake()
        with suppress(TimeoutError), loop.timeout(limit_s):
            await self._empty.wait()
        self._sending.cancel()
        await loop.settled(self._sending)
        if self._client is not None:
            self._client.close()

    async def _send(self) -> None:
        while True:
            await self._filled.wait()
            if (wait_s := self._retry_at - monotonic()) > 0:
                self._woken.clear()
                with suppress(TimeoutError), loop.timeout(wait_s, resumable=True):
                    await self._woken.wait()
            if not await self._forward(self._queue[0]):
                self._retry_at = monotonic() + self._retry_s
                self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)
                continue
            self._retry_s, self._retry_at = _FIRST_RETRY_S, 0.0
            self._queue.popleft()
            if not self._queue:
                self._filled.clear()
                self._empty.set()

    async def _forward(self, request: pb.ForwardRequest) -> bool:
        """Send one event; return whether it is done with, be it because the daemon refuses it."""
        try:
            if self._client is None or not self._client.is_open:
                self._client = None
                self._client = ttrpc.Client(ttrpc.connected(self._address))
            metadata = {_NAMESPACE_KEY: self._namespace}
            await self._client.call(EVENTS, "Forward", request, pb.Empty, _CALL_LIMIT_S, metadata)
        except (Unavailable, DeadlineExceeded):
            return False
        except RuntimedError as exc:
            if self._client is None:
                return False  # it could not even be connected to
            log.error(f"the daemon refused an event: {exc}")
        except Exception as exc:
            log.exception("an event could not be sent", exc)
            return self._client is not None
        return True
