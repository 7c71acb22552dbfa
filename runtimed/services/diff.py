"""containerd.services.diff.v1: layers onto mounts. Making a layer from mounts (Diff) is not offered."""

from collections.abc import Mapping

from runtimed.api import diff_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.diff_pb2_grpc import DiffServicer
from runtimed.errors import about
from runtimed.metadata.content import Content
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount
from runtimed.services.context import Context, Publisher, namespace_of
from runtimed.snapshots.snapshotter import layer_target
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

_APPLIED_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"


class DiffService(DiffServicer):
    """Has layers applied by worker processes.

    It takes *events* as the other services do, and publishes none: containerd has no event for an applied layer.
    """

    def __init__(self, content: Content, pool: Pool, snapshotters: Mapping[str, Snapshots], events: Publisher) -> None:
        self._content = content
        self._pool = pool
        self._snapshotters = [snapshots.snapshotter for snapshots in snapshotters.values()]

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        """Apply the layer to the snapshot of the mounts; the answer's digest is its diff ID.

        A snapshot that is made for unpacking may take it as a file, which its mounts show when they are asked for anew.
        The layer is on disk when this returns, whether or not the request asks to ``sync_fs``. A request that is
        cancelled, or whose time is up, has ended its work before the status goes out.
        """
        blob = await blocking(self._content.path, namespace_of(context), request.diff.digest)
        mounts = [_to_mount(mount) for mount in request.mounts]
        with about(f"layer {request.diff.digest}"):
            target = await blocking(layer_target, self._snapshotters, mounts)
            applied = await self._pool.apply(blob, request.diff.media_type, mounts, target)
        descriptor = types_pb2.Descriptor(media_type=_APPLIED_MEDIA_TYPE, digest=applied.diff_id, size=applied.size)
        return pb.ApplyResponse(applied=descriptor)


def _to_mount(mount: types_pb2.Mount) -> Mount:
    return Mount(type=mount.type, source=mount.source, target=mount.target, options=tuple(mount.options))
