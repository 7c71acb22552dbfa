"""What an image is made of, read from the daemon's content store."""

import msgspec

from runtimed.api import content_pb2 as content
from runtimed.api import images_pb2 as images
from runtimed.api import types_pb2 as types
from runtimed.client.connection import Connection, service
from runtimed.errors import InvalidArgument, NotFound
from runtimed.oci import manifest as manifests
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.oci.manifest import Execution, ImageConfig, Manifest

_MAX_DEPTH = 4  # an index in an index is allowed; a chain of them is not an image


class Documents(msgspec.Struct, frozen=True, kw_only=True):
    """An image for one platform."""

    descriptor: Descriptor  # the manifest's
    manifest: Manifest
    config: ImageConfig

    @property
    def execution(self) -> Execution:
        return self.config.config or Execution()

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return self.config.rootfs.diff_ids or ()

    @property
    def chain_id(self) -> str:
        """The committed snapshot that a container's is a child of; "" for an image without layers."""
        chain = manifests.chain_ids(self.diff_ids)
        return chain[-1] if chain else ""

    @property
    def size(self) -> int:
        """Bytes of everything a pull fetches for it."""
        blobs = (self.descriptor, self.manifest.config, *(self.manifest.layers or ()))
        return sum(blob.size for blob in blobs)


async def find_image(client: Connection, name: str) -> images.Image:
    """Return the image called *name*, or what Docker would mean by it. Raises NotFound."""
    stub = service(images, "Images")
    for candidate in _candidates(name):
        try:
            answer = await client.call(stub.Get, images.GetImageRequest(name=candidate))
        except NotFound:
            continue
        return answer.image  # type: ignore[no-any-return]
    error = NotFound(f"image {name!r} is not in namespace {client.namespace!r}")
    error.add_note(f"get it with: rctl pull {name}")
    raise error


def _candidates(name: str) -> list[str]:
    try:
        full = str(references.parse(name))
    except InvalidArgument:
        return [name]  # other clients may have stored any name
    return list(dict.fromkeys((full, name)))


async def documents(client: Connection, image: images.Image, platform: Platform) -> Documents:
    """Read manifest and config of *image* for *platform*.

    Raises:
        NotFound: it has nothing for the platform, or a blob is missing.
        InvalidArgument: the documents are not an image's.
    """
    descriptor = from_proto(image.target)
    for _ in range(_MAX_DEPTH):
        data = await read_blob(client, descriptor, manifests.MAX_SIZE)
        if descriptor.media_type in manifests.INDEXES:
            entries = manifests.parse_index(descriptor, data).manifests
            descriptor = platforms.select(entries, platform, f"image {image.name!r}")
            continue
        manifest = manifests.parse_manifest(descriptor, data)
        raw = await read_blob(client, manifest.config, manifests.MAX_CONFIG_SIZE)
        config = manifests.parse_config(manifest.config, raw)
        if len(config.rootfs.diff_ids or ()) != len(manifest.layers or ()):
            raise InvalidArgument(f"image {image.name!r}: manifest and config do not have the same number of layers")
        if config.architecture and not platforms.matches(config.platform, platform):
            is_for, wanted = platforms.format(config.platform), platforms.format(platform)
            raise NotFound(f"image {image.name!r} has nothing for {wanted}; it is for {is_for}")
        return Documents(descriptor=descriptor, manifest=manifest, config=config)
    raise InvalidArgument(f"image {image.name!r}: its indexes are nested too deeply")


async def read_blob(client: Connection, descriptor: Descriptor, limit: int) -> bytes:
    """Return the blob, which must not exceed *limit* bytes. Raises NotFound, InvalidArgument."""
    data = bytearray()
    request = content.ReadContentRequest(digest=descriptor.digest)
    async for message in client.messages(service(content, "Content").Read, request):
        data += message.data
        if len(data) > limit:
            raise InvalidArgument(f"content {descriptor.digest} is larger than {limit} bytes")
    return bytes(data)


def from_proto(descriptor: types.Descriptor) -> Descriptor:
    """Return the descriptor of a message."""
    return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)


def to_proto(descriptor: Descriptor) -> types.Descriptor:
    """Return the message of a descriptor."""
    return types.Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
