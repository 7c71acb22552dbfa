"""Blobs: small ones into memory, layers by worker processes into an ingest."""

import logging
import os
from collections.abc import Callable
from typing import TypeVar

from runtimed.errors import DataLoss, FailedPrecondition, RuntimedError, Unauthenticated, Unavailable
from runtimed.metadata.content import Ingest
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor
from runtimed.registry.client import RegistryClient
from runtimed.threads import blocking
from runtimed.workers.pool import Fetch, Pool

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
    answer = await client.get(kind, descriptor.digest, accept=accept, limit=min(limit, descriptor.size))
    verify(answer.body, descriptor, f"{client.reference} from its registry")
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

    A refused token is renewed once; a registry or connection that fails is tried again for as long as its patience
    lasts, which begins anew whenever bytes have come. *progress* is called with the bytes there are.

    Raises:
        FailedPrecondition: other bytes than *descriptor* says; the ingest holds nothing that is worth keeping.
        Unavailable: patience is at its end; what has arrived is kept and the next pull goes on from there.
        NotFound, Unauthenticated, PermissionDenied, ResourceExhausted: as the pool says.
    """
    failures = 0
    may_renew = True
    if ingest.offset > descriptor.size:
        await blocking(ingest.truncate, 0)
    offset = ingest.offset
    while offset < descriptor.size:
        try:
            digest = await pool.fetch(_job(client, descriptor, ingest, offset), progress)
        except Unauthenticated as exc:
            if not may_renew:
                raise _named(exc, client, descriptor) from exc
            may_renew = False
            await client.probe("blobs", descriptor.digest)
        except Unavailable as exc:
            failures = 1 if await blocking(_length, ingest) > offset else failures + 1
            named = _named(exc, client, descriptor)
            await client.patience.wait(failures, named)
            # Hears how long a registry that is too busy wants to be left alone, and renews a token that has expired.
            await client.probe("blobs", descriptor.digest)
        except FailedPrecondition as exc:
            # Bytes of before (a power cut, a registry that lied then) or a registry that cannot resume: begin anew.
            if offset == 0:
                raise _named(exc, client, descriptor) from exc
            log.warning(
                "going on with a part of a blob failed; fetching all of it", extra={"digest": descriptor.digest}
            )
            await blocking(os.truncate, ingest.data_path, 0)
        except RuntimedError as exc:
            raise _named(exc, client, descriptor) from exc
        else:
            await blocking(ingest.adopt, descriptor.size, digest)
            return
        offset = await blocking(_length, ingest)


def _job(client: RegistryClient, descriptor: Descriptor, ingest: Ingest, offset: int) -> Fetch:
    return Fetch(
        url=str(client.url("blobs", descriptor.digest)),
        headers=client.headers(),
        path=ingest.data_path,
        offset=offset,
        size=descriptor.size,
        digest=descriptor.digest,
    )


def _named(error: _E, client: RegistryClient, descriptor: Descriptor) -> _E:
    """Return *error* of a worker with what it knows nothing of: the image."""
    return type(error)(f"{client.reference}: blob {descriptor.digest}: {error}")


def _length(ingest: Ingest) -> int:
    return ingest.data_path.stat().st_size
