"""Container events, for who subscribes to them (CRI api.proto, GetContainerEvents)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from runtimed.api import cri_pb2 as pb

_LENGTH = 1000  # events that a subscriber may lag behind before they are put together


class ContainerEvents:
    """Tells subscribers what happens to containers and pods. Belongs to the event loop's thread.

    A subscriber that does not keep up loses nothing that counts: of what waits for it, only the last event of each
    container is kept, which carries the state that there was then.
    """

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._is_closed = False

    def publish(self, make: Callable[[], pb.ContainerEventResponse]) -> None:
        """Tell of what *make* returns; it is not called if nobody listens."""
        if self._subscribers:
            event = make()
            for subscriber in self._subscribers:
                subscriber.put(event)

    @contextmanager
    def subscribe(self) -> Iterator["Subscriber"]:
        """Hold a subscription to everything from here on."""
        subscriber = Subscriber(_LENGTH)
        self._subscribers.add(subscriber)
        if self._is_closed:
            subscriber.end()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def close(self) -> None:
        """End every subscription."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber.end()


class Subscriber:
    """What waits for one subscriber: an asynchronous iterator."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._waiting: list[pb.ContainerEventResponse] = []
        self._wake = asyncio.Event()
        self._has_ended = False

    def put(self, event: pb.ContainerEventResponse) -> None:
        """Add an event; of too many, those that a later one of the same container makes needless go."""
        self._waiting.append(event)
        if len(self._waiting) > self._length:
            last = {one.container_id: one for one in self._waiting}
            self._waiting = list(last.values())
            self._length = max(self._length, 2 * len(last))  # more containers than that: put together less often
        self._wake.set()

    def end(self) -> None:
        self._has_ended = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[pb.ContainerEventResponse]:
        while True:
            while self._waiting:
                yield self._waiting.pop(0)
            if self._has_ended:
                return
            self._wake.clear()
            await self._wake.wait()
