"""Checkpoints of tasks as blobs: the images that CRIU made, in a tar archive, and the spec of the container.

An archive may come from anywhere. The images are restored as they are, which is for whoever may use the daemon to
decide; but the archive is nothing but files beside each other in a directory, and nothing else is extracted.
"""

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from google.protobuf.message import DecodeError

from runtimed.api import runc_options_pb2
from runtimed.diff.changeset import clean
from runtimed.diff.tar import Kind, TarReader
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, about, os_errors
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.metadata.content import Content, Ingest
from runtimed.metadata.db import Database
from runtimed.oci.descriptor import Descriptor
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import RUNC_OPTIONS, TaskClient, as_any
from runtimed.threads import blocking

IMAGES = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
SPEC = "application/vnd.containerd.container.checkpoint.config.v1+proto"
_OPTIONS = runc_options_pb2.CheckpointOptions.DESCRIPTOR.full_name
_CHUNK = 1 << 20


class Checkpoints:
    """Takes checkpoints to the content store, and from it."""

    def __init__(self, db: Database, content: Content) -> None:
        self._db = db
        self._content = content

    async def take(self, bundle: Bundle, client: TaskClient, options: Opaque, lease: str) -> list[Descriptor]:
        """Save a task; return the blobs, held by *lease*: images and spec. None, if *options* say where images go.

        Raises:
            FailedPrecondition: it does not run, or CRIU is not installed.
            InvalidArgument: *options* are not those of a checkpoint.
            RuntimedError: the runtime's or CRIU's own error.
        """
        given = _checkpoint_options(options)
        if given.image_path:
            await client.checkpoint(given.image_path, options)
            return []
        if given.parent_path:
            raise InvalidArgument("a checkpoint with a parent path needs an image path as well")
        container = await self._db.read(containers.get, bundle.namespace, bundle.id)
        images = bundle.work / f"checkpoint-{secrets.token_hex(4)}"
        try:
            with os_errors(f"checkpoint of task {bundle.id}"):
                await blocking(images.mkdir, mode=0o700)
            await client.checkpoint(str(images), options)
            return await blocking(self._store, bundle, images, as_any(container.spec), lease)
        finally:
            await blocking(shutil.rmtree, images, ignore_errors=True)

    async def place(self, bundle: Bundle, descriptor: Descriptor | None, options: Opaque) -> str:
        """Return the directory with the images that a new task is to be restored from, "" if it is not to be.

        It is the one that *options* name, or one in the bundle's work directory with what is in the archive.

        Raises:
            InvalidArgument: the descriptor is of something else, or its blob is no such archive.
            NotFound: there is no such blob.
        """
        if options.type_url.rpartition("/")[2] == RUNC_OPTIONS:
            with suppress(DecodeError):  # which others complain about
                if path := runc_options_pb2.Options.FromString(options.value).criu_image_path:
                    return path
        if descriptor is None:
            return ""
        if descriptor.media_type != IMAGES:
            raise InvalidArgument(f"checkpoint {descriptor.digest} is of type {descriptor.media_type!r}, not {IMAGES}")
        images = bundle.work / "checkpoint"
        await blocking(self._extract, bundle.namespace, descriptor.digest, images)
        return str(images)

    def _store(self, bundle: Bundle, images: Path, spec: bytes, lease: str) -> list[Descriptor]:
        ref = f"checkpoint-{bundle.id}-{secrets.token_hex(8)}"
        with self._ingest(bundle.namespace, f"{ref}-images", lease) as ingest:
            pack(images, ingest)
            stored = [_committed(ingest, IMAGES)]
        with self._ingest(bundle.namespace, f"{ref}-spec", lease) as ingest:
            ingest.write(spec)
            return [*stored, _committed(ingest, SPEC)]

    @contextmanager
    def _ingest(self, namespace: str, ref: str, lease: str) -> Iterator[Ingest]:
        """An ingest that is gone after the block, be it committed or not."""
        with self._content.begin(namespace, ref, lease=lease) as ingest:
            try:
                yield ingest
            except BaseException:
                with suppress(NotFound):
                    self._content.abort(namespace, ref)
                raise

    def _extract(self, namespace: str, digest: str, target: Path) -> None:
        with self._content.open(namespace, digest) as archive, about(f"checkpoint {digest}"):
            unpack(cast("IO[bytes]", archive), target)


def pack(images: Path, ingest: Ingest) -> None:
    """Write the files in the directory *images* to *ingest* as a tar archive."""
    file = cast("IO[bytes]", ingest)  # as far as it is written to
    with (
        os_errors(f"checkpoint {images}"),
        tarfile.open(fileobj=file, mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(images.iterdir()):
            if path.is_file() and not path.is_symlink():
                entry = tarfile.TarInfo(path.name)
                entry.size, entry.mode, entry.mtime = path.stat().st_size, 0o600, int(path.stat().st_mtime)
                with path.open("rb") as image:
                    archive.addfile(entry, image)


def unpack(archive: IO[bytes], target: Path) -> None:
    """Make the directory *target* with the files of a tar archive.

    Raises:
        InvalidArgument: not a tar archive, or something other than files beside each other is in it.
        ResourceExhausted: the disk is full.
    """
    reader = TarReader(archive.read)
    with os_errors(f"checkpoint {target}"):
        target.mkdir(mode=0o700)
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for entry in reader:
                parent, name = clean(entry.name)
                if not name:
                    continue  # the directory itself
                if parent or entry.kind is not Kind.FILE:
                    raise InvalidArgument(f"{entry.kind} {_shown(entry.name)} is nothing that CRIU makes")
                _write(directory, name, entry.size, reader)
        finally:
            os.close(directory)


def _write(directory: int, name: bytes, size: int, reader: TarReader) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=directory)
    except FileExistsError:
        raise InvalidArgument(f"file {_shown(name)} is there twice") from None
    try:
        for offset, piece in reader.contents():
            written = 0
            while written < len(piece):
                written += os.pwrite(fd, piece[written:], offset + written)
        os.truncate(fd, size)
    finally:
        os.close(fd)


def _shown(name: bytes) -> str:
    return repr(name[:100].decode(errors="backslashreplace"))


def _committed(ingest: Ingest, media_type: str) -> Descriptor:
    descriptor = Descriptor(media_type=media_type, digest=ingest.digest(), size=ingest.offset)
    with suppress(AlreadyExists):
        ingest.commit(descriptor.size, descriptor.digest)
    return descriptor


def _checkpoint_options(options: Opaque) -> runc_options_pb2.CheckpointOptions:
    """Return *options* as far as the daemon looks into them; those of another runtime are its shim's affair."""
    if options.type_url.rpartition("/")[2] != _OPTIONS:
        return runc_options_pb2.CheckpointOptions()
    try:
        return runc_options_pb2.CheckpointOptions.FromString(options.value)
    except DecodeError:
        raise InvalidArgument(f"checkpoint options are not a {_OPTIONS}") from None
