"""Blobs and manifests into a registry (OCI distribution-spec, "Push")."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from urllib.parse import quote

from yarl import URL

from runtimed.errors import DataLoss, NotFound, PermissionDenied, Unavailable
from runtimed.oci.descriptor import Descriptor
from runtimed.registry import referrers
from runtimed.registry.client import RegistryClient, Sent
from runtimed.registry.patience import is_nobody_there

_CHUNK = 16 << 20  # bytes of a blob in one request, where a registry does not take all of it at once
_TOO_LARGE = 413
_OCTETS = {"Content-Type": "application/octet-stream"}

# Yields the bytes of a blob from an offset on, so many of them.
Open = Callable[[int, int], AsyncIterator[bytes]]


class Outcome(StrEnum):
    """How a blob came to be in the repository; containerd's words for it."""

    EXISTS = "already exists"
    MOUNTED = "mounted"
    UPLOADED = "complete"


def scopes(repository: str, mounts: Sequence[str] = ()) -> list[str]:
    """Return what a token must allow for pushing to *repository* and mounting blobs from *mounts*."""
    return [f"repository:{repository}:pull,push", *(f"repository:{one}:pull" for one in mounts if one != repository)]


async def push_blob(client: RegistryClient, descriptor: Descriptor, open: Open, *, mount_from: str = "") -> Outcome:
    """See that the repository has the blob: nothing is sent if it has, or can mount it from *mount_from*.

    A registry or connection that fails is tried again for as long as the client's patience lasts.

    Raises:
        NotFound, Unauthenticated, PermissionDenied, Unavailable: as :meth:`RegistryClient.get`.
    """
    return await _persistently(client, lambda: _push_blob(client, descriptor, open, mount_from))


async def push_manifest(client: RegistryClient, descriptor: Descriptor, data: bytes, name: str) -> Outcome:
    """Put the manifest or index *data* under *name*, a tag or its digest, unless that is what is there.

    Everything that it refers to must be there before. What says that it is about another is entered in the list of what
    is about that, if the registry does not do so itself. Tried again as :func:`push_blob`.

    Raises:
        DataLoss: the registry says that it has stored something else.
        NotFound, Unauthenticated, PermissionDenied, Unavailable: as :meth:`RegistryClient.get`.
    """
    return await _persistently(client, lambda: _push_manifest(client, descriptor, data, name))


async def _persistently(client: RegistryClient, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
    failures = 0
    while True:
        try:
            return await attempt()
        except Unavailable as exc:
            if is_nobody_there(exc):
                raise  # nobody there: the user should hear it at once
            failures += 1
            await client.patience.wait(failures, exc)


async def _push_manifest(client: RegistryClient, descriptor: Descriptor, data: bytes, name: str) -> Outcome:
    url = client.url("manifests", name)
    there = await client.send("HEAD", url, accepted={200, 404}, headers={"Accept": descriptor.media_type})
    if there.status == 200 and there.headers.get("Docker-Content-Digest") == descriptor.digest:
        return Outcome.EXISTS

    async def body() -> AsyncIterator[bytes]:
        yield data

    sent = await client.send(
        "PUT",
        url,
        accepted={200, 201, 202},
        headers={"Content-Type": descriptor.media_type},
        body=body,
        length=len(data),
    )
    if sent.headers.get("Docker-Content-Digest", descriptor.digest) != descriptor.digest:
        said = sent.headers["Docker-Content-Digest"][:160]
        raise DataLoss(f"{client.reference}: the registry says that it stored {said!r} instead of {descriptor.digest}")
    if referrers.subject_of(data) and "OCI-Subject" not in sent.headers:
        await referrers.record(client, descriptor, data)
    return Outcome.UPLOADED


async def _push_blob(client: RegistryClient, descriptor: Descriptor, open: Open, mount_from: str) -> Outcome:
    there = await client.send("HEAD", client.url("blobs", descriptor.digest), accepted={200, 404})
    if there.status == 200:
        return Outcome.EXISTS
    begun = await _begin(client, descriptor, mount_from)
    if begun.status == 201:
        return Outcome.MOUNTED

    sent = await client.send(
        "PUT",
        _with_digest(client.location(begun), descriptor.digest),
        accepted={201, 204, _TOO_LARGE},
        headers=_OCTETS,
        body=lambda: open(0, descriptor.size),
        length=descriptor.size,
    )
    if sent.status == _TOO_LARGE:
        await _push_chunks(client, descriptor, open)
    return Outcome.UPLOADED


async def _begin(client: RegistryClient, descriptor: Descriptor, mount_from: str) -> Sent:
    url = client.url("blobs", "uploads/")
    if mount_from:
        mount = url.with_query({"mount": descriptor.digest, "from": mount_from})
        try:
            return await client.send("POST", mount, accepted={201, 202})
        except (NotFound, PermissionDenied):
            pass  # the other repository is not to be read with these credentials, or has gone
    return await client.send("POST", url, accepted={202})


async def _push_chunks(client: RegistryClient, descriptor: Descriptor, open: Open) -> None:
    """Upload in several requests, for a registry (or a proxy before it) with a limit to the size of one."""
    sent = await client.send("POST", client.url("blobs", "uploads/"), accepted={202})
    smallest = sent.headers.get("OCI-Chunk-Min-Length", "")
    chunk = max(_CHUNK, int(smallest[:12]) if smallest.isdigit() else 0)
    for begin in range(0, descriptor.size, chunk):
        length = min(chunk, descriptor.size - begin)
        sent = await client.send(
            "PATCH",
            client.location(sent),
            accepted={202},
            headers={**_OCTETS, "Content-Range": f"{begin}-{begin + length - 1}"},
            body=_part(open, begin, length),
            length=length,
        )
    await client.send("PUT", _with_digest(client.location(sent), descriptor.digest), accepted={201, 204})


def _part(open: Open, begin: int, length: int) -> Callable[[], AsyncIterator[bytes]]:
    return lambda: open(begin, length)


def _with_digest(location: URL, digest: str) -> URL:
    """Add the digest to an upload's location, whose own query stays as it came: it may be signed."""
    separator = "&" if location.raw_query_string else "?"
    return URL(f"{location}{separator}digest={quote(digest, safe=':')}", encoded=True)
