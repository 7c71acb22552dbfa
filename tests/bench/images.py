"""Suite ``images``: pull, unpack and remove, on a fresh ext4 for each run.

Image A has many files in several layers, made of what lies in /usr; B is the same in zstd; C has one large layer of few
files; D is busybox. Extraction fills the inode tables of a file system that has just seen many deletes slowly, so a
used one would punish whoever extracts.
"""

import argparse
import hashlib
import io
import itertools
import os
import secrets
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard
from isal import igzip

from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.bench.sides import Ours, Theirs, run, side
from tests.images.busybox import NAME, PLATFORM, busybox
from tests.images.layouts import OCI_LAYER, Layer, Layout
from tests.registry import Registry, docker_registry

_SOURCES = ("/usr/share", "/usr/lib")
_LARGEST = 8 << 20  # bytes of a file in A
_DISK = 12 << 30  # bytes, sparse
_REMOVED_WITHIN_S = 60.0
_AIMS = {"A": "0.15 wall, 0.20 CPU", "B": "0.15 wall, 0.20 CPU", "C": "0.50 wall, 0.35 CPU", "D": "0.60 wall"}


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of each image."""
    rows: list[Row] = []
    with docker_registry() as registry, tempfile.TemporaryDirectory(prefix="rtd-", dir="/var/tmp") as directory:
        for name, reference in _images(registry, Path(directory), args):
            ways = {GO: partial(_round, Theirs, reference), OURS: partial(_round, Ours, reference)}
            found = alternate(f"image {name}", args.image_runs, ways)
            for who, aim in ((GO, ""), (OURS, _AIMS[name])):
                rows.append(Row.timed(f"{name}: pull and unpack", who, [pull for pull, _ in found[who]], aim=aim))
            for who, aim in ((GO, ""), (OURS, "0.05 wall" if name == "A" else "")):
                removals = [removal for _, removal in found[who] if removal is not None]
                if removals:
                    rows.append(Row.timed(f"{name}: remove", who, removals, aim=aim))
    return rows


def _round(kind: type[Ours] | type[Theirs], reference: str) -> tuple[Sample, Sample | None]:
    """Pull to a fresh file system and remove it again; the second is None if that did not give the space back."""
    with _disk() as disk, side(kind, disk / "root") as daemon:
        empty = os.statvfs(disk)
        pull = daemon.account.run(lambda: run(daemon.pull(reference), daemon), settle=False)
        full = os.statvfs(disk)
        removal = daemon.account.run(lambda: _removed(daemon, reference, disk, empty, full), settle=False)
        gone = _used(disk, empty) < 0.1 * (empty.f_bfree - full.f_bfree)
    return pull, removal if gone else None


def _removed(daemon: Any, reference: str, disk: Path, empty: os.statvfs_result, full: os.statvfs_result) -> None:
    """Remove the image with all that only it needs, and wait until the disk has nine tenths of its space again."""
    run(daemon.ctr("images", "rm", "--sync", reference), daemon)
    deadline = time.monotonic() + (_REMOVED_WITHIN_S if daemon.name == GO else 5.0)
    taken = empty.f_bfree - full.f_bfree
    while _used(disk, empty) >= 0.1 * taken and time.monotonic() < deadline:
        time.sleep(0.01)


def _used(disk: Path, empty: os.statvfs_result) -> int:
    return empty.f_bfree - os.statvfs(disk).f_bfree


@contextmanager
def _disk() -> Iterator[Path]:
    """A fresh ext4 on a loop device."""
    with tempfile.TemporaryDirectory(prefix="rtd-disk-", dir="/var/tmp") as directory:
        file, mount = Path(directory) / "disk", Path(directory) / "mnt"
        mount.mkdir()
        with file.open("wb") as made:
            made.truncate(_DISK)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file], check=True)
        subprocess.run(["mount", "-o", "loop", file, mount], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", mount], check=True)


def _images(registry: Registry, directory: Path, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the name and the reference of each image that is asked for, pushed."""
    makers: dict[str, Callable[[Path], str]] = {
        "A": lambda path: _many_files(path, args.entries, args.layers, "gzip"),
        "B": lambda path: _many_files(path, args.entries, args.layers, "zstd"),
        "C": lambda path: _one_layer(path, args.big_mb),
        "D": lambda path: _busybox(path),
    }
    for name, make in makers.items():
        if name not in (args.only or "ABCD") or (name == "C" and not args.big_mb):
            continue
        layout = directory / name
        yield name, registry.push(layout, f"bench/{name.lower()}:1", source=make(layout))


def _busybox(path: Path) -> str:
    busybox(path)
    return NAME


def _many_files(path: Path, entries: int, layers: int, compression: str) -> str:
    """Write an image of files that this machine has; return its name in the layout."""
    found = list(itertools.islice(_files(), entries))
    each = -(-len(found) // layers)
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
