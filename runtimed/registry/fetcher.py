"""Blobs: small ones into memory, layers by worker processes into an ingest."""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from runtimed.errors import DataLoss, FailedPrecondition, RuntimedError, Unauthenticated
from runtimed.metadata.content import Ingest
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor
from runtimed.registry.client import Answer, RegistryClient
from runtimed.registry.hosts import Capability
from runtimed.threads import blocking
from runtimed.workers.pool import Fetch, Pool

if TYPE_CHECKING:
    from runtimed.registry.host import HostClient

log = logging.getLogger(__name__)

_E = TypeVar("_E", bound=RuntimedError)


async def read(client: RegistryClient, kind: str, descriptor: Descriptor, limit: int) -> bytes:
    """Return a whole ``manifests`` or ``blobs`` entry of at most *limit* bytes, verified.

    Raises:
        DataLoss: other bytes than *descriptor* says.
        InvalidArgument: larger than *limit*.
        NotFound, Unauthenticated, PermissionDenied, Unavailable: as :meth:`RegistryClient.get`.
    """
    accept = f"{descriptor.media_type}, */*;q=0.1" if descriptor.media_type else "*/*"

    def check(answer: Answer) -> None:
        verify(answer.body, descriptor, f"{client.reference} from its registry")

    answer = await client.get(kind, descriptor.digest, accept=accept, limit=min(limit, descriptor.size), check=check)
    return answer.body


def verify(data: bytes, descriptor: Descriptor, subject: str) -> None:
    """Check *data* against the size and digest of *descriptor*. Raises DataLoss."""
    actual = digests.compute(data, digests.split(descriptor.digest)[0])
    if len(data) != descriptor.size or actual != descriptor.digest:
        raise DataLoss(
            f"{subject}: instead of {descriptor.digest} ({descriptor.size} bytes) came {actual} ({len(data)} bytes)"
        )


async def fetch(
    client: RegistryClient, pool: Pool, descriptor: Descriptor, ingest: Ingest, progress: Callable[[int], None]
) -> None:
    """Bring the bytes of *descriptor* into *ingest*, going on from those that are there.

    A refused token is renewed; a host or connection that fails is tried again for as long as the client's patience
    lasts, which begins anew whenever bytes have come. *progress* is called with the bytes there are.

    Raises:
        FailedPrecondition: other bytes than *descriptor* says; the ingest holds nothing that is worth keeping.
        Unavailable: patience is at its end; what has arrived is kept and the next pull goes on from there.
        NotFound, Unauthenticated, PermissionDenied, ResourceExhausted: as the pool says.
    """
    if ingest.offset > descriptor.size:
        await blocking(ingest.truncate, 0)
    if ingest.offset == descriptor.size:
        return
    job = _Fetch(client, pool, descriptor, ingest, progress)
    digest = await client.anywhere(Capability.PULL, job.attempt, job.arrived)
    await blocking(ingest.adopt, descriptor.size, digest)


class _Fetch:
    """A blob under way."""

    def __init__(
        self,
        client: RegistryClient,
        pool: Pool,
        descriptor: Descriptor,
        ingest: Ingest,
        progress: Callable[[int], None],
    ) -> None:
        self._client = client
        self._pool = pool
        self._descriptor = descriptor
        self._ingest = ingest
        self._progress = progress

    async def arrived(self) -> int:
        """Return how many bytes there are."""
        return await blocking(_length, self._ingest)

    async def attempt(self, host: "HostClient") -> str:
        """Fetch from *host* what is missing and return the digest of all."""
        try:
            return await self._with_tokens(host)
        except FailedPrecondition as exc:
            # Bytes of before (a power cut, a registry that lied then) or a registry that cannot resume: begin anew.
            if self._begun_at == 0:
                raise self._named(exc) from exc
            log.warning(
                "going on with a part of a blob failed; fetching all of it",
                extra={"digest": self._descriptor.digest, "error": str(exc)},
            )
        except RuntimedError as exc:
            raise self._named(exc) from exc
        await blocking(os.truncate, self._ingest.data_path, 0)
        try:
            return await self._with_tokens(host)
        except RuntimedError as exc:
            raise self._named(exc) from exc

    async def _with_tokens(self, host: "HostClient") -> str:
        """Fetch, with another token when one is refused, as often as that brings bytes (tokens expire)."""
        refused_at = -1
        while True:
            self._begun_at = await self.arrived()
            try:
                return await self._pool.fetch(self._job(host, self._begun_at), self._progress)
            except Unauthenticated:
                now = await self.arrived()
                if now <= refused_at:
                    raise
                refused_at = now
                await host.probe("blobs", self._descriptor.digest)

    def _job(self, host: "HostClient", offset: int) -> Fetch:
        return Fetch(
            url=str(host.url("blobs", self._descriptor.digest)),
            headers=host.headers(),
            path=self._ingest.data_path,
            offset=offset,
            size=self._descriptor.size,
            digest=self._descriptor.digest,
            tls=host.endpoint.tls,
            connections=self._client.connections,
        )

    def _named(self, error: _E) -> _E:
        """Return *error* of a worker with what it knows nothing of: the image."""
        named = type(error)(f"{self._client.reference}: blob {self._descriptor.digest}: {error}")
        named.__dict__.update(error.__dict__)
        return named


def _length(ingest: Ingest) -> int:
    return ingest.data_path.stat().st_size
