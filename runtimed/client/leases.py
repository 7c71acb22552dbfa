"""Leases: what holds things against garbage collection."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager

from runtimed.api import leases_pb2 as pb
from runtimed.client import records
from runtimed.client.connection import Connection, service
from runtimed.client.records import Lease, Resource

_LEASES = service(pb, "Leases")


class Leases:
    """The leases of the namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def held(self) -> AbstractAsyncContextManager[str]:
        """Hold what this task makes within the block; yields the ID. It goes with the block, or in an hour."""
        return self._connection.held_lease()

    async def create(self, id: str = "", *, labels: Mapping[str, str] | None = None) -> Lease:
        """Make a lease, with a random ID if none is given. Raises AlreadyExists."""
        answer = await self._connection.call(_LEASES.Create, pb.CreateRequest(id=id, labels=labels))
        return _lease(answer.lease)

    async def delete(self, id: str, *, sync: bool = False) -> None:
        """Let go of what it holds; with *sync*, what nothing else holds has gone on return. Raises NotFound."""
        await self._connection.call(_LEASES.Delete, pb.DeleteRequest(id=id, sync=sync))

    async def list(self, *filters: str) -> AsyncIterator[Lease]:
        """Yield the leases that match any of *filters*."""
        for lease in (await self._connection.call(_LEASES.List, pb.ListRequest(filters=filters))).leases:
            yield _lease(lease)

    async def add(self, id: str, resource: Resource) -> None:
        """Let the lease hold *resource*, which need not be there yet. Raises NotFound: there is no such lease."""
        await self._connection.call(_LEASES.AddResource, pb.AddResourceRequest(id=id, resource=_message(resource)))

    async def remove(self, id: str, resource: Resource) -> None:
        """Let the lease hold *resource* no longer. Raises NotFound: there is no such lease."""
        request = pb.DeleteResourceRequest(id=id, resource=_message(resource))
        await self._connection.call(_LEASES.DeleteResource, request)

    async def resources(self, id: str) -> AsyncIterator[Resource]:
        """Yield what the lease holds. Raises NotFound."""
        answer = await self._connection.call(_LEASES.ListResources, pb.ListResourcesRequest(id=id))
        for resource in answer.resources:
            yield Resource(type=resource.type, id=resource.id)


def _lease(lease: pb.Lease) -> Lease:
    return Lease(id=lease.id, labels=dict(lease.labels), created_at=records.moment(lease.created_at))


def _message(resource: Resource) -> pb.Resource:
    return pb.Resource(type=resource.type, id=resource.id)
