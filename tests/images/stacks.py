"""The same layers twice: extracted over each other, and as EROFS files over each other. Needs root."""

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from runtimed.diff import erofs
from runtimed.diff.apply import apply
from runtimed.diff.erofs_lower import LowerTree
from runtimed.mounts import Mount, mounted


class Stack:
    """Layers over each other in *directory*, a context manager: what is mounted goes when the block ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._layers: list[Path] = []  # what shows each one, the lowest first
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def view(self) -> Path:
        """Return a directory that shows all layers, merged."""
        if len(self._layers) == 1:
            return self._layers[0]
        made = self._directory / f"{len(self._layers)}-view"
        return made if made.exists() else self._overlay(self._make("view"), [])

    def _overlay(self, target: Path, options: list[str]) -> Path:
        lower = ":".join(str(layer) for layer in reversed(self._layers))
        mount = Mount("overlay", "overlay", options=(f"lowerdir={lower}", *options))
        return self._held.enter_context(mounted([mount], target))

    def _make(self, name: str) -> Path:
        made = self._directory / f"{len(self._layers)}-{name}"
        made.mkdir(parents=True)
        return made


class Extracted(Stack):
    """A directory per layer."""

    def add(self, archive: bytes) -> None:
        """Extract the layer *archive* on top, as the snapshotter has it done."""
        upper = self._make("upper")
        if self._layers:
            found = self.view().stat()
            os.chown(upper, found.st_uid, found.st_gid)
            upper.chmod(found.st_mode & 0o7777)
            root = self._overlay(self._make("root"), [f"upperdir={upper}", f"workdir={self._make('work')}"])
        else:
            root = upper
        apply(io.BytesIO(archive), root)
        self._layers.append(upper)


class Indexed(Stack):
    """An EROFS file per layer."""

    def add(self, archive: bytes) -> Path:
        """Write and mount the layer *archive* on top; return its file."""
        image = self._directory / f"{len(self._layers)}.erofs"
        image.parent.mkdir(exist_ok=True)
        self.write(archive, image)
        mount = Mount("erofs", str(image), options=("ro",))
        self._layers.append(self._held.enter_context(mounted([mount], self._make("layer"))))
        return image

    def write(self, archive: bytes, image: Path) -> None:
        """Write the layer *archive* as the file *image*, which could go on top."""
        with ExitStack() as held:
            write(archive, image, held.enter_context(LowerTree(self.view())) if self._layers else None)


def write(archive: bytes, image: Path, lower: LowerTree | None = None) -> erofs.Written:
    """Write *archive* as the new file *image*."""
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return erofs.write(io.BytesIO(archive), fd, lower)
    finally:
        os.close(fd)
