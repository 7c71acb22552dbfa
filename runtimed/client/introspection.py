"""What the daemon tells of itself: events, plugins, its identity."""

from collections.abc import AsyncIterator, Sequence

from google.protobuf.empty_pb2 import Empty

from runtimed.api import (
    containers_pb2,  # noqa: F401 - here and below: the types that events are decoded with
    content_pb2,  # noqa: F401
    events_pb2,  # noqa: F401
    images_pb2,  # noqa: F401
    namespaces_pb2,  # noqa: F401
    version_pb2,
)
from runtimed.api import events_service_pb2 as subscribing
from runtimed.api import introspection_pb2 as pb
from runtimed.client import records
from runtimed.client.connection import Connection, service
from runtimed.client.decode import any_to_json
from runtimed.client.records import Event, Plugin, Server


async def events(connection: Connection, filters: Sequence[str]) -> AsyncIterator[Event]:
    """See :meth:`runtimed.client.Client.events`."""
    request = subscribing.SubscribeRequest(filters=filters)
    async for envelope in connection.messages(service(subscribing, "Events").Subscribe, request):
        yield Event(
            timestamp=records.moment(envelope.timestamp),
            namespace=envelope.namespace,
            topic=envelope.topic,
            type=envelope.event.type_url.rpartition("/")[2],
            value=any_to_json(envelope.event),
        )


async def plugins(connection: Connection, filters: Sequence[str]) -> list[Plugin]:
    """See :meth:`runtimed.client.Client.plugins`."""
    answer = await connection.call(service(pb, "Introspection").Plugins, pb.PluginsRequest(filters=filters))
    return [
        Plugin(
            type=plugin.type,
            id=plugin.id,
            capabilities=tuple(plugin.capabilities),
            exports=dict(plugin.exports),
            error=plugin.init_err.message or None,
        )
        for plugin in answer.plugins
    ]


async def server(connection: Connection) -> Server:
    """See :meth:`runtimed.client.Client.server`."""
    version = await connection.call(service(version_pb2, "Version").Version, Empty())
    identity = await connection.call(service(pb, "Introspection").Server, Empty())
    return Server(version=version.version, revision=version.revision, uuid=identity.uuid, pid=identity.pid)
