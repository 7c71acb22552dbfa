"""A lease of the daemon's own for as long as an image is worked on."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from runtimed import labels
from runtimed.errors import NotFound
from runtimed.metadata import blobs, leases
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.leases import Resource
from runtimed.rollback import Rollback

# What a lease's label says of the block that held it, for who finds it after a crash.
_FETCHES = "true"
_USES = "uses"
_DAY_S = 24 * 3600  # containerd's too: what a daemon that died held is free after that


@asynccontextmanager
async def held_lease(
    db: Database, namespace: str, resources: Sequence[Resource] = (), *, fetches: bool = False
) -> AsyncIterator[str]:
    """Hold *resources*, and what is added, against garbage collection while the block runs; yield the lease's ID.

    Of a block that *fetches* blobs and fails, those that have arrived stay for a day: who tries again has them.
    """
    is_done = False

    async def end(id: str) -> None:
        await db.write(_complete if is_done else abandon if fetches else release, namespace, id)

    async with Rollback() as steps:  # never committed: the undo step is how it ends, well or not
        id = await db.write(_create, namespace, resources, _FETCHES if fetches else _USES)
        steps.undo(f"delete the lease {id}", end, id)
        yield id
        is_done = True


def is_of_a_fetch(lease: leases.Lease) -> bool:
    """Say whether a lease of ours is of a block that fetched blobs, which are worth keeping."""
    return lease.labels.get(labels.PULL) == _FETCHES


def abandon(tx: Tx, namespace: str, id: str) -> None:
    """Delete the lease of a fetch that came to nothing; the blobs that have arrived stay for a day."""
    for digest in _blobs(tx, namespace, id):
        if labels.GC_EXPIRE not in blobs.get_blob(tx, namespace, digest).labels:
            _mark(tx, namespace, digest, {labels.GC_EXPIRE: _in_a_day(), labels.PULL: "true"})
    release(tx, namespace, id)


def _complete(tx: Tx, namespace: str, id: str) -> None:
    """Delete a lease that is not needed any more: the image holds the blobs, also what an earlier try left marked."""
    for digest in _blobs(tx, namespace, id):
        if labels.PULL in blobs.get_blob(tx, namespace, digest).labels:
            _mark(tx, namespace, digest, {labels.GC_EXPIRE: "", labels.PULL: ""})
    release(tx, namespace, id)


def _blobs(tx: Tx, namespace: str, id: str) -> Iterator[str]:
    """Yield the blobs of a lease that are there."""
    for resource in leases.resources(tx, namespace, id):
        if resource.type == "content":
            with suppress(NotFound):
                yield blobs.get_blob(tx, namespace, resource.id).digest


def _mark(tx: Tx, namespace: str, digest: str, marks: dict[str, str]) -> None:
    blobs.update_blob(tx, namespace, digest, marks, [f"labels.{label}" for label in marks])


def release(tx: Tx, namespace: str, id: str) -> None:
    """Delete a lease, if it is there."""
    with suppress(NotFound):  # a client has deleted it, or it has expired
        leases.delete(tx, namespace, id)


def _create(tx: Tx, namespace: str, resources: Sequence[Resource], kind: str) -> str:
    marks = {labels.GC_EXPIRE: _in_a_day(), labels.PULL: kind}
    lease = leases.create(tx, namespace, leases.Lease(id="", labels=marks))
    for resource in resources:
        leases.add_resource(tx, namespace, lease.id, resource)
    return lease.id


def _in_a_day() -> str:
    return datetime.fromtimestamp(time.time() + _DAY_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def lease_of(db: Database, namespace: str, given: str, *, fetches: bool) -> AsyncIterator[str]:
    """Hold a lease: the client's, which is left alone, or one that goes when the block ends."""
    if given:
        await db.read(leases.get, namespace, given)
        yield given
        return
    async with held_lease(db, namespace, fetches=fetches) as lease:
        yield lease
