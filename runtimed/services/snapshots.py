"""containerd.services.snapshots.v1.Snapshots."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from runtimed.api import events_pb2, types_pb2
from runtimed.api import snapshots_pb2 as pb
from runtimed.errors import InvalidArgument, NotFound, Unimplemented
from runtimed.images.repair import Repairer
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount
from runtimed.services.context import Context, Publisher, lease_of, namespace_of, timestamp
from runtimed.services.fieldmask import paths_of
from runtimed.snapshots.snapshotter import Info, Kind
from runtimed.threads import blocking

_PAGE = 100  # records in one message of List

_KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


class SnapshotsService:
    """Hands each call to the snapshotter it names, as the request's namespace sees it."""

    def __init__(
        self, snapshotters: Mapping[str, Snapshots], events: Publisher, repairer: Repairer | None = None
    ) -> None:
        self._snapshotters = snapshotters
        self._events = events
        self._repairer = repairer

    async def Prepare(self, request: pb.PrepareSnapshotRequest, context: Context) -> pb.PrepareSnapshotResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        await self._ensure(namespace, snapshots, request.parent)
        mounts = await blocking(
            snapshots.prepare, namespace, request.key, request.parent, dict(request.labels), lease_of(context)
        )
        self._events.publish(
            namespace,
            "/snapshot/prepare",
            events_pb2.SnapshotPrepare(key=request.key, parent=request.parent, snapshotter=request.snapshotter),
        )
        return pb.PrepareSnapshotResponse(mounts=_mounts_to_proto(mounts))

    async def View(self, request: pb.ViewSnapshotRequest, context: Context) -> pb.ViewSnapshotResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        await self._ensure(namespace, snapshots, request.parent)
        mounts = await blocking(
            snapshots.view, namespace, request.key, request.parent, dict(request.labels), lease_of(context)
        )
        return pb.ViewSnapshotResponse(mounts=_mounts_to_proto(mounts))

    async def Mounts(self, request: pb.MountsRequest, context: Context) -> pb.MountsResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        await self._ensure(namespace, snapshots, request.key)
        return pb.MountsResponse(mounts=_mounts_to_proto(await blocking(snapshots.mounts, namespace, request.key)))

    async def Commit(self, request: pb.CommitSnapshotRequest, context: Context) -> Empty:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        if request.parent and (await blocking(snapshots.stat, namespace, request.key)).parent != request.parent:
            raise Unimplemented(
                f"snapshotter {request.snapshotter!r} cannot commit {request.key!r} onto another parent"
            )
        await blocking(snapshots.commit, namespace, request.name, request.key, dict(request.labels), lease_of(context))
        self._events.publish(
            namespace,
            "/snapshot/commit",
            events_pb2.SnapshotCommit(key=request.key, name=request.name, snapshotter=request.snapshotter),
        )
        return Empty()

    async def Remove(self, request: pb.RemoveSnapshotRequest, context: Context) -> Empty:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        await blocking(snapshots.remove, namespace, request.key, lease_of(context))
        self._events.publish(
            namespace,
            "/snapshot/remove",
            events_pb2.SnapshotRemove(key=request.key, snapshotter=request.snapshotter),
        )
        return Empty()

    async def Stat(self, request: pb.StatSnapshotRequest, context: Context) -> pb.StatSnapshotResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        return pb.StatSnapshotResponse(info=_info_to_proto(await blocking(snapshots.stat, namespace, request.key)))

    async def Update(self, request: pb.UpdateSnapshotRequest, context: Context) -> pb.UpdateSnapshotResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        updated = await blocking(
            snapshots.update, namespace, request.info.name, dict(request.info.labels), paths_of(request.update_mask)
        )
        return pb.UpdateSnapshotResponse(info=_info_to_proto(updated))

    async def List(self, request: pb.ListSnapshotsRequest, context: Context) -> AsyncIterator[pb.ListSnapshotsResponse]:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        infos = await blocking(snapshots.list, namespace, list(request.filters))
        for start in range(0, len(infos), _PAGE):
            yield pb.ListSnapshotsResponse(info=[_info_to_proto(info) for info in infos[start : start + _PAGE]])

    async def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        snapshots, namespace = self._named(request.snapshotter), namespace_of(context)
        usage = await blocking(snapshots.usage, namespace, request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: pb.CleanupRequest, context: Context) -> Empty:
        await blocking(self._named(request.snapshotter).cleanup)
        return Empty()

    async def _ensure(self, namespace: str, snapshots: Snapshots, key: str) -> None:
        """Before a snapshot is used: see that a power cut has not damaged it or what it is built upon."""
        if self._repairer:
            with suppress(NotFound):  # which the operation itself says better
                await self._repairer.ensure(namespace, snapshots, key)

    def _named(self, name: str) -> Snapshots:
        """Return the snapshotter that a request names. InvalidArgument if there is none, as containerd answers."""
        if name in self._snapshotters:
            return self._snapshotters[name]
        there_are = f"there are {', '.join(sorted(self._snapshotters)) or 'none'}"
        if not name:
            raise InvalidArgument(f"snapshotter argument missing; {there_are}")
        raise InvalidArgument(f"snapshotter not loaded: {name}; {there_are}")


def _mounts_to_proto(mounts: Sequence[Mount]) -> list[types_pb2.Mount]:
    return [
        types_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        for mount in mounts
    ]


def _info_to_proto(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )
