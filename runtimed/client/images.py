"""Images: names, and what the daemon does with what they point to."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed.api import images_pb2 as pb
from runtimed.api import transfer_types_pb2 as types
from runtimed.client import records, transfer
from runtimed.client.connection import Connection, service
from runtimed.client.create import defaults
from runtimed.client.documents import find_image
from runtimed.client.records import Credentials, Image, Progress
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references

_IMAGES = service(pb, "Images")
_AHEAD = 8  # messages of an archive that may wait for who takes them
_IMPORTED = "import"  # what images without a name get for one, with their digest

T = TypeVar("T")
Report = Callable[[types.Progress], None]


class Operation(Generic[T]):
    """Something that takes a while. ``await`` it for its result; go through it first to see how it goes on::

        pulling = client.images.pull("busybox")
        async for step in pulling:
            print(step.event, step.name, step.done, step.total)
        image = await pulling

    It begins when it is awaited or gone through, and is given up when that is cancelled or left.
    """

    def __init__(self, work: Callable[[Report], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Future[T] | None = None

    def __await__(self) -> Generator[Any, None, T]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._work(lambda _: None))
        return self._waited().__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._task = task = asyncio.ensure_future(self._work(lambda step: steps.put_nowait(_progress(step))))
        task.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        await self._waited()

    async def _waited(self) -> T:
        assert self._task is not None
        return await self._task


class Images:
    """The images of the namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Image:
        """Return the image called *name*, or what Docker would mean by it. Raises NotFound."""
        return _image(await find_image(self._connection, name))

    async def list(self, *filters: str) -> AsyncIterator[Image]:
        """Yield the images that match any of *filters* (``name~=busybox``), by name."""
        for image in (await self._connection.call(_IMAGES.List, pb.ListImagesRequest(filters=filters))).images:
            yield _image(image)

    async def label(self, name: str, labels: Mapping[str, str]) -> Image:
        """Set these labels beside the others; an empty value removes one. Raises NotFound."""
        found = await find_image(self._connection, name)
        request = pb.UpdateImageRequest(
            image=pb.Image(name=found.name, labels=labels),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        return _image((await self._connection.call(_IMAGES.Update, request)).image)

    async def delete(self, name: str, *, sync: bool = False) -> None:
        """Remove the name; with *sync*, what nothing else holds has gone on return. Raises NotFound."""
        found = await find_image(self._connection, name)
        await self._connection.call(_IMAGES.Delete, pb.DeleteImageRequest(name=found.name, sync=sync))

    def pull(
        self,
        reference: str,
        *,
        platform: str = "",
        snapshotter: str = "",
        plain_http: bool = False,
        credentials: Credentials | None = None,
    ) -> Operation[Image]:
        """Pull an image and unpack it: for *platform* (``linux/arm64``), or what this machine runs.

        The errors are NotFound, Unauthenticated and Unavailable, all of the registry.
        """

        async def work(report: Report) -> Image:
            parsed = references.parse(reference)
            await transfer.pull(
                self._connection,
                parsed,
                platform=platforms.parse(platform) if platform else platforms.host(),
                snapshotter=snapshotter or (await defaults(self._connection))[0],
                plain_http=plain_http,
                credentials=credentials,
                report=report,
            )
            return await self.get(str(parsed))

        return Operation(work)

    def push(
        self,
        name: str,
        reference: str = "",
        *,
        chosen: Sequence[str] = (),
        plain_http: bool = False,
        credentials: Credentials | None = None,
    ) -> Operation[None]:
        """Push the image *name*, as *reference* if that is another; all of it, or for the *chosen* platforms."""

        async def work(report: Report) -> None:
            found = await find_image(self._connection, name)
            await transfer.push(
                self._connection,
                found.name,
                references.parse(reference or found.name),
                chosen=[platforms.parse(one) for one in chosen],
                plain_http=plain_http,
                credentials=credentials,
                report=report,
            )

        return Operation(work)

    async def tag(self, name: str, *names: str) -> None:
        """Let the image *name* have *names* as well. Raises NotFound."""
        found = await find_image(self._connection, name)
        await transfer.tag(self._connection, found.name, [str(references.parse(one)) for one in names])

    async def import_archive(
        self, archive: AsyncIterable[bytes], *, snapshotter: str = "", platform: str = ""
    ) -> Sequence[str]:
        """Import an archive of OCI's or Docker's layout, unpack it if a *snapshotter* is given; return the names."""
        wanted = platforms.parse(platform) if platform else platforms.host()
        unpack = types.UnpackConfiguration(snapshotter=snapshotter)
        unpack.platform.os, unpack.platform.architecture = wanted.os, wanted.architecture
        unpack.platform.variant = wanted.variant
        return await transfer.import_archive(
            self._connection,
            archive,
            prefix=_IMPORTED,
            is_default_prefix=True,
            chosen=[wanted] if platform else [],
            unpacks=[unpack] if snapshotter else [],
            compress=False,
            report=lambda _: None,
        )

    async def export(self, *names: str, platform: str = "") -> AsyncIterator[bytes]:
        """Yield an archive of the images *names*: for this machine's platform, or *platform*, or ``all``."""
        found = [(await find_image(self._connection, name)).name for name in names]
        chosen = [] if platform == "all" else [platforms.parse(platform) if platform else platforms.host()]
        pieces: asyncio.Queue[bytes] = asyncio.Queue(_AHEAD)
        task = asyncio.ensure_future(
            transfer.export_archive(
                self._connection,
                found,
                pieces.put,
                chosen=chosen,
                all_platforms=platform == "all",
                without_docker=False,
                report=lambda _: None,
            )
        )
        try:
            while not (task.done() and pieces.empty()):
                getting = asyncio.ensure_future(pieces.get())
                await asyncio.wait([getting, task], return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
                else:
                    getting.cancel()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        await task


def _image(image: pb.Image) -> Image:
    return Image(
        name=image.name,
        digest=image.target.digest,
        media_type=image.target.media_type,
        size=image.target.size,
        labels=dict(image.labels),
        created_at=records.moment(image.created_at),
        updated_at=records.moment(image.updated_at),
    )


def _progress(step: types.Progress) -> Progress:
    return Progress(event=step.event, name=step.name, done=step.progress, total=step.total)
