"""EventBus: what happened, to everybody who asked for it.

Events live in memory only. Each subscriber has a bounded queue of its own; publishing puts an envelope into the queues
whose filter it matches and never waits. A subscriber that does not keep up gets what its queue still holds, in order,
and then an error that says how many it has missed; it subscribes again and knows that it has to look for itself.

What happened while no daemon was there, nobody could subscribe to. A client (dockerd for one) notices the new daemon a
second after it has found such things and told of them. So these events are kept for some seconds, and each subscription
that is made meanwhile begins with those that were told before it.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager

from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from runtimed import filters, identifiers
from runtimed.api import events_pb2, types_pb2  # noqa: F401  events_pb2: its types must be known to read fields
from runtimed.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

QUEUE_LENGTH = 10_000  # events that a subscriber may lag behind
_TOPICS = 100  # that are counted by themselves; twice as many as there are
MISSED_WITHIN_S = 15.0  # as long as a client that has lost its daemon takes to subscribe to the next one, and more


class EventBus:
    """Publishes to the subscribers of this process. Belongs to the event loop's thread."""

    def __init__(self, queue_length: int = QUEUE_LENGTH) -> None:
        self._queue_length = queue_length
        self._subscriptions: set[Subscription] = set()
        self._closed = False
        self.told: Counter[str] = Counter()  # events by topic; of clients' inventions there may be many, so not of all
        self._lost = 0  # by subscribers that have gone
        self._opened_ns = time.time_ns()
        self._kept: deque[types_pb2.Envelope] = deque(maxlen=queue_length)
        self._kept_until = time.monotonic() + MISSED_WITHIN_S

    def publish(self, namespace: str, topic: str, message: Message, *, was_missed: bool = False) -> None:
        """Tell of *message* in *namespace*; returns at once.

        *was_missed*: it happened before the bus was there, and was only found now.

        Raises:
            FailedPrecondition: no namespace.
            InvalidArgument: not a topic such as ``/tasks/exit``.
        """
        envelope = types_pb2.Envelope(namespace=namespace, topic=topic)
        # Clients look the type up by this URL: the bare name, as containerd's typeurl writes it.
        envelope.event.type_url = message.DESCRIPTOR.full_name
        envelope.event.value = message.SerializeToString()
        envelope.timestamp.FromNanoseconds(time.time_ns())
        self.forward(envelope, was_missed=was_missed)

    def forward(self, envelope: types_pb2.Envelope, *, was_missed: bool = False) -> None:
        """Pass on an envelope that a shim or client has made; returns at once.

        One whose timestamp is from before the bus was there counts as missed.

        Raises:
            FailedPrecondition: no namespace.
            InvalidArgument: no timestamp, not a topic, not a namespace.
        """
        if not envelope.namespace:
            raise FailedPrecondition("event: namespace is required")
        identifiers.validate(envelope.namespace, "namespace")
        validate_topic(envelope.topic)
        if not envelope.HasField("timestamp"):
            raise InvalidArgument(f"event {envelope.topic}: timestamp is required")
        if was_missed or envelope.timestamp.ToNanoseconds() < self._opened_ns:
            self._keep(envelope)
        known = envelope.topic in self.told or len(self.told) < _TOPICS
        self.told[envelope.topic if known else "other"] += 1
        fields = _Fields(envelope)
        for subscription in self._subscriptions:
            if subscription._filter.match(fields.get):
                subscription._put(envelope)

    @contextmanager
    def subscribe(self, expressions: Sequence[str] = ()) -> Iterator["Subscription"]:
        """Hold a subscription: every matching event from here on, each once and in order; before them the missed ones.

        Events are matched by ``topic``, ``namespace`` and ``event.<field>``.

        Raises:
            InvalidArgument: a filter that does not parse.
        """
        subscription = Subscription(filters.parse(expressions), self._queue_length)
        for envelope in self._missed():
            if subscription._filter.match(_Fields(envelope).get):
                subscription._put(envelope)
        self._subscriptions.add(subscription)
        if self._closed:
            subscription._end()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._lost += subscription.lost

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    @property
    def lost(self) -> int:
        """How many events subscribers have missed because they did not keep up."""
        return self._lost + sum(subscription.lost for subscription in self._subscriptions)

    def _keep(self, envelope: types_pb2.Envelope) -> None:
        if time.monotonic() < self._kept_until:
            self._kept.append(envelope)

    def _missed(self) -> Iterable[types_pb2.Envelope]:
        if time.monotonic() >= self._kept_until:
            self._kept.clear()
        return self._kept

    def close(self) -> None:
        """End every subscription, and those to come, after what they hold."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription._end()


class Subscription:
    """An asynchronous iterator of envelopes; ends when the bus closes.

    Raises, while iterating:
        ResourceExhausted: fell behind; the message says how many events were lost.
    """

    def __init__(self, wanted: filters.Filter, limit: int) -> None:
        self._filter = wanted
        self._limit = limit
        self._queue: deque[types_pb2.Envelope] = deque()
        self.lost = 0
        self._ended = False
        self._wake = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[types_pb2.Envelope]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self.lost:
                raise ResourceExhausted(f"event subscriber fell behind: {self.lost} events lost; subscribe again")
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    def _put(self, envelope: types_pb2.Envelope) -> None:
        # Once one is lost the stream has a hole, and nothing behind the hole may be delivered.
        if self.lost or len(self._queue) >= self._limit:
            self.lost += 1
        else:
            self._queue.append(envelope)
        self._wake.set()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()


def validate_topic(topic: str) -> str:
    """Return *topic* if it is of the form ``/<component>[/<component>...]``. Raises InvalidArgument."""
    if not topic.startswith("/"):
        raise InvalidArgument(f"topic {topic[:80]!r} must start with '/'")
    for component in topic[1:].split("/"):
        identifiers.validate(component, f"topic {topic[:80]!r}: component")
    return topic


class _Fields:
    """What a filter sees of an envelope; the event is decoded when the first filter looks into it."""

    def __init__(self, envelope: types_pb2.Envelope) -> None:
        self._envelope = envelope
        self._event: Message | None = None
        self._is_decoded = False

    def get(self, path: list[str]) -> str | None:
        match path:
            case ["namespace"]:
                return self._envelope.namespace
            case ["topic"]:
                return self._envelope.topic
            case ["event", *below] if below:
                return _field(self._decoded(), below)
        return None

    def _decoded(self) -> Message | None:
        if not self._is_decoded:
            self._is_decoded = True
            self._event = _decode(self._envelope.event.type_url, self._envelope.event.value)
        return self._event


def _decode(type_url: str, value: bytes) -> Message | None:
    """Return the message in an Any, or None if its type is unknown here or its bytes are not of that type."""
    try:
        descriptor = default_pool().FindMessageTypeByName(type_url.rpartition("/")[2])
        return GetMessageClass(descriptor).FromString(value)
    except (KeyError, DecodeError):
        return None


def _field(message: Message | None, path: list[str]) -> str | None:
    """Return a string below *message*; as with containerd's events, only strings and string maps can be matched."""
    if message is None:
        return None
    descriptor = message.DESCRIPTOR.fields_by_name.get(path[0])
    if descriptor is None:
        return None
    value = getattr(message, path[0])
    if descriptor.message_type is None:
        return (value or None) if isinstance(value, str) and len(path) == 1 else None
    if descriptor.message_type.GetOptions().map_entry:
        found = value.get(".".join(path[1:])) if len(path) > 1 else None
        return found if isinstance(found, str) else None
    if descriptor.is_repeated or len(path) == 1:
        return None
    return _field(value, path[1:])
