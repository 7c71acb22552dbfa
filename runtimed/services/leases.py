"""containerd.services.leases.v1: leases over gRPC."""

from google.protobuf.empty_pb2 import Empty

from runtimed.api import leases_pb2 as pb
from runtimed.metadata import leases
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Lease, Resource
from runtimed.services.context import Collect, Context, namespace_of, nothing_to_collect, timestamp


class LeasesService:
    """Leases and what they hold. They publish no events, as in containerd."""

    def __init__(self, db: Database, collect: Collect = nothing_to_collect) -> None:
        self._db = db
        self._collect = collect

    async def Create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        """Make a lease; without an ID it gets a random one."""
        lease = Lease(id=request.id, labels=dict(request.labels))
        stored = await self._db.write(leases.create, namespace_of(context), lease)
        return pb.CreateResponse(lease=_to_proto(stored))

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> Empty:
        """Remove a lease; with ``sync``, what only it held has gone when this answers."""
        await self._db.write(leases.delete, namespace_of(context), request.id)
        if request.sync:
            await self._collect()
        return Empty()

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        found = await self._db.read(leases.list, namespace_of(context), list(request.filters))
        return pb.ListResponse(leases=map(_to_proto, found))

    async def AddResource(self, request: pb.AddResourceRequest, context: Context) -> Empty:
        await self._db.write(leases.add_resource, namespace_of(context), request.id, _resource(request.resource))
        return Empty()

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Context) -> Empty:
        await self._db.write(leases.remove_resource, namespace_of(context), request.id, _resource(request.resource))
        return Empty()

    async def ListResources(self, request: pb.ListResourcesRequest, context: Context) -> pb.ListResourcesResponse:
        found = await self._db.read(leases.resources, namespace_of(context), request.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=one.id, type=one.type) for one in found])


def _resource(resource: pb.Resource) -> Resource:
    return Resource(resource.type, resource.id)


def _to_proto(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)
