"""A layer into one EROFS file, in two steps: its bytes, and, when the layers below are there, the index."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from runtimed.diff import erofs, erofs_reader
from runtimed.diff.apply import Applied
from runtimed.diff.compression import Readable
from runtimed.diff.erofs_lower import LowerTree
from runtimed.errors import Aborted
from runtimed.linux.overlayfs import escape, split_lowerdir
from runtimed.linux.tmpfile import link_unnamed, open_unnamed
from runtimed.mounts import Mount, mounted
from runtimed.workers import confinement

_CHUNK = 1 << 20
_LOWERDIR = "lowerdir="


class LayerFile:
    """A file without a name, so that nothing is left of it wherever the process ends."""

    def __init__(self, directory: Path) -> None:
        """Make it on the file system of *directory*. Raises OSError."""
        self._fd = open_unnamed(directory)
        self._received = erofs.Received()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; without a name it is gone."""
        os.close(self._fd)

    def receive(self, layer: Readable) -> Applied:
        """Write the uncompressed *layer*; return its diff ID and size. Raises InvalidArgument, OSError."""
        source = _Hashed(layer)
        size = self.receive_unhashed(source)
        return Applied(f"sha256:{source.hash.hexdigest()}", size)

    def receive_unhashed(self, layer: Readable) -> int:
        """Write the uncompressed *layer*, whose diff ID somebody else finds; return its size. Raises as receive."""
        self._received = erofs.receive(layer, self._fd)
        return self._received.tar_size

    def finish(self, mounts: Sequence[Mount], mountpoint: Path, target: Path) -> None:
        """Add the index, for the active snapshot that *mounts* show, and call the file *target* when it is on disk.

        Raises:
            MustExtract: a file cannot express the layer.
            Aborted: somebody else has changed the snapshot meanwhile.
            OSError
        """
        with ExitStack() as held:
            lower = None
            if below := _below(mounts):
                held.enter_context(confinement.private_mounts())
                lower = held.enter_context(LowerTree(held.enter_context(mounted(below, mountpoint))))
            erofs.index(self._received, self._fd, lower)
        os.fdatasync(self._fd)
        # Not before the block has ended: a file that was opened in another mount namespace cannot be linked.
        try:
            link_unnamed(self._fd, target)
        except (FileExistsError, FileNotFoundError) as exc:
            raise Aborted(f"somebody else changes the snapshot meanwhile: {exc.strerror} {str(target)!r}") from exc


def check(file: Path) -> Applied:
    """Check the index of a finished layer file and return the diff ID and size of the layer that it was made of.

    Raises OSError; DataLoss for what is wrong with it.
    """
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        erofs_reader.check(fd)
        tar, hashed, size = erofs_reader.Image(fd).tar(), hashlib.sha256(), 0
        while data := tar.read(_CHUNK):
            hashed.update(data)
            size += len(data)
    finally:
        os.close(fd)
    return Applied(f"sha256:{hashed.hexdigest()}", size)


class _Hashed:
    """Hashes what is read through it."""

    def __init__(self, layer: Readable) -> None:
        self._layer = layer
        self.hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._layer.read(size)
        self.hash.update(data)
        return data


def _below(mounts: Sequence[Mount]) -> list[Mount]:
    """Return read-only mounts of what an active snapshot is built upon; none if it is built upon nothing."""
    (mount,) = mounts
    if mount.type != "overlay":
        return []
    lowers = [
        lower
        for option in mount.options
        if option.startswith(_LOWERDIR)
        for lower in split_lowerdir(option.removeprefix(_LOWERDIR))
    ]
    if len(lowers) == 1:  # overlayfs needs an upperdir or two lowerdirs
        return [Mount("bind", lowers[0], options=("ro",))]
    others = [option for option in mount.options if not option.startswith((_LOWERDIR, "upperdir=", "workdir="))]
    return [Mount("overlay", "overlay", options=("ro", *others, _LOWERDIR + ":".join(map(escape, lowers))))]
