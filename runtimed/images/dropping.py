"""Layers' blobs that a namespace does not keep once they are unpacked, and gets back when somebody wants them.

The label ``runtimed.io/discard-unpacked-layers=true`` of a namespace says so. A pull into it labels a manifest without
references to its layers, so that collection takes their blobs when the pull's lease goes. A push or export first
fetches what is missing from where the manifest came from, with the daemon's own credentials, and holds it meanwhile.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from runtimed import labels
from runtimed.content.store import Info
from runtimed.errors import NotFound, RuntimedError
from runtimed.images.blobs import Blobs
from runtimed.images.holding import held_lease
from runtimed.images.progress import Report
from runtimed.images.sources import RegistrySource
from runtimed.metadata import images, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.reference import Reference
from runtimed.registry.registries import Registries
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

_LAYER_REF = f"{labels.GC_REF_CONTENT}.l."


def drops(tx: Tx, namespace: str) -> bool:
    """Say whether *namespace* keeps no blobs of layers that are unpacked."""
    return namespaces.get(tx, namespace).labels.get(labels.DISCARD_LAYERS) == "true"


class FetchBack:
    """Gets back what was dropped."""

    def __init__(self, content: Content, db: Database, registries: Registries, pool: Pool) -> None:
        self._content = content
        self._db = db
        self._registries = registries
        self._pool = pool
        self._blobs = Blobs(content, db)

    @asynccontextmanager
    async def held(self, namespace: str, names: Sequence[str], report: Report) -> AsyncIterator[None]:
        """Have the layers that were dropped of the images *names* here while the block runs.

        Raises:
            NotFound: where they came from is not known, or does not have them any more.
            Unauthenticated, PermissionDenied, Unavailable, DataLoss: from the registry, naming it.
        """
        if not await self._db.read(drops, namespace):
            yield
            return
        async with held_lease(self._db, namespace) as lease:
            for name in names:
                image = await self._db.read(images.get, namespace, name)
                for info, layers in await blocking(self._missing, namespace, image.target, set()):
                    await self._fetch(namespace, info, layers, lease, report)
            yield

    def _missing(
        self, namespace: str, descriptor: Descriptor, seen: set[str]
    ) -> list[tuple[Info, Sequence[Descriptor]]]:
        """Return the manifests from *descriptor* down that are here without their layers, and these layers."""
        if descriptor.digest in seen or descriptor.media_type not in manifest.INDEXES | manifest.MANIFESTS:
            return []
        seen.add(descriptor.digest)
        try:
            info = self._content.info(namespace, descriptor.digest)
            children = manifest.children(
                descriptor, self._content.read(namespace, descriptor.digest, manifest.MAX_SIZE)
            )
        except NotFound:
            return []  # of another platform
        if descriptor.media_type in manifest.INDEXES:
            return [found for child in children for found in self._missing(namespace, child, seen)]
        if any(label.startswith(_LAYER_REF) for label in info.labels):
            return []  # it keeps them
        layers = [layer for layer in children[1:] if not self._content.is_whole(namespace, layer.digest)]
        return [(info, layers)] if layers else []

    async def _fetch(
        self, namespace: str, info: Info, layers: Sequence[Descriptor], lease: str, report: Report
    ) -> None:
        failure: RuntimedError = NotFound(f"layers of manifest {info.digest} were dropped, and nobody knows where from")
        for host, repository in _origins(info):
            reference = Reference(host=host, repository=repository, digest=info.digest)
            try:
                async with RegistrySource(await self._registries.client(reference), self._pool) as source:
                    for layer in layers:
                        await self._blobs.fetch(namespace, source, layer, (), lease, report)
            except RuntimedError as exc:
                failure = exc
            else:
                return
        raise failure


def _origins(info: Info) -> list[tuple[str, str]]:
    """Return host and repository of each place that a blob is known to be in."""
    prefix = labels.DISTRIBUTION_SOURCE
    return [
        (label.removeprefix(prefix), repository)
        for label, value in info.labels.items()
        if label.startswith(prefix)
        for repository in value.split(",")
        if repository
    ]
