"""From a layer's blob to a committed snapshot."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from runtimed import labels
from runtimed.diff.apply import Applied
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, about
from runtimed.images.joining import Joint
from runtimed.images.repair import Repairer
from runtimed.metadata import leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci.descriptor import Descriptor
from runtimed.rollback import Rollback
from runtimed.snapshots.snapshotter import Mounts, layer_directory, layer_target
from runtimed.threads import blocking
from runtimed.workers.pool import Expected, Pool, Received

_AHEAD = 8  # layers whose bytes wait in a worker process for the ones below


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer and the snapshot that is made of it: *chain_id*, over the snapshot *parent* ("": nothing)."""

    namespace: str
    snapshots: Snapshots
    descriptor: Descriptor
    parent: str
    diff_id: str
    chain_id: str


class Unpacker:
    """Unpacks layers, each once however many pulls want it at a time. One for the whole daemon.

    Snapshots are made from the bottom up. Where a snapshotter takes layers as files, the bytes of a layer are put into
    one before the layers below it are there, of which only the end of the work needs to know.
    """

    def __init__(self, content: Content, db: Database, pool: Pool, repairer: Repairer | None = None) -> None:
        self._content = content
        self._repairer = repairer
        self._db = db
        self._pool = pool
        self._running = Joint()
        self._ahead = asyncio.Semaphore(_AHEAD)
        # Of a snapshot that somebody waits for: set when a pull has it.
        self._there: WeakValueDictionary[tuple[str, str, str], asyncio.Event] = WeakValueDictionary()
        # One extraction of a chain ID at a time, so its key can be known before; another daemon's is another.
        self._prefix = f"extract-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)}"

    async def expect(self, namespace: str, snapshots: Snapshots, layer: Descriptor, chain_id: str) -> Expected | None:
        """Have the bytes of *layer* put into a file while they are fetched, for :meth:`unpack`; close what is returned.

        None: that cannot be, or not now.
        """
        directory = layer_directory(snapshots.snapshotter)
        if directory is None or await _exists(namespace, snapshots, chain_id) or self._ahead.locked():
            return None
        await self._ahead.acquire()  # at once
        expected = self._pool.expect(layer.digest, layer.media_type, directory, self._ahead.release)
        if expected is None:
            self._ahead.release()
        return expected

    async def unpack(
        self, layer: Layer, lease: str, tell: Callable[[str], None], expected: Expected | None = None
    ) -> None:
        """Make the snapshot of *layer*, whose blob is there.

        Of what was *expected* the bytes may be in a file already; it stays the caller's to close.

        One that is there already is taken as it is, and nothing is told of it; of others it is ``extracting`` and
        ``extracted``. *lease* holds the snapshot. Nothing is left of one that fails. Whoever calls also calls for
        the layer below, at the same time if he likes: this waits for it.

        Raises:
            InvalidArgument: the layer has another diff ID than the image config says, or cannot be applied.
            ResourceExhausted, Unavailable: as :meth:`Pool.apply`.
        """

        async def job(_: object) -> None:
            await self._make(layer, expected)

        namespace, snapshots, chain_id = layer.namespace, layer.snapshots, layer.chain_id
        # Held first, whether they are there or not: what is collected in between is not there, and an extraction
        # that is joined may outlive the pull that began it, and its lease. The one below too: it may be found before
        # its own turn to be held has come.
        held = (chain_id, self._key(chain_id), *([layer.parent] if layer.parent else []))
        await self._db.write(_hold, namespace, lease, snapshots.name, held)
        key = (namespace, snapshots.name, chain_id)
        if await _exists(namespace, snapshots, chain_id):
            if self._repairer:
                await self._repairer.ensure(namespace, snapshots, chain_id, (layer.descriptor.digest, layer.diff_id))
        else:
            tell("extracting")
            await self._running.run(key, job)
            tell("extracted")
        if there := self._there.pop(key, None):  # whoever waits from now on, waits for the next time it is made
            there.set()

    async def hold(self, namespace: str, snapshots: Snapshots, chain_id: str, lease: str) -> bool:
        """Have *lease* hold the snapshot *chain_id*; say whether it is there, and nothing speaks against using it."""
        await self._db.write(_hold, namespace, lease, snapshots.name, (chain_id,))
        if not await _exists(namespace, snapshots, chain_id):
            return False
        return self._repairer is None or not await self._repairer.suspects(namespace, snapshots, chain_id)

    async def _make(self, layer: Layer, expected: Expected | None) -> None:
        namespace, snapshots, digest = layer.namespace, layer.snapshots, layer.descriptor.digest
        key = self._key(layer.chain_id)
        marks = {labels.SNAPSHOT_REF: layer.chain_id}
        await _remove(snapshots, namespace, key)  # of a try whose undoing failed
        blob = await blocking(self._content.path, namespace, digest)
        async with (
            self._below(layer) as below,
            self._received(layer, blob, below, expected) as received,
            Rollback() as steps,
        ):
            # Before prepare: a caller that is cancelled during it gets no answer, but the snapshot is there.
            steps.undo(f"remove the snapshot {key!r}", _remove, snapshots, namespace, key)
            # AlreadyExists: a client that unpacks on its own was faster.
            with suppress(AlreadyExists):
                mounts = await blocking(snapshots.prepare, namespace, key, layer.parent, marks)
                with about(f"layer {digest}"):
                    applied = await self._apply(layer, blob, received, mounts)
                if applied.diff_id != layer.diff_id:
                    raise InvalidArgument(
                        f"layer {digest} unpacks to {applied.diff_id}, but the image's config says {layer.diff_id};"
                        " the image was built wrongly or tampered with"
                    )
                await blocking(snapshots.commit, namespace, layer.chain_id, key, marks)
                steps.commit()
        mark = {labels.UNCOMPRESSED: layer.diff_id}
        await blocking(self._content.update, namespace, digest, mark, [f"labels.{labels.UNCOMPRESSED}"])

    async def _apply(self, layer: Layer, blob: Path, received: Received | None, mounts: Mounts) -> Applied:
        target = await blocking(layer_target, [layer.snapshots.snapshotter], mounts)
        if received and target:
            if await received.finish(mounts, target):
                return received.applied
            target = None
        return await self._pool.apply(blob, layer.descriptor.media_type, mounts, target)

    @asynccontextmanager
    async def _received(
        self, layer: Layer, blob: Path, below: "asyncio.Task[None]", expected: Expected | None
    ) -> AsyncIterator[Received | None]:
        """Wait for *below*; hold what could be done of the layer before: its bytes in a file, or nothing."""
        if expected is not None:
            if received := expected.take():
                async with received:
                    await below
                    yield received
                return
            await expected.close()
        directory = layer_directory(layer.snapshots.snapshotter)
        if directory is not None and not below.done() and await self._turn_before(below):
            try:
                async with AsyncExitStack() as held:
                    with about(f"layer {layer.descriptor.digest}"):
                        receiving = self._pool.received(blob, layer.descriptor.media_type, directory)
                        received = await held.enter_async_context(receiving)
                    await below
                    yield received
            finally:
                self._ahead.release()
        else:
            await below
            yield None

    async def _turn_before(self, below: "asyncio.Task[None]") -> bool:
        """Wait for one of the turns of those who work ahead, or for *below*; say whether it is a turn, to release."""
        turn = asyncio.create_task(self._ahead.acquire())
        try:
            await asyncio.wait([turn, below], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self._give_up(turn)
            raise
        if below.done():
            await self._give_up(turn)
            return False
        return True

    async def _give_up(self, turn: "asyncio.Task[Literal[True]]") -> None:
        if not turn.cancel():
            self._ahead.release()

    @asynccontextmanager
    async def _below(self, layer: Layer) -> AsyncIterator["asyncio.Task[None]"]:
        """Hold a task that ends when what *layer* lies upon is there."""
        task = asyncio.create_task(self._until_there(layer.namespace, layer.snapshots, layer.parent))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _until_there(self, namespace: str, snapshots: Snapshots, name: str) -> None:
        # The event first: whoever has the snapshot after the look finds it.
        there = self._there.setdefault((namespace, snapshots.name, name), asyncio.Event())
        if name and not await _exists(namespace, snapshots, name):
            await there.wait()

    def _key(self, chain_id: str) -> str:
        return f"{self._prefix} {chain_id}"


async def _exists(namespace: str, snapshots: Snapshots, name: str) -> bool:
    try:
        await blocking(snapshots.stat, namespace, name)
    except NotFound:
        return False
    return True


async def _remove(snapshots: Snapshots, namespace: str, key: str) -> None:
    with suppress(NotFound):
        await blocking(snapshots.remove, namespace, key)


def _hold(tx: Tx, namespace: str, lease: str, snapshotter: str, keys: Iterable[str]) -> None:
    for key in keys:
        leases.add_resource(tx, namespace, lease, leases.Resource(f"snapshots/{snapshotter}", key))
