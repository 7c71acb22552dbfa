"""containerd.services.mounts.v1: mounts that the daemon makes for clients."""

from collections.abc import AsyncIterator, Iterable

from google.protobuf.empty_pb2 import Empty

from runtimed.api import mounts_pb2 as pb
from runtimed.api import types_pb2
from runtimed.errors import InvalidArgument
from runtimed.metadata.activations import Activation
from runtimed.mounting.manager import MountManager
from runtimed.mounts import Mount
from runtimed.services.context import Context, lease_of, namespace_of, timestamp
from runtimed.services.fieldmask import paths_of


class MountsService:
    """Activates and deactivates by name; publishes no events, as in containerd."""

    def __init__(self, mounts: MountManager) -> None:
        self._mounts = mounts

    async def Activate(self, request: pb.ActivateRequest, context: Context) -> pb.ActivateResponse:
        made = await self._mounts.activate(
            namespace_of(context),
            request.name,
            from_proto(request.mounts),
            labels=dict(request.labels),
            lease=lease_of(context),
            is_temporary=request.temporary,
        )
        return pb.ActivateResponse(info=_info(made))

    async def Deactivate(self, request: pb.DeactivateRequest, context: Context) -> Empty:
        await self._mounts.deactivate(namespace_of(context), request.name)
        return Empty()

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info(await self._mounts.info(namespace_of(context), request.name)))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        """Change labels; containerd has the call and does not answer it."""
        if not request.info.name:
            raise InvalidArgument("mount name must not be empty")
        namespace, paths = namespace_of(context), paths_of(request.update_mask)
        changed = await self._mounts.update(namespace, request.info.name, dict(request.info.labels), paths)
        return pb.UpdateResponse(info=_info(changed))

    async def List(self, request: pb.ListRequest, context: Context) -> AsyncIterator[pb.ListMessage]:
        for found in await self._mounts.matching(namespace_of(context), list(request.filters)):
            yield pb.ListMessage(info=_info(found))


def from_proto(mounts: Iterable[types_pb2.Mount]) -> list[Mount]:
    """Return what messages say of mounts."""
    return [Mount(mount.type, mount.source, mount.target, tuple(mount.options)) for mount in mounts]


def _info(activation: Activation) -> types_pb2.ActivationInfo:
    info = types_pb2.ActivationInfo(name=activation.name, labels=activation.labels)
    for one in activation.active:
        info.active.add(
            mount=_mount(one.mount), mounted_at=timestamp(one.mounted_at), mount_point=one.mount_point, data=one.data
        )
    info.system.extend(map(_mount, activation.system))
    return info


def _mount(mount: Mount) -> types_pb2.Mount:
    return types_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
