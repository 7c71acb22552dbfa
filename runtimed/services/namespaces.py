"""containerd.services.namespaces.v1: namespaces and their labels over gRPC."""

from google.protobuf.empty_pb2 import Empty

from runtimed.api import events_pb2
from runtimed.api import namespaces_pb2 as pb
from runtimed.metadata import namespaces
from runtimed.metadata.db import Database
from runtimed.metadata.namespaces import Namespace
from runtimed.services.context import Context, Publisher
from runtimed.services.fieldmask import paths_of


class NamespacesService:
    """The one service that needs no namespace header: the namespace is in the request."""

    def __init__(self, db: Database, events: Publisher) -> None:
        self._db = db
        self._events = events

    async def Get(self, request: pb.GetNamespaceRequest, context: Context) -> pb.GetNamespaceResponse:
        """Answer the labels; none, and OK, for a namespace that is not there: dockerd asks before it writes."""
        return pb.GetNamespaceResponse(namespace=_to_proto(self._db.look_up(namespaces.get, request.name)))

    async def List(self, request: pb.ListNamespacesRequest, context: Context) -> pb.ListNamespacesResponse:
        filters = [request.filter] if request.filter else []
        found = await self._db.read(namespaces.list, filters)
        return pb.ListNamespacesResponse(namespaces=map(_to_proto, found))

    async def Create(self, request: pb.CreateNamespaceRequest, context: Context) -> pb.CreateNamespaceResponse:
        stored = await self._db.write(namespaces.create, _from_proto(request.namespace))
        event = events_pb2.NamespaceCreate(name=stored.name, labels=stored.labels)
        self._events.publish(stored.name, "/namespaces/create", event)
        return pb.CreateNamespaceResponse(namespace=_to_proto(stored))

    async def Update(self, request: pb.UpdateNamespaceRequest, context: Context) -> pb.UpdateNamespaceResponse:
        paths = paths_of(request.update_mask)
        stored = await self._db.write(namespaces.update, _from_proto(request.namespace), paths)
        event = events_pb2.NamespaceUpdate(name=stored.name, labels=stored.labels)
        self._events.publish(stored.name, "/namespaces/update", event)
        return pb.UpdateNamespaceResponse(namespace=_to_proto(stored))

    async def Delete(self, request: pb.DeleteNamespaceRequest, context: Context) -> Empty:
        await self._db.write(namespaces.delete, request.name)
        self._events.publish(request.name, "/namespaces/delete", events_pb2.NamespaceDelete(name=request.name))
        return Empty()


def _from_proto(namespace: pb.Namespace) -> Namespace:
    return Namespace(namespace.name, dict(namespace.labels))


def _to_proto(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=namespace.labels)
