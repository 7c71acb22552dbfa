"""Namespaces."""

from collections.abc import AsyncIterator, Mapping

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed.api import namespaces_pb2 as pb
from runtimed.client.connection import Connection, service
from runtimed.client.records import Namespace

_NAMESPACES = service(pb, "Namespaces")


class Namespaces:
    """The namespaces of the daemon."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Namespace:
        """Return it; one that is not there has no labels (containerd, and so does runtimed, tells no difference)."""
        answer = await self._connection.call(_NAMESPACES.Get, pb.GetNamespaceRequest(name=name))
        return _namespace(answer.namespace)

    async def list(self) -> AsyncIterator[Namespace]:
        """Yield all namespaces, by name."""
        for namespace in (await self._connection.call(_NAMESPACES.List, pb.ListNamespacesRequest())).namespaces:
            yield _namespace(namespace)

    async def create(self, name: str, *, labels: Mapping[str, str] | None = None) -> Namespace:
        """Make one; those that are written to make themselves. Raises AlreadyExists."""
        request = pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name, labels=labels))
        return _namespace((await self._connection.call(_NAMESPACES.Create, request)).namespace)

    async def label(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Set these labels beside the others; an empty value removes one."""
        request = pb.UpdateNamespaceRequest(
            namespace=pb.Namespace(name=name, labels=labels),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._connection.call(_NAMESPACES.Update, request)
        return await self.get(name)  # containerd's answer is empty

    async def delete(self, name: str) -> None:
        """Raises NotFound, and FailedPrecondition: it is not empty; the message says what is in it."""
        await self._connection.call(_NAMESPACES.Delete, pb.DeleteNamespaceRequest(name=name))


def _namespace(namespace: pb.Namespace) -> Namespace:
    return Namespace(name=namespace.name, labels=dict(namespace.labels))
