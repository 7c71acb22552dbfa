"""Is an image the same tree whichever way it is unpacked? ``python -m tests.images.same LAYOUT [NAME]``, as root.

LAYOUT is an OCI image layout, into which ``skopeo copy docker://IMAGE oci:LAYOUT:NAME`` brings any image. Its layers
are unpacked by GNU tar, extracted by us, and made EROFS files over each other by us; status 1 and a line for each
difference. Takes the disk space of all three, in the directory for temporary files, and the memory of the largest
layer.
"""

import argparse
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtimed.diff import compression
from tests.images.compare import differences
from tests.images.stacks import Extracted, Indexed

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class WithTar:
    """GNU tar, and what an image layer says beyond tar: whiteouts, and entries of another kind than is there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def add(self, archive: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(archive), errorlevel=2) as members:
            for member in members:
                self._make_way(member)
        options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--exclude=.wh.*"]
        subprocess.run(["tar", "-C", self.root, "-p", *options, "-xf", "-"], input=archive, check=True)

    def _make_way(self, member: tarfile.TarInfo) -> None:
        path = self.root / member.name.lstrip("/")
        if path.name == _OPAQUE:
            for below in path.parent.iterdir() if path.parent.is_dir() else ():
                _remove(below)
        elif path.name.startswith(_WHITEOUT):
            _remove(path.with_name(path.name.removeprefix(_WHITEOUT)))
        elif path.is_dir() and not path.is_symlink() and not member.isdir():
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def layers_of(layout: Path, name: str) -> Iterator[bytes]:
    """Yield the uncompressed layers of the image *name* ("": the only one), the lowest first."""
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    wanted = [
        one for one in entries if name in ("", one.get("annotations", {}).get("org.opencontainers.image.ref.name"))
    ]
    if len(wanted) != 1:
        raise SystemExit(f"{layout} has {len(wanted)} images called {name!r}")
    for layer in _manifest(layout, wanted[0])["layers"]:
        with compression.opened(_path(layout, layer), layer["mediaType"]) as stream:
            yield b"".join(iter(lambda: bytes(stream.read(1 << 20)), b""))


def _manifest(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_path(layout, descriptor).read_text())
    if "manifests" not in document:
        return document
    own = _ARCHITECTURES.get(platform.machine(), "")
    return _manifest(layout, next(one for one in document["manifests"] if one["platform"]["architecture"] == own))


def _path(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout / "blobs" / str(descriptor["digest"]).replace(":", "/")


def compare(layout: Path, name: str, scratch: Path) -> list[str]:
    """Return what differs, a line each; *scratch* is an empty directory, on a file system that holds EROFS files."""
    began = time.time_ns()
    with Extracted(scratch / "extracted") as extracted, Indexed(scratch / "indexed") as indexed:
        tar = WithTar(scratch / "tar")
        for layer in layers_of(layout, name):
            for way in (tar, extracted, indexed):
                way.add(layer)
        return [line for tree in (extracted.view(), indexed.view()) for line in differences(tar.root, tree, now=began)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.images.same", description=__doc__)
    parser.add_argument("layout", type=Path)
    parser.add_argument("name", nargs="?", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtd-same-") as scratch:
        lines = compare(arguments.layout, arguments.name, Path(scratch))
    print("\n".join(lines) or "the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
