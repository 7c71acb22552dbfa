"""Layers that are kept as files, read and compared with what they were made of."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtimed.errors import DataLoss, InvalidArgument, NotFound, RuntimedError
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.threads import blocking
from runtimed.workers.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A layer file that was read, and what is wrong with it; "" is nothing."""

    snapshotter: str
    namespace: str
    name: str
    path: Path
    size: int  # of the layer that it was made of, in bytes
    error: str = ""


async def check_layers(snapshotters: Iterable[Snapshots], pool: Pool) -> list[Checked]:
    """Read every layer file; as many at a time as *pool* applies layers. One that goes meanwhile is left out.

    A snapshot that is named as an image's layers are, by its chain ID, must be made of the layer of that name.
    """
    checks = [
        _check(snapshots.name, namespace, name, parent, path, pool)
        for snapshots in snapshotters
        for namespace, name, parent, path in await blocking(snapshots.layer_files)
    ]
    return [found for found in await asyncio.gather(*checks) if found is not None]


async def _check(snapshotter: str, namespace: str, name: str, parent: str, path: Path, pool: Pool) -> Checked | None:
    size, error = 0, ""
    try:
        size = await check_file(pool, name, parent, path)
    except NotFound:
        return None
    except RuntimedError as exc:
        error = str(exc)
    return Checked(snapshotter=snapshotter, namespace=namespace, name=name, path=path, size=size, error=error)


async def check_file(pool: Pool, name: str, parent: str, path: Path) -> int:
    """Read the layer file of the snapshot *name* over *parent*, and return the size of the layer that it was made of.

    Raises DataLoss for what is wrong with it; NotFound: it is gone; Unavailable.
    """
    layer = await pool.check(path)
    chain_id = manifest.chain_ids([parent, layer.diff_id] if parent else [layer.diff_id])[-1]
    if is_digest(name) and chain_id != name:
        raise DataLoss(f"it holds the layer {layer.diff_id}, which over {parent or 'nothing'} is {chain_id}")
    return layer.size


def is_digest(name: str) -> bool:
    """Say whether *name* is a digest, as a chain ID is."""
    try:
        digests.validate(name)
    except InvalidArgument:
        return False
    return True
