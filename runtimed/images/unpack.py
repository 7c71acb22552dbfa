"""From a layer's blob to a committed snapshot."""

import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from runtimed import labels
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, about
from runtimed.images.joining import Joint
from runtimed.metadata import leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci.descriptor import Descriptor
from runtimed.rollback import Rollback
from runtimed.threads import blocking
from runtimed.workers.pool import Pool


class Unpacker:
    """Unpacks layers, each once however many pulls want it at a time. One for the whole daemon."""

    def __init__(self, content: Content, db: Database, pool: Pool) -> None:
        self._content = content
        self._db = db
        self._pool = pool
        self._running = Joint()
        # One extraction of a chain ID at a time, so its key can be known before; another daemon's is another.
        self._prefix = f"extract-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)}"

    async def unpack(
        self,
        namespace: str,
        snapshots: Snapshots,
        layer: Descriptor,
        *,
        parent: str,
        diff_id: str,
        chain_id: str,
        lease: str,
        tell: Callable[[str], None],
    ) -> None:
        """Make the snapshot *chain_id*: the blob *layer*, which is there, over the snapshot *parent* ("": nothing).

        One that is there already is taken as it is, and nothing is told of it; of others it is ``extracting`` and
        ``extracted``. *lease* holds the snapshot. Nothing is left of one that fails.

        Raises:
            InvalidArgument: the layer has another diff ID than the image config says, or cannot be applied.
            ResourceExhausted, Unavailable: as :meth:`Pool.apply`.
        """

        async def job(_: object) -> None:
            await self._make(namespace, snapshots, layer, parent, diff_id, chain_id)

        # Held first, whether it is there or not: what is collected in between is not there, and an extraction that is
        # joined may outlive the pull that began it, and its lease.
        await self._db.write(_hold, namespace, lease, snapshots.name, (chain_id, self._key(chain_id)))
        with suppress(NotFound):
            await blocking(snapshots.stat, namespace, chain_id)
            return
        tell("extracting")
        await self._running.run((namespace, snapshots.name, chain_id), job)
        tell("extracted")

    async def _make(
        self, namespace: str, snapshots: Snapshots, layer: Descriptor, parent: str, diff_id: str, chain_id: str
    ) -> None:
        key = self._key(chain_id)
        marks = {labels.SNAPSHOT_REF: chain_id}
        await _remove(snapshots, namespace, key)  # of a try whose undoing failed
        async with Rollback() as steps:
            # Before prepare: a caller that is cancelled during it gets no answer, but the snapshot is there.
            steps.undo(f"remove the snapshot {key!r}", _remove, snapshots, namespace, key)
            # AlreadyExists: a client that unpacks on its own was faster.
            with suppress(AlreadyExists):
                mounts = await blocking(snapshots.prepare, namespace, key, parent, marks)
                blob = await blocking(self._content.path, namespace, layer.digest)
                with about(f"layer {layer.digest}"):
                    applied = await self._pool.apply(blob, layer.media_type, mounts)
                if applied.diff_id != diff_id:
                    raise InvalidArgument(
                        f"layer {layer.digest} unpacks to {applied.diff_id}, but the image's config says {diff_id};"
                        " the image was built wrongly or tampered with"
                    )
                await blocking(snapshots.commit, namespace, chain_id, key, marks)
                steps.commit()
        mark = {labels.UNCOMPRESSED: diff_id}
        await blocking(self._content.update, namespace, layer.digest, mark, [f"labels.{labels.UNCOMPRESSED}"])

    def _key(self, chain_id: str) -> str:
        return f"{self._prefix} {chain_id}"


async def _remove(snapshots: Snapshots, namespace: str, key: str) -> None:
    with suppress(NotFound):
        await blocking(snapshots.remove, namespace, key)


def _hold(tx: Tx, namespace: str, lease: str, snapshotter: str, keys: Iterable[str]) -> None:
    for key in keys:
        leases.add_resource(tx, namespace, lease, leases.Resource(f"snapshots/{snapshotter}", key))
