"""The Events service: for clients over gRPC, for shims over ttrpc (Forward alone)."""

from collections.abc import AsyncIterator, Mapping

from google.protobuf.empty_pb2 import Empty

from runtimed.api import events_service_pb2 as pb
from runtimed.api import events_ttrpc_pb2, types_pb2
from runtimed.errors import Unavailable
from runtimed.events import EventBus
from runtimed.rpc import ttrpc
from runtimed.services.context import Context, namespace_of

TTRPC_NAME = "containerd.services.events.ttrpc.v1.Events"


class EventsService:
    """Publishes for a client, forwards for a shim, and streams to whoever subscribes."""

    def __init__(self, events: EventBus) -> None:
        self._events = events

    async def Publish(self, request: pb.PublishRequest, context: Context) -> Empty:
        envelope = types_pb2.Envelope(namespace=namespace_of(context), topic=request.topic, event=request.event)
        envelope.timestamp.GetCurrentTime()
        self._events.forward(envelope)
        return Empty()

    async def Forward(self, request: pb.ForwardRequest, context: Context) -> Empty:
        self._events.forward(request.envelope)
        return Empty()

    async def Subscribe(self, request: pb.SubscribeRequest, context: Context) -> AsyncIterator[types_pb2.Envelope]:
        with self._events.subscribe(request.filters) as subscription:
            # Clients take the headers as the moment from which on no event is missed.
            await context.send_initial_metadata(())
            async for envelope in subscription:
                yield envelope
        # An end without an error would tell clients that there will never be another event.
        raise Unavailable("the daemon is stopping; subscribe again when it is back")


def ttrpc_service(events: EventBus) -> ttrpc.Service:
    """Return what shims call to tell of their tasks."""

    async def forward(request: events_ttrpc_pb2.ForwardRequest, metadata: Mapping[str, str]) -> Empty:
        # Another message type with the same fields as the one above; the envelope is the same type.
        events.forward(request.envelope)
        return Empty()

    return {"Forward": ttrpc.Method(events_ttrpc_pb2.ForwardRequest, forward)}
