"""What refers to an image in its registry: signatures, bills of materials (OCI distribution-spec, "Listing Referrers").

Of a registry without that API, an index under a tag made of the digest says it ("Referrers Tag Schema"); whoever pushes
something that refers to an image keeps it.
"""

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from yarl import URL

from runtimed.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.registry import hosts
from runtimed.registry.client import RegistryClient
from runtimed.registry.hosts import Capability

if TYPE_CHECKING:
    from runtimed.registry.host import HostClient

_MAX_PAGES = 100
_MAX_REFERRERS = 10_000
_NEXT = re.compile(r'<([^>]{1,4096})>\s*;\s*rel="?next"?')


class _Subject(msgspec.Struct):
    """What a manifest or index says that concerns what it refers to."""

    subject: Descriptor | None = None
    artifact_type: str = msgspec.field(default="", name="artifactType")
    annotations: dict[str, str] | None = None
    config: Descriptor | None = None


async def listed(client: RegistryClient, digest: str, artifact_type: str = "") -> list[Descriptor]:
    """Return the descriptors of what refers to *digest* in the client's repository, of *artifact_type* or of any.

    Raises:
        InvalidArgument: the registry's answer is not an index, or goes on without an end.
        Unauthenticated, PermissionDenied, Unavailable: as :meth:`RegistryClient.get`.
    """

    async def attempt(host: "HostClient") -> list[Descriptor]:
        try:
            return await _by_api(host, digest, artifact_type)
        except NotFound:
            url = host.url("manifests", _tag(digest))
        try:
            answer = await host.get(url, accept=manifest.OCI_INDEX, limit=manifest.MAX_SIZE)
        except NotFound:
            return []
        return list(_entries(host, answer.body))

    found = await client.anywhere(Capability.PULL, attempt)
    return [one for one in found if artifact_type in ("", one.artifact_type)]


def subject_of(data: bytes) -> Descriptor | None:
    """Return what the manifest or index *data* refers to, if to anything. Raises InvalidArgument."""
    return _parsed(data).subject


async def record(client: RegistryClient, descriptor: Descriptor, data: bytes) -> None:
    """Add the manifest *descriptor*, of the bytes *data*, to the tag that lists what refers to its subject.

    For a registry that did not say, when it was pushed, that it has taken notice of the subject. Two who do this at
    once may overwrite each other's entry: that is in the nature of the schema.

    Raises: as :meth:`RegistryClient.get`.
    """
    about = _parsed(data)
    assert about.subject is not None
    digests.validate(about.subject.digest)
    host = client.target
    url = host.url("manifests", _tag(about.subject.digest))
    try:
        answer = await host.get(url, accept=manifest.OCI_INDEX, limit=manifest.MAX_SIZE)
        entries = list(_entries(host, answer.body))
    except NotFound:
        entries = []
    if any(entry.digest == descriptor.digest for entry in entries):
        return
    entry = Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        artifact_type=about.artifact_type or (about.config.media_type if about.config else ""),
        annotations=about.annotations or {},
    )
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [*entries, entry]}
    body = msgspec.json.encode(index)

    async def bytes_of_it() -> AsyncIterator[bytes]:
        yield body

    headers = {"Content-Type": manifest.OCI_INDEX}
    await host.send("PUT", url, accepted={200, 201, 202}, headers=headers, body=bytes_of_it, length=len(body))


async def _by_api(host: "HostClient", digest: str, artifact_type: str) -> list[Descriptor]:
    url = host.url("referrers", digest)
    if artifact_type:
        url = url.update_query({"artifactType": artifact_type})
    found: list[Descriptor] = []
    for _ in range(_MAX_PAGES):
        answer = await host.get(url, accept=manifest.OCI_INDEX, limit=manifest.MAX_SIZE)
        found += _entries(host, answer.body)
        following = _NEXT.search(answer.headers.get("Link", "")[:8192])
        if following is None:
            return found
        if len(found) > _MAX_REFERRERS:
            break
        target = url.join(URL(following[1], encoded=True))
        if not hosts.same_origin(url, target):
            raise Unavailable(f"{host.subject}: the list of referrers goes on at {target.host}; not followed")
        url = target
    raise InvalidArgument(f"{host.subject}: the list of referrers of {digest} has no end")


def _entries(host: "HostClient", data: bytes) -> tuple[Descriptor, ...]:
    if not data.lstrip()[:1] == b"{":
        raise NotFound(f"{host.subject}: no list of referrers")  # a page of a registry that does not know the API
    root = Descriptor(media_type=manifest.OCI_INDEX, digest=digests.of(data), size=len(data))
    return manifest.children(root, data)


def _parsed(data: bytes) -> _Subject:
    try:
        return msgspec.json.decode(data, type=_Subject)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DataLoss(f"a manifest that was to be pushed does not parse: {exc}") from None


def _tag(digest: str) -> str:
    """Return the tag that stands for what refers to *digest*: at most 128 characters of a tag's alphabet."""
    algorithm, encoded = digests.split(digest)
    return f"{algorithm[:32]}-{encoded[:64]}"
