"""What ``docker save`` writes, as an OCI index with manifests; the documents are those that containerd makes of it."""

from collections.abc import Iterable, Iterator

import msgspec

from runtimed.diff.compressing import compressor
from runtimed.diff.compression import Compression, by_magic
from runtimed.errors import InvalidArgument
from runtimed.images.archive import MANIFESTS, Archive
from runtimed.images.staging import Staged, Staging
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_LAYERS = {
    Compression.NONE: manifest.DOCKER_LAYER,
    Compression.GZIP: f"{manifest.DOCKER_LAYER}.gzip",
    Compression.ZSTD: f"{manifest.DOCKER_LAYER}.zstd",
}
_MAX_IMAGES = 1000


class _Image(msgspec.Struct, rename="pascal"):
    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


class _Manifest(msgspec.Struct, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = manifest.DOCKER_MANIFEST
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Index(msgspec.Struct, kw_only=True, rename="camel"):
    schema_version: int = 2
    manifests: tuple[Descriptor, ...]


def convert(archive: Archive, staging: Staging, *, compress: bool) -> bytes:
    """Stage a manifest for each image of *archive* and return the index of them; with *compress*, plain layers too.

    Raises:
        InvalidArgument: documents that are not what they should be, or files that they name and that are not there.
    """
    subject = f"image archive: {MANIFESTS}"
    try:
        images = msgspec.json.decode(archive.manifests or b"[]", type=tuple[_Image, ...])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidArgument(f"{subject}: {exc}") from None
    if len(images) > _MAX_IMAGES:
        raise InvalidArgument(f"{subject} has more than {_MAX_IMAGES} images")
    entries: list[Descriptor] = []
    compressed: dict[str, Staged] = {}
    for image in images:
        descriptor = _manifest(image, archive, staging, compressed if compress else None)
        entries += _named(descriptor, image.repo_tags or ())
    return msgspec.json.encode(_Index(manifests=tuple(entries)))


def _manifest(image: _Image, archive: Archive, staging: Staging, compressed: dict[str, Staged] | None) -> Descriptor:
    found = _find(archive, image.config, "image config")
    config = Descriptor(media_type=manifest.DOCKER_CONFIG, digest=found.digest, size=found.size)
    what = f"image archive: {image.config!r}"
    parsed = manifest.parse_config(config, staging.read(found, manifest.MAX_CONFIG_SIZE, what))
    layers = [_find(archive, name, "layer") for name in image.layers or ()]
    if len(layers) != len(parsed.rootfs.diff_ids or ()):
        raise InvalidArgument(
            f"{what} has {len(parsed.rootfs.diff_ids or ())} diff IDs, but {MANIFESTS} says {len(layers)} layers"
        )
    descriptors = tuple(_layer(layer, archive, staging, compressed) for layer in layers)
    data = msgspec.json.encode(_Manifest(config=config, layers=descriptors))
    digest = digests.of(data)
    archive.files[f"blobs/{digest.replace(':', '/')}"] = staging.add([data], size=len(data), expected=digest)
    platform = platforms.normalize(parsed.platform) if parsed.os and parsed.architecture else None
    return Descriptor(media_type=manifest.DOCKER_MANIFEST, digest=digest, size=len(data), platform=platform)


def _layer(layer: Staged, archive: Archive, staging: Staging, compressed: dict[str, Staged] | None) -> Descriptor:
    kind = by_magic(layer.head)
    if kind is Compression.NONE and compressed is not None and layer.ref:
        if layer.digest not in compressed:
            small = staging.add(_gzipped(staging.pieces(layer)), size=0)
            compressed[layer.digest] = small
            archive.files[f"blobs/{small.digest.replace(':', '/')}"] = small
        layer, kind = compressed[layer.digest], Compression.GZIP
    return Descriptor(media_type=_LAYERS[kind], digest=layer.digest, size=layer.size)


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    gzip = compressor(Compression.GZIP)
    for piece in pieces:
        yield gzip.compress(piece)
    yield gzip.flush()


def _find(archive: Archive, name: str, what: str) -> Staged:
    found = archive.find(name)
    if found is None:
        raise InvalidArgument(f"image archive: {what} {name[:256]!r} is not in it, though {MANIFESTS} names it")
    return found


def _named(descriptor: Descriptor, tags: Iterable[str]) -> Iterator[Descriptor]:
    """Yield the entry of an index for each of an image's names, or one without a name."""
    is_named = False
    for tag in tags:
        is_named = True
        reference = references.parse(tag)
        yield msgspec.structs.replace(
            descriptor, annotations={IMAGE_NAME: str(reference), REF_NAME: reference.tag or reference.object}
        )
    if not is_named:
        yield descriptor
