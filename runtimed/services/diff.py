"""containerd.services.diff.v1: layers onto mounts, and layers of what mounts differ in."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress

from runtimed import labels
from runtimed.api import diff_pb2 as pb
from runtimed.api import types_pb2
from runtimed.content.store import Info
from runtimed.diff.compression import Compression
from runtimed.errors import AlreadyExists, NotFound, Unimplemented, about
from runtimed.metadata.content import Content, Ingest
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount
from runtimed.oci import manifest
from runtimed.services.context import Context, Publisher, lease_of, namespace_of
from runtimed.snapshots.snapshotter import layer_target
from runtimed.threads import blocking
from runtimed.workers.pool import Pool
from runtimed.workers.processors import Processors

_DEFAULT_MEDIA_TYPE = f"{manifest.OCI_LAYER}+gzip"  # the reference's
_COMPRESSIONS = {
    manifest.OCI_LAYER: Compression.NONE,
    f"{manifest.OCI_LAYER}+gzip": Compression.GZIP,
    f"{manifest.OCI_LAYER}+zstd": Compression.ZSTD,
    manifest.DOCKER_LAYER: Compression.NONE,
    f"{manifest.DOCKER_LAYER}.gzip": Compression.GZIP,
    f"{manifest.DOCKER_LAYER}.zstd": Compression.ZSTD,
}


class DiffService:
    """Has layers applied and made by worker processes.

    It takes *events* as the other services do, and publishes none: containerd has no event for a layer.
    """

    def __init__(
        self,
        content: Content,
        pool: Pool,
        snapshotters: Mapping[str, Snapshots],
        events: Publisher,
        processors: Processors,
    ) -> None:
        self._content = content
        self._pool = pool
        self._processors = processors
        self._snapshotters = [snapshots.snapshotter for snapshots in snapshotters.values()]

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        """Apply the layer to the snapshot of the mounts; the answer's digest is its diff ID.

        A snapshot that is made for unpacking may take it as a file, which its mounts show when they are asked for anew.
        The layer is on disk when this returns, whether or not the request asks to ``sync_fs``. A request that is
        cancelled, or whose time is up, has ended its work before the status goes out.
        """
        blob = await blocking(self._content.path, namespace_of(context), request.diff.digest)
        with about(f"layer {request.diff.digest}"):
            mounts = _to_mounts(request.mounts)
            target = await blocking(layer_target, self._snapshotters, mounts)
            payloads = {name: payload.SerializeToString() for name, payload in request.payloads.items()}
            async with self._processors.processed(blob, request.diff.media_type, payloads) as (layer, media_type):
                applied = await self._pool.apply(layer, media_type, mounts, target)
        descriptor = types_pb2.Descriptor(media_type=manifest.OCI_LAYER, digest=applied.diff_id, size=applied.size)
        return pb.ApplyResponse(applied=descriptor)

    async def Diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        """Make a blob of the layer that makes what the right mounts show of what the left ones show.

        Both may be mounted elsewhere; what is written there meanwhile is in the layer or not. Of the media type is
        gzip, if the request does not say. The blob is labelled with its diff ID, besides the request's labels. Nothing
        is left of a request that fails or is cancelled.
        """
        namespace, lease = namespace_of(context), lease_of(context)
        media_type = request.media_type or _DEFAULT_MEDIA_TYPE
        compression = _COMPRESSIONS.get(media_type)
        if compression is None:
            raise Unimplemented(
                f"unsupported diff media type: {media_type[:128]!r}; there are: {', '.join(_COMPRESSIONS)}"
            )
        epoch = request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None
        ref = request.ref or f"diff-{secrets.token_hex(8)}"
        begun: list[Ingest] = []  # filled in the thread: a call that is cancelled meanwhile has begun it nevertheless
        try:
            await blocking(lambda: begun.append(self._content.begin(namespace, ref, lease=lease)))
            ingest = begun[0]
            made = await self._pool.diff(
                _to_mounts(request.left), _to_mounts(request.right), ingest.data_path, compression, epoch
            )
            await blocking(ingest.adopt, made.size, made.digest)
            marks = {**request.labels, labels.UNCOMPRESSED: made.diff_id}
            try:
                await blocking(ingest.commit, made.size, made.digest, marks)
            except AlreadyExists:
                await blocking(self._label, namespace, made.digest, made.diff_id)
        except BaseException:
            for ingest in begun:
                await blocking(ingest.close)
                with suppress(NotFound):
                    await blocking(self._content.abort, namespace, ref)
            raise
        finally:
            for ingest in begun:
                await blocking(ingest.close)
        return pb.DiffResponse(diff=types_pb2.Descriptor(media_type=media_type, digest=made.digest, size=made.size))

    def _label(self, namespace: str, digest: str, diff_id: str) -> None:
        """Say the diff ID of a blob that was here, perhaps without it."""
        info: Info = self._content.info(namespace, digest)
        if labels.UNCOMPRESSED not in info.labels:
            self._content.update(namespace, digest, {labels.UNCOMPRESSED: diff_id}, [f"labels.{labels.UNCOMPRESSED}"])


def _to_mounts(mounts: Sequence[types_pb2.Mount]) -> list[Mount]:
    return [
        Mount(type=mount.type, source=mount.source, target=mount.target, options=tuple(mount.options))
        for mount in mounts
    ]
