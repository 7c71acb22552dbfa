"""containerd.services.sandbox.v1: sandbox records over gRPC."""

from google.protobuf.any_pb2 import Any

from runtimed.api import sandbox_pb2 as pb
from runtimed.api import types_pb2
from runtimed.metadata import sandboxes
from runtimed.metadata.db import Database
from runtimed.metadata.opaque import Opaque
from runtimed.metadata.sandboxes import Sandbox
from runtimed.services.context import Context, namespace_of, timestamp


class SandboxStoreService:
    """Reads and writes sandbox records; as in containerd, without events. What runs is the controller's."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def Create(self, request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        stored = await self._db.write(sandboxes.create, namespace_of(context), from_proto(request.sandbox))
        return pb.StoreCreateResponse(sandbox=to_proto(stored))

    async def Update(self, request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        namespace, given = namespace_of(context), from_proto(request.sandbox)
        stored = await self._db.write(sandboxes.update, namespace, given, tuple(request.fields))
        return pb.StoreUpdateResponse(sandbox=to_proto(stored))

    async def Delete(self, request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        await self._db.write(sandboxes.delete, namespace_of(context), request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        found = await self._db.read(sandboxes.list, namespace_of(context), list(request.filters))
        return pb.StoreListResponse(list=map(to_proto, found))

    async def Get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        found = await self._db.read(sandboxes.get, namespace_of(context), request.sandbox_id)
        return pb.StoreGetResponse(sandbox=to_proto(found))


def from_proto(sandbox: types_pb2.Sandbox) -> Sandbox:
    """Return the record that a message is about; its times are the store's to set."""
    runtime = sandbox.runtime
    return Sandbox(
        id=sandbox.sandbox_id,
        sandboxer=sandbox.sandboxer,
        runtime=runtime.name,
        runtime_options=_from_any(runtime.options) if runtime.HasField("options") else None,
        spec=_from_any(sandbox.spec) if sandbox.HasField("spec") else None,
        extensions={name: _from_any(value) for name, value in sandbox.extensions.items()},
        labels=dict(sandbox.labels),
    )


def to_proto(sandbox: Sandbox) -> types_pb2.Sandbox:
    """Return the message about a record."""
    return types_pb2.Sandbox(
        sandbox_id=sandbox.id,
        sandboxer=sandbox.sandboxer,
        runtime=types_pb2.Sandbox.Runtime(name=sandbox.runtime, options=_to_any(sandbox.runtime_options)),
        spec=_to_any(sandbox.spec),
        extensions={name: Any(type_url=one.type_url, value=one.value) for name, one in sandbox.extensions.items()},
        labels=sandbox.labels,
        created_at=timestamp(sandbox.created_at),
        updated_at=timestamp(sandbox.updated_at),
    )


def _from_any(value: Any) -> Opaque:
    return Opaque(value.type_url, value.value)


def _to_any(value: Opaque | None) -> Any | None:
    return Any(type_url=value.type_url, value=value.value) if value else None
