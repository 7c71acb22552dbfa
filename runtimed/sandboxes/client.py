"""One shim's Sandbox API (containerd.runtime.sandbox.v1) as plain values."""

from pathlib import Path
from typing import Self, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from runtimed.api import sandbox_shim_pb2 as pb
from runtimed.metadata.opaque import Opaque
from runtimed.oci.descriptor import Platform
from runtimed.rpc import ttrpc
from runtimed.sandboxes.controller import NewSandbox, Started, State
from runtimed.tasks.client import Endpoint, Exit
from runtimed.tasks.metrics import Metric

T = TypeVar("T", bound=Message)

_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"


class SandboxClient:
    """The calls about one sandbox on its shim. All raise Unavailable when the shim goes away."""

    def __init__(self, connection: ttrpc.Client, endpoint: Endpoint, id: str) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._id = id
        self.closed = connection.closed

    @classmethod
    async def connect(cls, endpoint: Endpoint, id: str, timeout_s: float) -> Self:
        """Connect to the shim of sandbox *id*. Raises Unavailable, DeadlineExceeded."""
        return cls(await ttrpc.Client.connect(endpoint.path, timeout_s=timeout_s), endpoint, id)

    async def close(self) -> None:
        await self._connection.close()

    async def create(self, bundle: Path, new: NewSandbox) -> None:
        request = pb.CreateSandboxRequest(
            sandbox_id=self._id, bundle_path=str(bundle), netns_path=new.netns_path, annotations=new.annotations
        )
        for mount in new.rootfs:
            request.rootfs.add(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        if new.options:
            request.options.CopyFrom(AnyMessage(type_url=new.options.type_url, value=new.options.value))
        await self._call("CreateSandbox", request, pb.CreateSandboxResponse)

    async def start(self) -> Started:
        found = await self._call("StartSandbox", pb.StartSandboxRequest(sandbox_id=self._id), pb.StartSandboxResponse)
        return Started(
            pid=found.pid,
            created_at=_ns(found.created_at),
            address=f"unix://{self._endpoint.path}",
            version=self._endpoint.version,
            spec=_opaque(found.spec),
        )

    async def platform(self) -> Platform:
        found = (await self._call("Platform", pb.PlatformRequest(sandbox_id=self._id), pb.PlatformResponse)).platform
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def stop(self, timeout_s: float) -> None:
        request = pb.StopSandboxRequest(sandbox_id=self._id, timeout_secs=int(timeout_s))
        await self._call("StopSandbox", request, pb.StopSandboxResponse)

    async def wait(self) -> Exit:
        found = await self._call("WaitSandbox", pb.WaitSandboxRequest(sandbox_id=self._id), pb.WaitSandboxResponse)
        return Exit(pid=0, status=found.exit_status, exited_at=_ns(found.exited_at))

    async def status(self, *, verbose: bool, timeout_s: float | None = None) -> State:
        request = pb.SandboxStatusRequest(sandbox_id=self._id, verbose=verbose)
        found = await self._call("SandboxStatus", request, pb.SandboxStatusResponse, timeout_s)
        return State(
            pid=found.pid,
            state=found.state,
            info=dict(found.info),
            created_at=_ns(found.created_at),
            exited_at=_ns(found.exited_at),
            extra=_opaque(found.extra),
            address=f"unix://{self._endpoint.path}",
            version=self._endpoint.version,
        )

    async def shutdown(self, timeout_s: float) -> None:
        request = pb.ShutdownSandboxRequest(sandbox_id=self._id)
        await self._call("ShutdownSandbox", request, pb.ShutdownSandboxResponse, timeout_s)

    async def metrics(self) -> Metric:
        request = pb.SandboxMetricsRequest(sandbox_id=self._id)
        found = (await self._call("SandboxMetrics", request, pb.SandboxMetricsResponse)).metrics
        data = Opaque(found.data.type_url, found.data.value)
        return Metric(found.id or self._id, _ns(found.timestamp), data)

    async def _call(self, method: str, request: Message, response: type[T], timeout_s: float | None = None) -> T:
        return await self._connection.call(_SERVICE, method, request, response, timeout_s=timeout_s)


def _opaque(value: AnyMessage) -> Opaque | None:
    return Opaque(value.type_url, value.value) if value.type_url else None


def _ns(timestamp: Timestamp) -> int:
    return timestamp.ToNanoseconds()
