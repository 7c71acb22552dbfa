"""Descriptors: what points to a blob (OCI image-spec descriptor.md)."""

import msgspec


class Platform(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The ``platform`` of an index entry (OCI image-spec image-index.md)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] = msgspec.field(default=(), name="os.features")


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Media type, digest and size (bytes) of a blob. ``digest`` is validated where it is used to reach a blob."""

    media_type: str = msgspec.field(default="", name="mediaType")
    digest: str
    size: int
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = msgspec.field(default="", name="artifactType")
