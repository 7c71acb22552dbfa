"""Seeing to it that a blob is in the content store: found there, joined, or fetched."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from runtimed import identifiers, labels
from runtimed.content.store import Info
from runtimed.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
)
from runtimed.images.joining import Joint, Listener
from runtimed.images.progress import Progress, Report, ref_of
from runtimed.images.sources import Source
from runtimed.metadata import leases
from runtimed.metadata.content import Content, Ingest
from runtimed.metadata.db import Database, Tx
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.threads import blocking

_LOCK_LIMIT_S = 60.0  # how long another writer of the same ingest may make no progress
_LOCK_POLL_S = 0.2


class Blobs:
    """Brings blobs into the content store, each once however many pulls want it at a time. One for the whole daemon."""

    def __init__(self, content: Content, db: Database) -> None:
        self._content = content
        self._db = db
        self._running = Joint()

    async def fetch(
        self,
        namespace: str,
        source: Source,
        descriptor: Descriptor,
        parents: tuple[str, ...],
        lease: str,
        report: Report,
        *,
        drops_layers: bool = False,
    ) -> None:
        """See that the blob of *descriptor* is in *namespace*, labelled, and held by *lease*.

        With *drops_layers* a manifest is labelled as one that does not hold its layers.

        A download of it that is running, whosever it is, is waited for; if it fails and was from another repository,
        our own *source* is tried.

        Raises: what the source does; see there for what is kept.
        """
        name = ref_of(descriptor)

        def tell(event: str, progress: int) -> None:
            report(Progress(event=event, name=name, parents=parents, progress=progress, total=descriptor.size,
                            descriptor=descriptor))  # fmt: skip

        async def job(told: Listener) -> None:
            await self._download(namespace, source, descriptor, told, drops_layers)

        # Held first, whether it is here or not: what is collected in between is not here, and a download that is joined
        # may outlive the pull that began it, and its lease.
        await self._db.write(_hold, namespace, lease, descriptor)
        is_here = await self._is_here(namespace, descriptor)
        tell("waiting", 0)
        if is_here:
            await self._label(namespace, source, descriptor, drops_layers)
            tell("already exists", descriptor.size)
            return
        own = source.reference.name
        while not is_here:
            owner = self._running.owner(descriptor.digest) or own
            try:
                await self._running.run(descriptor.digest, job, lambda offset: tell("downloading", offset), own)
            except RuntimedError:
                if owner == own:
                    raise
            is_here = await self._is_here(namespace, descriptor)
        await self._label(namespace, source, descriptor, drops_layers)
        tell("complete", descriptor.size)

    async def _is_here(self, namespace: str, descriptor: Descriptor) -> bool:
        try:
            # The path, not only the record: a file that is missing or too short is written again.
            await blocking(self._content.path, namespace, descriptor.digest)
            info: Info = await blocking(self._content.info, namespace, descriptor.digest)
        except (NotFound, DataLoss):
            return False
        if info.size != descriptor.size:
            raise DataLoss(
                f"{descriptor.digest} has {info.size} bytes, but the image says that it has {descriptor.size}"
            )
        return True

    async def _download(
        self, namespace: str, source: Source, descriptor: Descriptor, told: Listener, drops_layers: bool
    ) -> None:
        ref = ref_of(descriptor)
        try:
            ingest = await self._begin(namespace, ref, descriptor)
        except AlreadyExists:
            return  # another namespace had it
        try:
            marks = await self._fill(ingest, source, descriptor, told, drops_layers)
            with suppress(AlreadyExists):
                await _commit(ingest, descriptor, marks)
        except BaseException as exc:
            arrived = await blocking(_length, ingest)
            await blocking(ingest.close)
            # Bytes that are wrong are wrong for whoever would go on from them, on a full disk they are in the way of
            # what could free it, and no bytes are nothing to go on from.
            if isinstance(exc, DataLoss | FailedPrecondition | ResourceExhausted) or not arrived:
                with suppress(NotFound):
                    await blocking(self._content.abort, namespace, ref)
            raise
        finally:
            await blocking(ingest.close)

    async def _fill(
        self, ingest: Ingest, source: Source, descriptor: Descriptor, told: Listener, drops_layers: bool
    ) -> Mapping[str, str]:
        """Bring the bytes into *ingest* and return the labels that go with them."""
        limit = document_limit(descriptor)
        if not limit:
            await source.fetch(descriptor, ingest, told)
            return _source_label(source, {})
        data = await source.read(descriptor, limit)
        marks = gc_labels(manifest.children(descriptor, data), drops_layers=drops_layers)
        await blocking(ingest.truncate, 0)
        await blocking(ingest.write, data)
        return marks | _source_label(source, {})

    async def _begin(self, namespace: str, ref: str, descriptor: Descriptor) -> Ingest:
        """Open the ingest, waiting for another writer (a client that pulls on its own) while that gets on."""
        offset, since = -1, time.monotonic()
        while True:
            try:
                return await blocking(
                    self._content.begin, namespace, ref, total=descriptor.size, expected=descriptor.digest
                )
            except Unavailable:
                current = await self._offset(namespace, ref)
                if current != offset:
                    offset, since = current, time.monotonic()
                elif time.monotonic() - since > _LOCK_LIMIT_S:
                    raise
                await asyncio.sleep(_LOCK_POLL_S)

    async def _offset(self, namespace: str, ref: str) -> int:
        try:
            status = await blocking(self._content.status, namespace, ref)
        except NotFound:
            return -1
        return int(status.offset)

    async def _label(self, namespace: str, source: Source, descriptor: Descriptor, drops_layers: bool) -> None:
        """Give a blob that was here, perhaps by another's doing, the labels that a pull of ours gives it."""
        info: Info = await blocking(self._content.info, namespace, descriptor.digest)
        wanted = dict(_source_label(source, info.labels))
        if limit := document_limit(descriptor):
            data = await blocking(self._content.read, namespace, descriptor.digest, limit)
            wanted |= gc_labels(manifest.children(descriptor, data), drops_layers=drops_layers)
            if drops_layers:  # what a pull has said that was to keep them
                wanted |= {label: "" for label in info.labels if label.startswith(f"{labels.GC_REF_CONTENT}.l.")}
        missing = {key: value for key, value in wanted.items() if info.labels.get(key) != value}
        if missing:
            paths = [f"labels.{key}" for key in missing]
            await blocking(self._content.update, namespace, descriptor.digest, missing, paths)


def _hold(tx: Tx, namespace: str, lease: str, descriptor: Descriptor) -> None:
    """Let *lease* hold the blob and, until it is one, its ingest."""
    leases.add_resource(tx, namespace, lease, leases.Resource("content", descriptor.digest))
    leases.add_resource(tx, namespace, lease, leases.Resource("ingests", ref_of(descriptor)))


async def _commit(ingest: Ingest, descriptor: Descriptor, marks: Mapping[str, str]) -> None:
    try:
        await blocking(ingest.commit, descriptor.size, descriptor.digest, marks)
    except FailedPrecondition as exc:
        raise DataLoss(str(exc)) from exc


def _length(ingest: Ingest) -> int:
    try:
        return ingest.data_path.stat().st_size
    except FileNotFoundError:
        return 0


def document_limit(descriptor: Descriptor) -> int:
    """Return how large a document may be that is read as a whole; 0 for what is not one."""
    if descriptor.media_type in manifest.INDEXES | manifest.MANIFESTS:
        return manifest.MAX_SIZE
    if descriptor.media_type in manifest.CONFIGS:
        return manifest.MAX_CONFIG_SIZE
    return 0


def gc_labels(children: tuple[Descriptor, ...], *, drops_layers: bool = False) -> dict[str, str]:
    """Return the labels by which a document holds what it refers to, named and numbered as containerd does it."""
    marks: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for child in children:
        if child.media_type in manifest.CONFIGS:
            key = f"{labels.GC_REF_CONTENT}.config"
            if key not in marks:
                marks[key] = child.digest
                continue
        if child.media_type in manifest.INDEXES | manifest.MANIFESTS:
            kind = "m."
        elif child.media_type in manifest.LAYERS or manifest.is_foreign(child):
            kind = "l."
        else:
            kind = ""
        if kind == "l." and drops_layers:
            continue
        number = numbers.get(kind, 0)
        numbers[kind] = number + 1
        marks[f"{labels.GC_REF_CONTENT}.{kind}{number}"] = child.digest
    return marks


def _source_label(source: Source, current: Mapping[str, str]) -> dict[str, str]:
    """Return the label that says which repositories a blob is in; the oldest give way when it becomes too long."""
    host, repository = source.distribution
    if not host:
        return {}
    key = labels.DISTRIBUTION_SOURCE + host
    there = [one for one in current.get(key, "").split(",") if one]
    if repository not in there:
        there.append(repository)
    while len(there) > 1 and len(key) + len(",".join(there)) > identifiers.MAX_LABEL_LENGTH:
        del there[0]
    return {key: ",".join(there)}
