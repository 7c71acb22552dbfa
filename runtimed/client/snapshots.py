"""Snapshots: trees of files, one on top of the other."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed.api import snapshots_pb2 as pb
from runtimed.api import types_pb2 as types
from runtimed.client import records
from runtimed.client.connection import Connection, service
from runtimed.client.records import Mount, Snapshot, Usage

_SNAPSHOTS = service(pb, "Snapshots")


class Snapshots:
    """The snapshots of one snapshotter in the namespace. Each method may raise NotFound."""

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._connection = connection
        self.snapshotter = snapshotter

    async def stat(self, name: str) -> Snapshot:
        request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=name)
        return _snapshot((await self._connection.call(_SNAPSHOTS.Stat, request)).info)

    async def list(self, *filters: str) -> AsyncIterator[Snapshot]:
        """Yield the snapshots that match any of *filters*."""
        request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter, filters=filters)
        async for answer in self._connection.messages(_SNAPSHOTS.List, request):
            for info in answer.info:
                yield _snapshot(info)

    async def usage(self, name: str) -> Usage:
        request = pb.UsageRequest(snapshotter=self.snapshotter, key=name)
        answer = await self._connection.call(_SNAPSHOTS.Usage, request)
        return Usage(size=answer.size, inodes=answer.inodes)

    async def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        """Begin an active snapshot on top of *parent*, a committed one; return its mounts. Raises AlreadyExists."""
        request = pb.PrepareSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels)
        return _mounts((await self._connection.call(_SNAPSHOTS.Prepare, request)).mounts)

    async def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        """Make a view of *parent*, to be read only; return its mounts. Raises AlreadyExists."""
        request = pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels)
        return _mounts((await self._connection.call(_SNAPSHOTS.View, request)).mounts)

    async def mounts(self, key: str) -> Sequence[Mount]:
        """Return the mounts of an active snapshot or a view."""
        request = pb.MountsRequest(snapshotter=self.snapshotter, key=key)
        return _mounts((await self._connection.call(_SNAPSHOTS.Mounts, request)).mounts)

    async def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Turn the active snapshot *key* into the committed *name*. Raises AlreadyExists."""
        request = pb.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key, labels=labels)
        await self._connection.call(_SNAPSHOTS.Commit, request)

    async def label(self, name: str, labels: Mapping[str, str]) -> Snapshot:
        """Set these labels beside the others; an empty value removes one."""
        request = pb.UpdateSnapshotRequest(
            snapshotter=self.snapshotter,
            info=pb.Info(name=name, labels=labels),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        return _snapshot((await self._connection.call(_SNAPSHOTS.Update, request)).info)

    async def remove(self, key: str) -> None:
        """Raises FailedPrecondition: another snapshot is on top of it."""
        await self._connection.call(_SNAPSHOTS.Remove, pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key))


def _snapshot(info: pb.Info) -> Snapshot:
    return Snapshot(
        name=info.name,
        parent=info.parent,
        kind=pb.Kind.Name(info.kind).lower(),
        labels=dict(info.labels),
        created_at=records.moment(info.created_at),
        updated_at=records.moment(info.updated_at),
    )


def _mounts(messages: Iterable[types.Mount]) -> Sequence[Mount]:
    return [
        Mount(type=mount.type, source=mount.source, target=mount.target, options=tuple(mount.options))
        for mount in messages
    ]
