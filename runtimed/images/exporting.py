"""Exporting images: an OCI image layout as a tar stream, which ``docker load`` reads as well.

What goes into the archive, in which order and under which name, is what containerd puts there: the layout's version and
index, Docker's ``manifest.json``, the blobs, all sorted by name, without times. The same images are the same bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from runtimed import labels
from runtimed.diff.tar import Entry, Kind
from runtimed.diff.tarwriter import TarWriter
from runtimed.errors import DataLoss, InvalidArgument, NotFound, about
from runtimed.images.archive import INDEX, LAYOUT, MANIFESTS
from runtimed.images.docker_archive import IMAGE_NAME, REF_NAME
from runtimed.images.holding import held_lease
from runtimed.images.progress import Progress, Report
from runtimed.metadata import images
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.metadata.leases import Resource
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.threads import blocking, streaming

_CHUNK = 256 * 1024
_MAX_DEPTH = 4  # indexes in indexes
_BY_HAND = "export it for the platforms that are here, or pull it for all"


class ArchiveSink(Protocol):
    """Where an archive is written to, by one thread; *interrupt* makes the writing fail soon."""

    def write(self, data: bytes | memoryview, /) -> object: ...

    def interrupt(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Which images, and what of them."""

    names: tuple[str, ...]
    platforms: tuple[Platform, ...] = ()  # of an index: the best manifest for each; none: this machine's
    all_platforms: bool = False  # of an index everything; *platforms* then say which of it Docker gets
    without_docker: bool = False  # no manifest.json
    without_foreign: bool = False  # no layers that are not distributable


class Exporter:
    """Exports images of the store."""

    def __init__(self, content: Content, db: Database) -> None:
        self._content = content
        self._db = db

    async def run(self, namespace: str, wanted: Export, sink: ArchiveSink, report: Report) -> None:
        """Write an archive of the images to *sink*, once everything that goes into it is known to be here.

        Raises:
            NotFound: no such image, nothing in it for a platform, or a blob that is not here.
            InvalidArgument: not an image.
            DataLoss: a blob is damaged; the archive is not complete.
            Unavailable: the reader has gone.
        """
        if not wanted.names:
            raise InvalidArgument("no image name: the image store that is the source must be given one")
        report(Progress(event="Exporting"))
        found = [await self._db.read(images.get, namespace, name) for name in wanted.names]
        async with held_lease(self._db, namespace, [Resource("content", image.target.digest) for image in found]):
            plan = await blocking(_Plan, self._content, namespace, found, wanted)
            await streaming(lambda: plan.write(sink), sink.interrupt)
        report(Progress(event="Completed export"))


class _DockerImage(msgspec.Struct, rename="pascal"):
    """An image in Docker's ``manifest.json``."""

    config: str
    repo_tags: list[str] | None
    layers: list[str] | None


class _Plan:
    """The files of an archive. Reading it all into one, which blocks, finds out what is missing."""

    def __init__(self, content: Content, namespace: str, found: Sequence[Image], wanted: Export) -> None:
        self._content = content
        self._namespace = namespace
        self._wanted = wanted
        self._blobs: dict[str, Descriptor] = {}
        self._dockers: dict[str, _DockerImage] = {}  # what Docker could get, by the manifest's digest
        self._docker: dict[str, _DockerImage] = {}  # and what it gets
        entries = []
        for image in found:
            with about(f"image {image.name}"):
                self._add(image)
            entries.append(self._entry(image))
        index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}
        self._documents: dict[str, tuple[int, bytes]] = {
            LAYOUT: (0o444, b'{"imageLayoutVersion":"1.0.0"}'),
            INDEX: (0o644, msgspec.json.encode(index)),
        }
        if self._docker and not wanted.without_docker:
            self._documents[MANIFESTS] = (0o644, msgspec.json.encode(list(self._docker.values())))

    def write(self, sink: ArchiveSink) -> None:
        """Write the archive to *sink*. Blocks."""
        buffered = _Buffered(sink)
        tar = TarWriter(buffered.write)
        blobs = {_path(digest): descriptor for digest, descriptor in self._blobs.items()}
        directories = {"blobs/"} | {path.rpartition("/")[0] + "/" for path in blobs}
        for name in sorted({*self._documents, *blobs, *directories}):
            if name in self._documents:
                mode, data = self._documents[name]
                tar.add(_file(name, mode, len(data)))
                tar.data(data)
            elif name in directories:
                tar.add(_file(name, 0o755, 0, Kind.DIRECTORY))
            else:
                tar.add(_file(name, 0o444, blobs[name].size))
                self._copy(blobs[name], tar)
        tar.close()
        buffered.flush()

    def _entry(self, image: Image) -> Descriptor:
        """Return what the archive's index says of *image*: its name, and where its bytes came from."""
        marks = self._content.info(self._namespace, image.target.digest).labels
        annotations = dict(image.target.annotations)
        annotations |= {key: value for key, value in marks.items() if key.startswith(labels.DISTRIBUTION_SOURCE)}
        annotations |= {IMAGE_NAME: image.name, REF_NAME: _object(image.name)}
        return msgspec.structs.replace(image.target, annotations=dict(sorted(annotations.items())))

    def _add(self, image: Image) -> None:
        target = image.target
        if target.media_type in manifest.INDEXES:
            chosen = self._index(target, 0)
        elif target.media_type in manifest.MANIFESTS:
            self._manifest(target)
            chosen = target
        else:
            raise InvalidArgument(f"media type {target.media_type[:128]!r} is not an image's")
        docker = self._dockers.get(chosen.digest) if chosen else None
        if chosen and docker:
            self._docker[chosen.digest] = docker
            if tag := _familiar(image.name):
                docker.repo_tags = [*(docker.repo_tags or []), tag]

    def _index(self, descriptor: Descriptor, depth: int) -> Descriptor | None:
        """Take an index with what is wanted of it; return the manifest that Docker is to get."""
        if depth == _MAX_DEPTH:
            raise InvalidArgument(f"more than {_MAX_DEPTH} indexes inside each other")
        entries = manifest.children(descriptor, self._read(descriptor))
        wanted = self._wanted.platforms or (platforms.host(),)
        if self._wanted.all_platforms:
            best = next((fit for one in wanted for fit in platforms.matching(entries, one)[:1]), None)
            chosen = list(entries)
        else:
            chosen = [platforms.select(entries, one, "the index") for one in wanted]
            best = chosen[0]  # there is a platform, so there is a choice
        self._blobs[descriptor.digest] = descriptor
        docker: Descriptor | None = None
        for entry in {entry.digest: entry for entry in chosen}.values():
            if entry.media_type in manifest.INDEXES:
                found = self._index(entry, depth + 1)
            else:
                found = entry
                self._manifest(entry)
            if best is not None and entry.digest == best.digest:
                docker = found
        return docker

    def _manifest(self, descriptor: Descriptor) -> None:
        data = self._read(descriptor)
        self._blobs[descriptor.digest] = descriptor
        children = manifest.children(descriptor, data)
        for child in children:
            is_foreign = manifest.is_foreign(child)
            if is_foreign and self._wanted.without_foreign:
                continue
            try:
                self._content.path(self._namespace, child.digest)
            except NotFound:
                if is_foreign:  # its bytes are where its URLs say
                    continue
                raise NotFound(f"{child.digest} is not here; {_BY_HAND}") from None
            self._blobs[child.digest] = child
        if children and children[0].media_type in manifest.CONFIGS:
            layers = [_path(layer.digest) for layer in children[1:]]
            image = _DockerImage(_path(children[0].digest), None, layers or None)
            self._dockers.setdefault(descriptor.digest, image)

    def _read(self, descriptor: Descriptor) -> bytes:
        try:
            return self._content.read(self._namespace, descriptor.digest, manifest.MAX_SIZE)
        except NotFound:
            which = f" for {platforms.format(descriptor.platform)}" if descriptor.platform else ""
            raise NotFound(f"manifest {descriptor.digest}{which} is not here; {_BY_HAND}") from None

    def _copy(self, descriptor: Descriptor, tar: TarWriter) -> None:
        state = hashlib.new(digests.split(descriptor.digest)[0])
        left = descriptor.size
        with self._content.open(self._namespace, descriptor.digest) as file:
            while left and (data := file.read(min(_CHUNK, left))):
                state.update(data)
                tar.data(data)
                left -= len(data)
            if left or file.read(1) or state.hexdigest() != digests.split(descriptor.digest)[1]:
                raise DataLoss(f"content {descriptor.digest} is damaged, or not as long as is said; pull it again")


class _Buffered:
    """Gathers what is small, so that not every header is a message."""

    def __init__(self, sink: ArchiveSink) -> None:
        self._sink = sink
        self._held = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        if len(self._held) + len(data) < _CHUNK:
            self._held += data
            return
        self.flush()
        self._sink.write(data)

    def flush(self) -> None:
        if self._held:
            self._sink.write(bytes(self._held))
            self._held.clear()


def _file(name: str, mode: int, size: int, kind: Kind = Kind.FILE) -> Entry:
    return Entry(name=name.encode(), kind=kind, mode=mode, uid=0, gid=0, size=size, mtime=0, link=b"")


def _path(digest: str) -> str:
    return "blobs/" + "/".join(digests.split(digest))


def _object(name: str) -> str:
    """Return the tag or digest in an image's name; the name if it is no reference."""
    try:
        reference = references.parse(name)
    except InvalidArgument:
        return name
    return reference.tag or reference.digest


def _familiar(name: str) -> str:
    """Return the image's *name* as Docker shows it; "" for one that Docker does not take."""
    try:
        reference = str(references.parse(name))
    except InvalidArgument:
        return ""
    for prefix in ("docker.io/library/", "docker.io/"):
        if reference.startswith(prefix):
            return reference.removeprefix(prefix)
    return reference
