"""runtime.v1.ImageService: convert, call, convert."""

from collections.abc import AsyncIterator

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri.convert import Context, pieces
from runtimed.cri.filesystems import Filesystems
from runtimed.cri.handlers import Handlers
from runtimed.cri.images import Auth, Image, Images, info_of, user_of
from runtimed.errors import InvalidArgument


class ImageService:
    """Lists, pulls and removes images."""

    def __init__(self, images: Images, handlers: Handlers, filesystems: Filesystems) -> None:
        self._images = images
        self._handlers = handlers
        self._filesystems = filesystems

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=await self._list(request.filter))

    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Context
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        for some in pieces(await self._list(request.filter)):
            yield pb.StreamImagesResponse(images=some)

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Context) -> pb.ImageStatusResponse:
        """Answer with the image, or with nothing if it is not here; verbosely also with how far pulls of it are."""
        name = _name(request.image)
        image = await self._images.find(name)
        info = info_of(image) if image and request.verbose else {}
        if request.verbose and (pulls := self._images.pulls(name)):
            info["pulls"] = msgspec.json.encode(pulls).decode()
        return pb.ImageStatusResponse(image=_to_proto(image) if image else None, info=info)

    async def PullImage(self, request: pb.PullImageRequest, context: Context) -> pb.PullImageResponse:
        auth = Auth(
            username=request.auth.username,
            password=request.auth.password,
            auth=request.auth.auth,
            server_address=request.auth.server_address,
            identity_token=request.auth.identity_token,
            registry_token=request.auth.registry_token,
        )
        snapshotter = self._handlers.get(request.image.runtime_handler).snapshotter
        image = await self._images.pull(_name(request.image), auth, snapshotter)
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Context) -> pb.RemoveImageResponse:
        await self._images.remove(_name(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Context) -> pb.ImageFsInfoResponse:
        usages = [
            pb.FilesystemUsage(
                timestamp=usage.at,
                fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
                used_bytes=pb.UInt64Value(value=usage.size),
                inodes_used=pb.UInt64Value(value=usage.inodes),
            )
            for usage in await self._filesystems.usages()
        ]
        return pb.ImageFsInfoResponse(image_filesystems=usages, container_filesystems=usages)

    async def _list(self, wanted: pb.ImageFilter) -> list[pb.Image]:
        if not wanted.image.image:
            return [_to_proto(image) for image in await self._images.list()]
        image = await self._images.find(wanted.image.image)
        return [] if image is None else [_to_proto(image)]


def _name(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("image: a name, or an image's ID, is required")
    return spec.image


def _to_proto(image: Image) -> pb.Image:
    uid, username = user_of(image.contents.config)
    return pb.Image(
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.contents.size,
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        spec=pb.ImageSpec(image=image.id),
        pinned=image.pinned,
    )
