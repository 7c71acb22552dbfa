"""Builds the embedded images as one OCI image layout: ``python -m runtimed.embedded.build DIRECTORY``.

Runs when the package is built (hatch_hook.py), with nothing but the standard library. The same input gives the same
bytes everywhere: layers are not compressed, since zlib's output differs between its versions.
"""

import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from runtimed.embedded.programs import program

HOST = "runtimed.io"
ARCHITECTURES = ("amd64", "arm64")
_CREATED = "1970-01-01T00:00:00Z"

_CONFIGS: dict[str, dict[str, Any]] = {
    "hello": {"Entrypoint": ["/hello"], "WorkingDir": "/"},
    # The user is the one that Kubernetes' pause image runs as: it needs no rights at all.
    "pause": {"Entrypoint": ["/pause"], "WorkingDir": "/", "User": "65535:65535", "StopSignal": "SIGTERM"},
}


def build(directory: Path) -> None:
    """Write the layout to *directory*, in place of what was there."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "blobs" / "sha256").mkdir(parents=True)
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    manifests = []
    for name in _CONFIGS:
        descriptor = _image(directory, name)
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": f"{HOST}/{name}:latest"}
        manifests.append(descriptor)
    (directory / "index.json").write_bytes(_json(_index(manifests)))


def _image(directory: Path, name: str) -> dict[str, Any]:
    manifests = []
    for architecture in ARCHITECTURES:
        layer = _layer(name, program(name, architecture))
        config = {
            "created": _CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {**_CONFIGS[name], "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": _CREATED, "created_by": "runtimed.embedded"}],
        }
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(directory, "application/vnd.oci.image.config.v1+json", _json(config)),
            "layers": [_blob(directory, "application/vnd.oci.image.layer.v1.tar", layer)],
        }
        descriptor = _blob(directory, manifest["mediaType"], _json(manifest))
        manifests.append({**descriptor, "platform": {"architecture": architecture, "os": "linux"}})
    index = _index(manifests)
    return _blob(directory, index["mediaType"], _json(index))


def _index(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }


def _layer(name: str, executable: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(executable)
        entry.mode = 0o755
        tar.addfile(entry, io.BytesIO(executable))
    return buffer.getvalue()


def _blob(directory: Path, media_type: str, data: bytes) -> dict[str, Any]:
    encoded = hashlib.sha256(data).hexdigest()
    (directory / "blobs" / "sha256" / encoded).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


if __name__ == "__main__":
    build(Path(sys.argv[1]))
