"""The images of the suite ``images``, made once: kept in a registry's storage in a directory that outlives the run."""

import hashlib
import io
import itertools
import os
import secrets
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard
from isal import igzip

from tests.bench.samples import progress
from tests.images.busybox import NAME, PLATFORM, busybox
from tests.images.layouts import OCI_LAYER, Layer, Layout
from tests.registry import Registry, docker_registry

_SOURCES = ("/usr/share", "/usr/lib")
_LARGEST = 8 << 20  # bytes of a file in A


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the images are; those of other sizes are other images."""

    entries: int  # of A and B
    layers: int  # of A and B
    megabytes: int  # of C


class ImageCache:
    """A registry, and what was made for it before; see :func:`image_cache`."""

    def __init__(self, registry: Registry, directory: Path, sizes: Sizes) -> None:
        self._registry = registry
        self._directory = directory
        self._sizes = sizes

    def image(self, name: str) -> str:
        """Return the reference of image *name*, one of A, B, C and D."""
        sizes = self._sizes
        many = f"{sizes.entries}-{sizes.layers}"
        makers: dict[str, tuple[str, Callable[[Path], str]]] = {
            "A": (many, lambda path: _many_files(path, sizes, "gzip")),
            "B": (many, lambda path: _many_files(path, sizes, "zstd")),
            "C": (f"{sizes.megabytes}", lambda path: _one_layer(path, sizes.megabytes)),
            "D": ("1", _busybox),
        }
        tag, make = makers[name]
        repository = f"bench/{name.lower()}"
        if self._registry.has(repository, tag):
            return f"{self._registry.host}/{repository}:{tag}"
        progress(f"making image {name}")
        with tempfile.TemporaryDirectory(prefix="layout-", dir=self._directory) as scratch:
            layout = Path(scratch) / "layout"
            return self._registry.push(layout, f"{repository}:{tag}", source=make(layout))

    def archive(self, name: str) -> Path:
        """Return the docker-archive of image *name*."""
        reference = self.image(name)
        path = self._directory / f"{name.lower()}-{reference.rpartition(':')[2]}.tar"
        if not path.exists():
            progress(f"archiving image {name}")
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            target = f"docker-archive:{part}:bench.example/{name.lower()}:1"
            command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
            subprocess.run([*command, f"docker://{reference}", target], check=True)
            part.rename(path)
        return path


@contextmanager
def image_cache(directory: str, sizes: Sizes) -> Iterator[ImageCache]:
    """Hold a registry with the images that were made in *directory*; without one they are made, and thrown away."""
    with tempfile.TemporaryDirectory(prefix="rtd-", dir="/var/tmp") as scratch:
        place = Path(directory or scratch)
        place.mkdir(parents=True, exist_ok=True)
        with docker_registry(storage=place / "storage") as registry:
            yield ImageCache(registry, place, sizes)


def _busybox(path: Path) -> str:
    busybox(path)
    return NAME


def _many_files(path: Path, sizes: Sizes, compression: str) -> str:
    """Write an image of files that this machine has; return its name in the layout."""
    found = list(itertools.islice(_files(), sizes.entries))
    each = -(-len(found) // sizes.layers)
    layout = Layout(path)
    made = [_layer(layout, found[first : first + each], compression) for first in range(0, len(found), each)]
    layout.image("many", made, platform=PLATFORM, run={"Cmd": ["/bin/true"]})
    return "many"


def _files() -> Iterator[Path]:
    for source in _SOURCES:
        for directory, names, files in os.walk(source):
            names.sort()
            for name in sorted(files):
                path = Path(directory) / name
                if path.is_symlink() or (path.is_file() and path.stat().st_size <= _LARGEST):
                    yield path


def _layer(layout: Layout, paths: Iterable[Path], compression: str) -> Layer:
    """Add a layer of *paths*, each under its own name, with the directories they are in."""

    def fill(archive: tarfile.TarFile) -> None:
        known: set[Path] = set()
        for path in paths:
            for directory in reversed(path.parents[:-1]):
                if directory not in known:
                    known.add(directory)
                    archive.add(directory, recursive=False)
            archive.add(path, recursive=False)

    return _written(layout, fill, compression)


def _one_layer(path: Path, megabytes: int) -> str:
    """Write an image whose one layer has few files that compress to about six tenths."""
    layout = Layout(path)

    def fill(archive: tarfile.TarFile) -> None:
        size = 64 << 20
        for number in range(-(-megabytes // 64)):
            with tempfile.TemporaryFile() as file:
                for _ in range(size >> 16):
                    file.write(secrets.token_bytes(36 << 10) + b"text that repeats" * ((28 << 10) // 17))
                member = tarfile.TarInfo(f"data/{number}")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)

    layer = _written(layout, fill, "gzip")
    layout.image("big", [layer], platform=PLATFORM, run={"Cmd": ["/bin/true"]})
    return "big"


def _written(layout: Layout, fill: Callable[[tarfile.TarFile], None], compression: str) -> Layer:
    """Add the layer that *fill* puts into a tar, written as it comes."""
    part = layout.root / "part"
    with part.open("wb") as file, _compressing(file, compression) as compressed:
        hashed = _Hashed(compressed)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            fill(archive)
    with part.open("rb") as written:
        digest = f"sha256:{hashlib.file_digest(written, 'sha256').hexdigest()}"
    size = part.stat().st_size
    part.rename(layout.path(digest))
    descriptor = {"mediaType": f"{OCI_LAYER}+{compression}", "digest": digest, "size": size}
    return Layer(descriptor, f"sha256:{hashed.hash.hexdigest()}")


class _Hashed(io.RawIOBase):
    """A file to write to that hashes on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._file.write(data)
        return len(data)


@contextmanager
def _compressing(file: IO[bytes], compression: str) -> Iterator[Any]:
    if compression == "zstd":
        with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as writer:
            yield writer
    else:
        with igzip.IGzipFile(fileobj=file, mode="wb", compresslevel=2) as writer:
            yield writer
