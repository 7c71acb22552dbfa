"""Builds tiny OCI image layouts: a few files a layer, any platform, valid unless a test spoils it.

layout = Layout(tmp_path / "layout")
layer = layout.layer({"etc/motd": b"hello\\n"})
layout.image("busybox:1", [layer])
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Layer:
    """A layer's descriptor, and what a config says of it."""

    descriptor: dict[str, Any]
    diff_id: str

    @property
    def digest(self) -> str:
        return str(self.descriptor["digest"])


def tar_of(files: Mapping[str, bytes | str | tarfile.TarInfo]) -> bytes:
    """Return a tar: bytes are a file, text is what a symbolic link points to, a TarInfo is the member itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
    return buffer.getvalue()


class Layout:
    """An OCI image layout in a directory, added to image by image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries: list[dict[str, Any]] = []
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self._write_index()

    def blob(self, data: bytes, media_type: str = "application/octet-stream", **fields: Any) -> dict[str, Any]:
        """Add a blob and return its descriptor with *fields* in it."""
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def path(self, digest: str) -> Path:
        return self.root / "blobs/sha256" / digest.partition(":")[2]

    def layer(self, files: Mapping[str, bytes | str | tarfile.TarInfo], compression: str = "gzip") -> Layer:
        """Add a layer, compressed by gzip, zstd or not at all ("")."""
        tar = tar_of(files)
        match compression:
            case "gzip":
                data = gzip.compress(tar, mtime=0)
            case "zstd":
                data = zstandard.compress(tar)
            case _:
                data = tar
        suffix = f"+{compression}" if compression else ""
        return Layer(self.blob(data, OCI_LAYER + suffix), digest_of(tar))

    def manifest(
        self,
        layers: Sequence[Layer],
        *,
        platform: str = "linux/amd64",
        run: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add config and manifest and return the manifest's descriptor; *run* is how it is run.

        *config* and *fields* replace fields of the image config and of the manifest.
        """
        system, architecture, *variant = platform.split("/")
        document = {
            "os": system,
            "architecture": architecture,
            **({"variant": variant[0]} if variant else {}),
            "config": dict(run or {}),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            **(config or {}),
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.json(document, OCI_CONFIG),
            "layers": [layer.descriptor for layer in layers],
            **fields,
        }
        named = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        return self.json(manifest, OCI_MANIFEST, platform=named)

    def image(self, name: str, layers: Sequence[Layer], **options: Any) -> dict[str, Any]:
        """Add a whole image under *name*; see :meth:`manifest`. Returns the manifest's descriptor."""
        descriptor = self.manifest(layers, **options)
        descriptor.pop("platform")
        return self.tag(name, descriptor)

    def index(self, name: str, manifests: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        """Add an image index of *manifests* under *name*."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests), **fields}
        return self.tag(name, self.json(document, OCI_INDEX))

    def json(self, document: Mapping[str, Any], media_type: str, **fields: Any) -> dict[str, Any]:
        return self.blob(json.dumps(document).encode(), media_type, **fields)

    def tag(self, name: str, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """Name a blob in ``index.json``."""
        self._entries.append({**descriptor, "annotations": {REF_NAME: name}})
        self._write_index()
        return dict(descriptor)

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries}
        (self.root / "index.json").write_text(json.dumps(index))
