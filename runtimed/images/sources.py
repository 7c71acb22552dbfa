"""Where images come from: a registry, or an OCI image layout in a directory."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from runtimed.errors import DataLoss, InvalidArgument, NotFound, os_errors
from runtimed.metadata.content import Ingest
from runtimed.metadata.images import REF_NAME
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.reference import Reference
from runtimed.registry import fetcher
from runtimed.registry.client import RegistryClient
from runtimed.registry.resolver import resolve
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

_CHUNK = 1 << 20  # bytes copied at a time

Progress = Callable[[int], None]


class Source(Protocol):
    """One image somewhere else. An asynchronous context manager; what it does is valid while it is open.

    All bytes are verified against the descriptor they were asked by, or are when the ingest is committed. Errors name
    the reference and say what to do.
    """

    reference: Reference

    @property
    def distribution(self) -> tuple[str, str]:
        """The registry host and repository that blobs can be had from again; ("", "") if from none."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def resolve(self) -> Descriptor:
        """Return the root descriptor. Raises NotFound, and what hinders reaching the source."""

    async def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a small blob or manifest whole. Raises InvalidArgument if it is larger than *limit* bytes."""

    async def fetch(self, descriptor: Descriptor, ingest: Ingest, progress: Progress) -> None:
        """Bring a blob into *ingest*, from its offset on; it is not committed. *progress* hears the bytes there are.

        Raises:
            DataLoss, FailedPrecondition: wrong bytes; the ingest is to be aborted. After any other error what has come
                may be kept.
        """


class RegistrySource:
    """An image in a registry."""

    def __init__(self, client: RegistryClient, pool: Pool) -> None:
        self.reference = client.reference
        self._client = client
        self._pool = pool
        self._root: tuple[Descriptor, bytes] | None = None

    @property
    def distribution(self) -> tuple[str, str]:
        return self.reference.host, self.reference.repository

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, exc, traceback)

    async def resolve(self) -> Descriptor:
        self._root = await resolve(self._client)
        return self._root[0]

    async def read(self, descriptor: Descriptor, limit: int) -> bytes:
        if self._root and self._root[0].digest == descriptor.digest:
            return self._root[1]  # came with its digest
        is_manifest = descriptor.media_type in manifest.MANIFESTS | manifest.INDEXES
        return await fetcher.read(self._client, "manifests" if is_manifest else "blobs", descriptor, limit)

    async def fetch(self, descriptor: Descriptor, ingest: Ingest, progress: Progress) -> None:
        await fetcher.fetch(self._client, self._pool, descriptor, ingest, progress)


class _Layout(msgspec.Struct):
    manifests: tuple[Descriptor, ...]


class LayoutSource:
    """An image in an OCI image layout whose index names it by its full reference."""

    def __init__(self, directory: Path, reference: Reference) -> None:
        self.reference = reference
        self._directory = directory

    @property
    def distribution(self) -> tuple[str, str]:
        return "", ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    async def resolve(self) -> Descriptor:
        return await blocking(self._resolve)

    async def read(self, descriptor: Descriptor, limit: int) -> bytes:
        return await blocking(self._read, descriptor, limit)

    async def fetch(self, descriptor: Descriptor, ingest: Ingest, progress: Progress) -> None:
        await blocking(self._copy, descriptor, ingest)
        progress(descriptor.size)

    def _resolve(self) -> Descriptor:
        index = self._directory / "index.json"
        with os_errors(f"image layout {self._directory}"):
            data = index.read_bytes()
        try:
            entries = msgspec.json.decode(data, type=_Layout).manifests
        except msgspec.DecodeError as exc:
            raise DataLoss(f"image layout {index}: {exc}") from None
        named = {entry.annotations.get(REF_NAME, ""): entry for entry in entries}
        found = named.get(str(self.reference))
        if self.reference.digest:
            found = next((entry for entry in entries if entry.digest == self.reference.digest), None)
        if found is None:
            raise NotFound(f"image {self.reference}: there are {', '.join(sorted(filter(None, named))) or 'none'}")
        # The name is the layout's business; as the image's target the entry is like one from a registry.
        return Descriptor(media_type=found.media_type, digest=found.digest, size=found.size)

    def _read(self, descriptor: Descriptor, limit: int) -> bytes:
        subject = f"image layout {self._directory}"
        if descriptor.size > limit:
            raise InvalidArgument(f"{subject}: {descriptor.digest} has more than {limit} bytes")
        with os_errors(f"{subject}: {descriptor.digest}"), self._blob(descriptor).open("rb") as file:
            data = file.read(descriptor.size + 1)
        fetcher.verify(data, descriptor, subject)
        return data

    def _copy(self, descriptor: Descriptor, ingest: Ingest) -> None:
        with (
            os_errors(f"image layout {self._directory}: {descriptor.digest}"),
            self._blob(descriptor).open("rb") as file,
        ):
            file.seek(ingest.offset, os.SEEK_SET)
            while chunk := file.read(_CHUNK):
                ingest.write(chunk)

    def _blob(self, descriptor: Descriptor) -> Path:
        return self._directory.joinpath("blobs", *digests.split(descriptor.digest))
