"""containerd.services.streaming.v1: streams that a client opens beside a request, and names in it.

A client opens a stream, says its ID in a first ``StreamInit``, and is answered with an empty message as soon as the ID
can be used. Then it sends a request (a transfer, say) that names it, and whoever serves that takes the stream from
:class:`Streams`. A stream ends when its taker closes it or its client goes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from runtimed import identifiers
from runtimed.api import streaming_pb2 as pb
from runtimed.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from runtimed.services.context import Context, namespace_of

_WINDOW = 16  # messages under way in each direction; then the sender waits
_INIT_LIMIT_S = 10.0
_LOOKUP_LIMIT_S = 10.0  # a request may overtake the stream that it names


class Channel:
    """A bounded queue of messages that can be closed. Belongs to the event loop."""

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._is_closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    async def put(self, message: Any) -> None:
        """Add *message* when there is room. Raises Unavailable if the channel is closed."""
        while len(self._messages) >= _WINDOW and not self._is_closed:
            await self._changed()
        if self._is_closed:
            raise Unavailable("the stream has ended")
        self._messages.append(message)
        self._wake()

    async def get(self) -> Any | None:
        """Return the next message; None when the channel is closed and empty."""
        while not self._messages and not self._is_closed:
            await self._changed()
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._wake()
        return message

    def take(self) -> list[Any]:
        """Return the messages that are in, without waiting for any."""
        messages = list(self._messages)
        self._messages.clear()
        self._wake()
        return messages

    def close(self) -> None:
        """Take no more messages; those that are in can still be had."""
        self._is_closed = True
        self._wake()

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Stream:
    """One stream, as its taker sees it."""

    def __init__(self) -> None:
        self.incoming = Channel()
        self.outgoing = Channel()

    async def send(self, message: Message) -> None:
        """Send *message*; waits while the client does not keep up. Raises Unavailable when the stream has ended."""
        await self.outgoing.put(to_any(message))

    async def receive(self) -> Any | None:
        """Return the client's next message; None after the last."""
        return await self.incoming.get()

    def received(self) -> list[Any]:
        """Return those of the client's messages that have come already."""
        return self.incoming.take()

    def close(self) -> None:
        """End the stream, after what has been sent. Again is no error."""
        self.outgoing.close()


class Streams:
    """The open streams by namespace and ID."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}
        self._awaited: dict[tuple[str, str], asyncio.Event] = {}

    async def get(self, namespace: str, id: str) -> Stream:
        """Return the stream *id*, waiting a moment for it to be opened. Raises NotFound."""
        key = (namespace, id)
        if key not in self._streams:
            opened = self._awaited.setdefault(key, asyncio.Event())
            try:
                async with asyncio.timeout(_LOOKUP_LIMIT_S):
                    await opened.wait()
            except TimeoutError:
                raise NotFound(f"stream {id[:160]!r}: open it before the request that names it") from None
            finally:
                self._awaited.pop(key, None)
        try:
            return self._streams[key]
        except KeyError:  # opened and gone again
            raise NotFound(f"stream {id[:160]!r} has ended") from None

    @contextmanager
    def registered(self, namespace: str, id: str, stream: Stream) -> Iterator[None]:
        """Offer *stream* under *id* while the block runs. Raises AlreadyExists."""
        key = (namespace, identifiers.validate_name(id, "stream id"))
        if self._streams.setdefault(key, stream) is not stream:
            raise AlreadyExists(f"stream {id!r}")
        if key in self._awaited:
            self._awaited[key].set()
        try:
            yield
        finally:
            del self._streams[key]


class StreamingService:
    """Opens streams; those who take them are other services."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Stream(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        namespace = namespace_of(context)
        id = await _init(request_iterator)
        stream = Stream()
        with self._streams.registered(namespace, id, stream):
            pump = asyncio.create_task(_pump(request_iterator, stream.incoming))
            try:
                yield to_any(Empty())
                while (message := await stream.outgoing.get()) is not None:
                    yield message
            finally:
                stream.close()
                pump.cancel()
                # How the client's side ended is the client's business; it has gone or been answered.
                await asyncio.gather(pump, return_exceptions=True)


async def _pump(requests: AsyncIterator[Any], channel: Channel) -> None:
    """Take over what the client sends, until it has sent all or the call ends."""
    try:
        async for message in requests:
            await channel.put(message)
    finally:
        channel.close()


async def _init(requests: AsyncIterator[Any]) -> str:
    """Return the ID that the first message gives."""
    try:
        async with asyncio.timeout(_INIT_LIMIT_S):
            first = await anext(requests, None)
    except TimeoutError:
        raise DeadlineExceeded(f"stream: no StreamInit within {_INIT_LIMIT_S:.0f} s") from None
    if first is None:
        raise InvalidArgument("stream: ended before its StreamInit")
    init = pb.StreamInit()
    unpack(first, init)
    return init.id


def to_any(message: Message) -> Any:
    """Return *message* as containerd's typeurl packs it: the type's bare name, without a host."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def unpack(packed: Any, into: Message) -> None:
    """Fill *into* from *packed*. Raises InvalidArgument if that is of another type or damaged."""
    expected = into.DESCRIPTOR.full_name
    if packed.type_url.rpartition("/")[2] != expected:
        raise InvalidArgument(f"message of type {packed.type_url[:160]!r} where {expected} is expected")
    try:
        into.ParseFromString(packed.value)
    except DecodeError:
        raise InvalidArgument(f"message of type {expected} does not decode") from None
