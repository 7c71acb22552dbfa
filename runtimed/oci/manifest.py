"""Manifests, indexes and image configs: the documents an image is made of (OCI image-spec; Docker schema 2).

Fields we do not know are ignored. What decides which bytes are run is strict: the media type, the shape that goes with
it, digests and sizes. Of a key that occurs twice the last counts, as it does for Go's encoding/json and so for every
other tool that reads the same bytes.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from runtimed.errors import InvalidArgument, Unimplemented
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor, Platform

MAX_SIZE = 4 << 20  # bytes of a manifest or index; OCI distribution-spec, "Pushing Manifests"
MAX_CONFIG_SIZE = 8 << 20  # bytes of an image config, which carries the history
_MAX_CHILDREN = 10_000  # entries of an index, or layers

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS = frozenset(
    {
        OCI_LAYER,
        f"{OCI_LAYER}+gzip",
        f"{OCI_LAYER}+zstd",
        DOCKER_LAYER,
        f"{DOCKER_LAYER}.gzip",
        f"{DOCKER_LAYER}.zstd",
        f"{DOCKER_LAYER}+zstd",  # containerd's name for it
    }
)
# What a registry is asked for, the general one first.
ACCEPTED = (DOCKER_INDEX, OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST, "*/*;q=0.1")

_SCHEMA_1 = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)")
_FOREIGN = re.compile(
    r"application/vnd\.(?:docker\.image\.rootfs\.foreign|oci\.image\.layer\.nondistributable)\.[a-z0-9.+]*"
)


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An image index, or Docker's manifest list (OCI image-spec image-index.md)."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(default="", name="mediaType")
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An image manifest (OCI image-spec manifest.md)."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(default="", name="mediaType")
    config: Descriptor
    layers: tuple[Descriptor, ...] | None = None  # null is how Go writes no layers
    annotations: dict[str, str] | None = None


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """The layers of an image, uncompressed, from the bottom up."""

    type: str
    diff_ids: tuple[str, ...] | None = None


class Execution(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The ``config`` of an image config: how a container of it is run. Go writes null for what is not set."""

    user: str | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    stop_signal: str | None = None


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An image config (OCI image-spec config.md); everything in it was written by a stranger."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    rootfs: RootFs
    config: Execution | None = None
    created: str | None = None

    @property
    def platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant, os_version=self.os_version)


class _Head(msgspec.Struct, frozen=True):
    """What tells the documents apart: read first, and all that is read of one that is refused."""

    media_type: str = msgspec.field(default="", name="mediaType")
    schema_version: int = msgspec.field(default=0, name="schemaVersion")
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="fsLayers")


_S = TypeVar("_S", bound=msgspec.Struct)


def media_type_of(data: bytes, subject: str) -> str:
    """Return the media type that the document *data* is of, by what it says or else by its shape.

    Raises:
        InvalidArgument: it is not a manifest or an index, or pretends to be both.
    """
    head = _head(data, subject)
    if head.media_type:
        return head.media_type
    return OCI_INDEX if _is_there(head.manifests) else OCI_MANIFEST


def parse_index(descriptor: Descriptor, data: bytes) -> Index:
    """Return the index that *descriptor* points to. Raises InvalidArgument as :func:`children`."""
    _check_head(descriptor, data)
    return _decode(data, Index, f"index {descriptor.digest}")


def parse_manifest(descriptor: Descriptor, data: bytes) -> Manifest:
    """Return the manifest that *descriptor* points to. Raises InvalidArgument as :func:`children`."""
    _check_head(descriptor, data)
    return _decode(data, Manifest, f"manifest {descriptor.digest}")


def parse_config(descriptor: Descriptor, data: bytes) -> ImageConfig:
    """Return the image config that *descriptor* points to, its diff IDs valid digests.

    Raises:
        InvalidArgument: not an image config.
    """
    subject = f"image config {descriptor.digest}"
    if len(data) > MAX_CONFIG_SIZE:
        raise InvalidArgument(f"{subject} is larger than {MAX_CONFIG_SIZE} bytes")
    config = _decode(data, ImageConfig, subject)
    if config.rootfs.type != "layers":
        raise InvalidArgument(f"{subject}: rootfs type {config.rootfs.type[:64]!r} is not 'layers'")
    for diff_id in config.rootfs.diff_ids or ():
        digests.validate(diff_id)
    return config


def children(descriptor: Descriptor, data: bytes) -> tuple[Descriptor, ...]:
    """Return the descriptors in the document *data* that *descriptor* points to: of an index its entries in order, of
    a manifest the config and then the layers from the bottom up, of anything else none.

    Raises:
        InvalidArgument: over 4 MiB, not JSON in UTF-8, of a media type other than the descriptor says, both manifest
            and index, or a child whose digest or size cannot be.
    """
    if descriptor.media_type in INDEXES:
        found: tuple[Descriptor, ...] = parse_index(descriptor, data).manifests
    elif descriptor.media_type in MANIFESTS:
        manifest = parse_manifest(descriptor, data)
        found = (manifest.config, *(manifest.layers or ()))
    else:
        return ()
    if len(found) > _MAX_CHILDREN:
        raise InvalidArgument(f"manifest {descriptor.digest} has more than {_MAX_CHILDREN} entries")
    for child in found:
        digests.validate(child.digest)
        if child.size < 0:
            raise InvalidArgument(f"manifest {descriptor.digest}: the size of {child.digest} is negative")
        if child.digest == descriptor.digest:
            raise InvalidArgument(f"manifest {descriptor.digest} refers to itself")
    return found


def check_layers(descriptor: Descriptor, layers: Sequence[Descriptor]) -> None:
    """Refuse, before anything is fetched, layers of the manifest *descriptor* that could not be unpacked.

    Raises:
        Unimplemented: a foreign layer (its bytes are elsewhere; URLs of an image are never followed), an encrypted one,
            or a media type that is not a layer's.
    """
    for layer in layers:
        if layer.media_type in LAYERS:
            continue
        subject = f"manifest {descriptor.digest}: layer {layer.digest}"
        if is_foreign(layer):
            raise Unimplemented(
                f"{subject} is foreign ({layer.media_type}): its bytes are elsewhere; if your registry has them, set"
                " registry.foreign_layers"
            )
        if layer.media_type.endswith("+encrypted"):
            raise Unimplemented(f"{subject} is encrypted ({layer.media_type[:128]}); decrypt the image first")
        raise Unimplemented(f"{subject} is of media type {layer.media_type[:128]!r}, which is not an image layer")


def is_foreign(descriptor: Descriptor) -> bool:
    """Say whether the bytes of a layer are kept outside of registries (Windows base layers)."""
    return bool(_FOREIGN.fullmatch(descriptor.media_type))


def distributable(descriptor: Descriptor) -> Descriptor:
    """Return the descriptor of a foreign layer as that of any other, without URLs; those of others as they are."""
    if not is_foreign(descriptor):
        return descriptor
    plain = descriptor.media_type.replace(".rootfs.foreign.", ".rootfs.").replace(".nondistributable.", ".")
    return msgspec.structs.replace(descriptor, media_type=plain, urls=())


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain ID of each layer with all below it (OCI image-spec config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digests.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def _check_head(descriptor: Descriptor, data: bytes) -> None:
    subject = f"manifest {descriptor.digest}"
    head = _head(data, subject)
    if head.media_type and head.media_type != descriptor.media_type:
        raise InvalidArgument(
            f"{subject} says it is {head.media_type[:128]!r} but was referred to as {descriptor.media_type[:128]!r}"
        )
    if head.schema_version != 2:
        raise InvalidArgument(f"{subject}: schemaVersion is {head.schema_version}, not 2")
    is_index = _is_there(head.manifests)
    if is_index != (descriptor.media_type in INDEXES):
        raise InvalidArgument(f"{subject} does not have the shape of {descriptor.media_type[:128]!r}")


def _head(data: bytes, subject: str) -> _Head:
    if len(data) > MAX_SIZE:
        raise InvalidArgument(f"{subject} is larger than {MAX_SIZE} bytes")
    head = _decode(data, _Head, subject)
    # containerd refuses both at once since CVE-2021-41190: readers would disagree on what the digest stands for.
    if _is_there(head.manifests) and (_is_there(head.layers) or _is_there(head.config)):
        raise InvalidArgument(f"{subject} is a manifest and an index at once")
    if _SCHEMA_1.fullmatch(head.media_type) or _is_there(head.fs_layers) or head.schema_version == 1:
        raise InvalidArgument(f"{subject} is of Docker's schema 1, which is no longer supported; push the image anew")
    return head


def _is_there(value: msgspec.Raw) -> bool:
    return bytes(value) not in {b"", b"null"}


def _decode(data: bytes, kind: type[_S], subject: str) -> _S:
    try:
        data.decode()  # msgspec does not look into what it skips
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{subject} is not UTF-8: {exc.reason} at byte {exc.start}") from None
    except msgspec.DecodeError as exc:
        raise InvalidArgument(f"{subject}: {exc}") from None
    except RecursionError:
        raise InvalidArgument(f"{subject} is nested too deeply") from None
