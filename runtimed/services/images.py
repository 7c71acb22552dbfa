"""containerd.services.images.v1: image names over gRPC."""

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from runtimed.api import images_pb2 as pb
from runtimed.api import types_pb2
from runtimed.metadata import images
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.oci.descriptor import Descriptor
from runtimed.services.context import Collect, Context, Publisher, lease_of, namespace_of, nothing_to_collect, timestamp
from runtimed.services.fieldmask import paths_of


class ImagesService:
    """Reads and writes image names; the blobs behind them are another service's."""

    def __init__(self, db: Database, events: Publisher, collect: Collect = nothing_to_collect) -> None:
        self._db = db
        self._events = events
        self._collect = collect

    async def Get(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        image = self._db.look_up(images.get, namespace_of(context), request.name)
        return pb.GetImageResponse(image=_to_proto(image))

    async def List(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        found = await self._db.read(images.list, namespace_of(context), list(request.filters))
        return pb.ListImagesResponse(images=map(_to_proto, found))

    async def Create(self, request: pb.CreateImageRequest, context: Context) -> pb.CreateImageResponse:
        namespace = namespace_of(context)
        stored = await self._db.write(
            images.create,
            namespace,
            _from_proto(request.image),
            lease=lease_of(context),
            now=_epoch(request.source_date_epoch, is_given=request.HasField("source_date_epoch")),
        )
        self._events.publish(namespace, "/images/create", pb.ImageCreate(name=stored.name, labels=stored.labels))
        return pb.CreateImageResponse(image=_to_proto(stored))

    async def Update(self, request: pb.UpdateImageRequest, context: Context) -> pb.UpdateImageResponse:
        namespace = namespace_of(context)
        stored = await self._db.write(
            images.update,
            namespace,
            _from_proto(request.image),
            paths_of(request.update_mask),
            lease=lease_of(context),
            now=_epoch(request.source_date_epoch, is_given=request.HasField("source_date_epoch")),
        )
        self._events.publish(namespace, "/images/update", pb.ImageUpdate(name=stored.name, labels=stored.labels))
        return pb.UpdateImageResponse(image=_to_proto(stored))

    async def Delete(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        """Remove the name; with ``sync``, what only it held has gone when this answers."""
        namespace = namespace_of(context)
        target = request.target.digest if request.HasField("target") else ""
        await self._db.write(images.delete, namespace, request.name, target)
        self._events.publish(namespace, "/images/delete", pb.ImageDelete(name=request.name))
        if request.sync:
            await self._collect()
        return Empty()


def _epoch(value: Timestamp, *, is_given: bool) -> int | None:
    return value.ToNanoseconds() if is_given else None


def _from_proto(image: pb.Image) -> Image:
    target = image.target
    return Image(
        name=image.name,
        target=Descriptor(
            media_type=target.media_type,
            digest=target.digest,
            size=target.size,
            annotations=dict(target.annotations),
        ),
        labels=dict(image.labels),
    )


def _to_proto(image: Image) -> pb.Image:
    target = image.target
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=types_pb2.Descriptor(
            media_type=target.media_type,
            digest=target.digest,
            size=target.size,
            annotations=target.annotations,
        ),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )
