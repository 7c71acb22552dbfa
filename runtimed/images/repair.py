"""Layers on disk that are not what was committed: found, and made anew from their blobs.

After a power cut every layer is looked at before its first use, and no later: what nobody uses costs nothing.
"""

import asyncio
import hashlib
import logging
import secrets
from functools import partial
from pathlib import Path

from runtimed import labels
from runtimed.errors import DataLoss, InvalidArgument, NotFound, RuntimedError, about
from runtimed.images.checking import check_file, is_digest
from runtimed.images.holding import held_lease
from runtimed.images.joining import Joint
from runtimed.metadata import suspects
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Resource
from runtimed.metadata.snapshot_rows import Row
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.rollback import Rollback
from runtimed.snapshots.snapshotter import Checkable, LayerFiles, layer_target
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Repairer:
    """Checks and mends committed snapshots, each once however many want it at a time. One for the whole daemon."""

    def __init__(self, content: Content, db: Database, pool: Pool) -> None:
        self._content = content
        self._db = db
        self._pool = pool
        self._running = Joint()
        self._suspects: set[tuple[str, str]] = set()
        self._cleared = asyncio.Condition()

    async def begin(self, boot_id: str) -> None:
        """Learn what the last daemon's end has made suspect. Call at start, before anything is served."""
        if await self._db.write(suspects.begin, boot_id):
            log.warning("the machine went down under the daemon: layers are checked when they are first used")
        self._suspects = await self._db.write(suspects.every)

    async def end(self) -> None:
        """Note that the daemon stops with everything on disk."""
        await self._db.write(suspects.end)

    async def suspects(self, namespace: str, snapshots: Snapshots, name: str) -> bool:
        """Say whether the committed snapshot *name* has yet to be looked at, or is known to be damaged."""
        if not self._suspects:
            return False
        row = (await blocking(snapshots.chain, namespace, name))[-1]
        return not self._is_cleared((snapshots.name, row.backend_key))

    async def ensure(
        self, namespace: str, snapshots: Snapshots, key: str, made_of: tuple[str, str] | None = None
    ) -> None:
        """See that the snapshot *key* ("": none) and those below it, as far as they are committed, can be used.

        With *made_of*, digest and diff ID of the layer that *key* is made of, those below are left to others, who are
        at it, and waited for: their blobs may be on their way.

        Raises:
            DataLoss: one is damaged and cannot be made anew; what to do.
            ResourceExhausted, Unavailable: as :meth:`Pool.apply`.
        """
        if not self._suspects or not key:
            return
        for row in await blocking(snapshots.chain, namespace, key):
            suspect = (snapshots.name, row.backend_key)
            if made_of and row.key != key:
                async with self._cleared:
                    await self._cleared.wait_for(partial(self._is_cleared, suspect))
            if self._is_cleared(suspect):
                continue

            async def job(_: object, row: Row = row) -> None:
                await self.mend(snapshots, row, made_of)

            await self._running.run(suspect, job)
            await self._db.write(suspects.clear, *suspect)
            async with self._cleared:
                self._suspects.discard(suspect)
                self._cleared.notify_all()

    def _is_cleared(self, suspect: tuple[str, str]) -> bool:
        return suspect not in self._suspects

    async def mend(self, snapshots: Snapshots, row: Row, made_of: tuple[str, str] | None = None) -> str:
        """Check one committed snapshot, whose parents hold, and make it anew if it is damaged; return what was wrong.

        *made_of* are digest and diff ID of its layer, where labels do not say.

        Raises as :meth:`ensure`.
        """
        try:
            await self._check(snapshots, row)
        except DataLoss as exc:
            problem = str(exc)
        else:
            return ""
        log.warning("layer is damaged", extra={"snapshot": row.key, "namespace": row.namespace, "error": problem})
        try:
            await self._rebuild(snapshots, row, made_of)
        except (DataLoss, InvalidArgument, NotFound) as exc:
            self._suspects.add((snapshots.name, row.backend_key))  # nobody uses it, and a pull tries again
            await self._db.write(suspects.add, snapshots.name, row.backend_key)
            raise DataLoss(
                f"snapshot {row.key!r} is damaged ({problem}) and cannot be made anew ({exc}): pull its image again, or"
                " remove it and what is built upon it"
            ) from exc
        log.warning("layer was made anew from its blob", extra={"snapshot": row.key, "namespace": row.namespace})
        return problem

    async def _check(self, snapshots: Snapshots, row: Row) -> None:
        snapshotter = snapshots.snapshotter
        if isinstance(snapshotter, Checkable):
            await blocking(snapshotter.check, row.backend_key)
        if isinstance(snapshotter, LayerFiles):
            file = (await blocking(snapshotter.layer_files)).get(row.backend_key)
            if file is not None:
                await check_file(self._pool, row.key, row.parent, file)

    async def _rebuild(self, snapshots: Snapshots, row: Row, made_of: tuple[str, str] | None) -> None:
        if not isinstance(snapshots.snapshotter, Checkable):
            raise NotFound(f"snapshotter {snapshots.name!r} cannot replace a snapshot")
        digest, diff_id = made_of if made_of else await blocking(self._blob_of, row)
        blob = await blocking(self._content.path, row.namespace, digest)
        # Named as clients name what they unpack, so that the snapshotter takes a file.
        key = f"extract-again-{secrets.token_hex(8)} {row.key}"
        async with (
            held_lease(self._db, row.namespace, [Resource(f"snapshots/{snapshots.name}", key)]),
            Rollback() as steps,
        ):
            steps.undo(f"remove the snapshot {key!r}", _remove, snapshots, row.namespace, key)
            mounts = await blocking(snapshots.prepare, row.namespace, key, row.parent, {})
            target = await blocking(layer_target, [snapshots.snapshotter], mounts)
            try:
                with about(f"layer {digest}"):
                    applied = await self._pool.apply(blob, await blocking(_media_type, blob), mounts, target)
                    if applied.diff_id != diff_id:
                        raise DataLoss(f"it unpacks to {applied.diff_id}, not to {diff_id}")
            except (DataLoss, InvalidArgument):
                await self._drop_if_damaged(digest, blob)
                raise
            await blocking(snapshots.replace, row.namespace, row.key, key)
            steps.commit()
        mark = {labels.UNCOMPRESSED: diff_id}
        await blocking(self._content.update, row.namespace, digest, mark, [f"labels.{labels.UNCOMPRESSED}"])

    def _blob_of(self, row: Row) -> tuple[str, str]:
        """Return digest and diff ID of the layer that *row* is named after. Raises NotFound."""
        for info in self._content.list(row.namespace):
            diff_id = info.labels.get(labels.UNCOMPRESSED, "")
            if (
                is_digest(diff_id)
                and row.key == manifest.chain_ids([row.parent, diff_id] if row.parent else [diff_id])[-1]
            ):
                return info.digest, diff_id
        raise NotFound("the blob of its layer is not here")

    async def _drop_if_damaged(self, digest: str, blob: Path) -> None:
        """Take the file of a blob away that is not what its name says, so that a pull gets it anew."""
        if await blocking(_hash, blob, digests.split(digest)[0]) != digest:
            log.warning("blob is damaged", extra={"digest": digest})
            await blocking(self._content.store.delete, digest)


async def _remove(snapshots: Snapshots, namespace: str, key: str) -> None:
    try:
        await blocking(snapshots.remove, namespace, key)
    except NotFound:
        pass
    except RuntimedError as exc:
        log.warning("left-over snapshot stays", extra={"snapshot": key, "error": str(exc)})


def _media_type(blob: Path) -> str:
    """Tell how a layer is compressed by its first bytes: its descriptor is not at hand."""
    with blob.open("rb") as file:
        start = file.read(4)
    if start.startswith(_GZIP):
        return f"{manifest.OCI_LAYER}+gzip"
    return f"{manifest.OCI_LAYER}+zstd" if start == _ZSTD else manifest.OCI_LAYER


def _hash(path: Path, algorithm: str) -> str:
    state = hashlib.new(algorithm)
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            state.update(data)
    return f"{algorithm}:{state.hexdigest()}"
