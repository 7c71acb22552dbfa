"""containerd.services.sandbox.v1.Controller: sandboxes made, watched and ended over gRPC."""

import time

from google.protobuf.any_pb2 import Any

from runtimed.api import sandbox_pb2 as pb
from runtimed.api import types_pb2
from runtimed.errors import InvalidArgument, NotFound
from runtimed.identifiers import validate
from runtimed.metadata import sandboxes as records
from runtimed.metadata.db import Database
from runtimed.metadata.opaque import Opaque
from runtimed.sandboxes.controller import NOT_READY, Controller, NewSandbox
from runtimed.sandboxes.manager import Sandboxes
from runtimed.services.context import Context, namespace_of, timestamp
from runtimed.services.mounts import from_proto as mounts_from_proto
from runtimed.services.sandboxes import from_proto

_UPDATABLE = {"labels", "extensions", "spec", "runtime"}


class SandboxControllerService:
    """Passes each call on to the controller that the request, or the sandbox's record, names."""

    def __init__(self, db: Database, sandboxes: Sandboxes) -> None:
        self._db = db
        self._sandboxes = sandboxes

    async def Create(self, request: pb.ControllerCreateRequest, context: Context) -> pb.ControllerCreateResponse:
        """Make a sandbox as the request says it, or else as its record does."""
        namespace, id = namespace_of(context), validate(request.sandbox_id, "sandbox id")
        if request.HasField("sandbox"):
            sandbox = from_proto(request.sandbox)
            if sandbox.id != id:
                raise InvalidArgument(f"sandbox {id!r}: the sandbox in the request is {sandbox.id!r}")
        else:
            sandbox = await self._db.read(records.get, namespace, id)
        options = request.options
        new = NewSandbox(
            sandbox=sandbox,
            rootfs=mounts_from_proto(request.rootfs),
            options=Opaque(options.type_url, options.value) if options.type_url else None,
            netns_path=request.netns_path,
            annotations=dict(request.annotations),
        )
        await self._sandboxes.create(namespace, new, request.sandboxer)
        return pb.ControllerCreateResponse(sandbox_id=id)

    async def Start(self, request: pb.ControllerStartRequest, context: Context) -> pb.ControllerStartResponse:
        namespace, id = namespace_of(context), request.sandbox_id
        started = await self._sandboxes.start(namespace, id, request.sandboxer)
        return pb.ControllerStartResponse(
            sandbox_id=id,
            pid=started.pid,
            created_at=timestamp(started.created_at),
            address=started.address,
            version=started.version,
            spec=_any(started.spec),
        )

    async def Platform(self, request: pb.ControllerPlatformRequest, context: Context) -> pb.ControllerPlatformResponse:
        found = await (await self._of(request, context)).platform(namespace_of(context), request.sandbox_id)
        return pb.ControllerPlatformResponse(
            platform=types_pb2.Platform(os=found.os, architecture=found.architecture, variant=found.variant)
        )

    async def Stop(self, request: pb.ControllerStopRequest, context: Context) -> pb.ControllerStopResponse:
        """End a sandbox; one that is not there has ended, as in containerd."""
        controller = await self._of(request, context)
        await controller.stop(namespace_of(context), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, context: Context) -> pb.ControllerWaitResponse:
        exit = await (await self._of(request, context)).wait(namespace_of(context), request.sandbox_id)
        return pb.ControllerWaitResponse(exit_status=exit.status, exited_at=timestamp(exit.exited_at))

    async def Status(self, request: pb.ControllerStatusRequest, context: Context) -> pb.ControllerStatusResponse:
        """Say how a sandbox is; one that is not there is not ready, and has just ended, as in containerd."""
        controller, id = await self._of(request, context), request.sandbox_id
        try:
            found = await controller.status(namespace_of(context), id, verbose=request.verbose)
        except NotFound:
            ended = timestamp(time.time_ns())
            return pb.ControllerStatusResponse(sandbox_id=id, state=NOT_READY, exited_at=ended)
        return pb.ControllerStatusResponse(
            sandbox_id=id,
            pid=found.pid,
            state=found.state,
            info=found.info,
            created_at=timestamp(found.created_at) if found.created_at else None,
            exited_at=timestamp(found.exited_at) if found.exited_at else None,
            extra=_any(found.extra),
            address=found.address,
            version=found.version,
        )

    async def Shutdown(self, request: pb.ControllerShutdownRequest, context: Context) -> pb.ControllerShutdownResponse:
        await (await self._of(request, context)).shutdown(namespace_of(context), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, context: Context) -> pb.ControllerMetricsResponse:
        found = await (await self._of(request, context)).metrics(namespace_of(context), request.sandbox_id)
        metrics = types_pb2.Metric(id=found.id, timestamp=timestamp(found.collected_at), data=_any(found.data))
        return pb.ControllerMetricsResponse(metrics=metrics)

    async def Update(self, request: pb.ControllerUpdateRequest, context: Context) -> pb.ControllerUpdateResponse:
        """Tell a controller that the record has changed. None of them has anything to do then, as in containerd."""
        unknown = [path for path in request.fields if path.partition(".")[0] not in _UPDATABLE]
        if unknown:
            raise InvalidArgument(f"sandbox {request.sandbox_id!r}: cannot update {unknown[0][:80]!r}")
        controller = await self._of(request, context)
        await controller.status(namespace_of(context), request.sandbox_id, verbose=False)
        return pb.ControllerUpdateResponse()

    async def _of(self, request: "_Request", context: Context) -> Controller:
        return await self._sandboxes.controller(namespace_of(context), request.sandbox_id, request.sandboxer)


_Request = (
    pb.ControllerPlatformRequest
    | pb.ControllerStopRequest
    | pb.ControllerWaitRequest
    | pb.ControllerStatusRequest
    | pb.ControllerShutdownRequest
    | pb.ControllerMetricsRequest
    | pb.ControllerUpdateRequest
)


def _any(value: Opaque | None) -> Any | None:
    return Any(type_url=value.type_url, value=value.value) if value else None
