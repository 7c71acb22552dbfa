"""Unpacking as containerd's clients do it: layer by layer through Snapshots and Diff.

A pull unpacks in the daemon. This is for images that came another way: imported, or pulled for another snapshotter.
"""

import logging
import os

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed import labels
from runtimed.api import content_pb2 as content
from runtimed.api import diff_pb2 as diff
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.client.connection import Connection, service
from runtimed.client.documents import Documents, to_proto
from runtimed.errors import AlreadyExists, DataLoss, NotFound
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.manifest import chain_ids

log = logging.getLogger(__name__)


async def ensure_unpacked(client: Connection, image: Documents, snapshotter: str) -> None:
    """Unpack the layers that *snapshotter* does not have yet.

    Raises:
        NotFound: a layer's blob, or the snapshotter, is not there.
        DataLoss: a layer does not hold what the image config says.
    """
    if not image.chain_id or await is_unpacked(client, snapshotter, image.chain_id):
        return
    log.info("unpacking for snapshotter %r", snapshotter)
    async with client.held_lease():
        parent = ""
        layers = zip(image.manifest.layers or (), image.diff_ids, chain_ids(image.diff_ids), strict=True)
        for layer, diff_id, chain_id in layers:
            if not await is_unpacked(client, snapshotter, chain_id):
                await _unpack(client, snapshotter, layer, diff_id, parent, chain_id)
            parent = chain_id
        await _refer(client, image, snapshotter)


async def is_unpacked(client: Connection, snapshotter: str, key: str) -> bool:
    """Say whether *snapshotter* has the snapshot *key*, a chain ID."""
    stub = service(snapshots, "Snapshots")
    try:
        await client.call(stub.Stat, snapshots.StatSnapshotRequest(snapshotter=snapshotter, key=key))
    except NotFound:
        return False
    return True


async def _unpack(
    client: Connection, snapshotter: str, layer: Descriptor, diff_id: str, parent: str, chain_id: str
) -> None:
    stub = service(snapshots, "Snapshots")
    key = f"extract-{os.urandom(8).hex()} {chain_id}"
    ref = {labels.SNAPSHOT_REF: chain_id}
    prepare = snapshots.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=ref)
    try:
        prepared = await client.call(stub.Prepare, prepare)
    except AlreadyExists:
        return  # the snapshotter had the layer, or got it by itself
    try:
        apply = diff.ApplyRequest(diff=to_proto(layer), mounts=prepared.mounts)
        applied = await client.call(service(diff, "Diff").Apply, apply)
        if applied.applied.digest != diff_id:
            raise DataLoss(f"layer {layer.digest} unpacks to {applied.applied.digest}, the image says {diff_id}")
        commit = snapshots.CommitSnapshotRequest(snapshotter=snapshotter, name=chain_id, key=key, labels=ref)
        await client.call(stub.Commit, commit)
    except BaseException as exc:
        await client.call(stub.Remove, snapshots.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
        if not isinstance(exc, AlreadyExists):  # somebody else was faster
            raise


async def _refer(client: Connection, image: Documents, snapshotter: str) -> None:
    """Label the config so that the snapshots live as long as the image."""
    label = labels.GC_REF_SNAPSHOT + snapshotter
    info = content.Info(digest=image.manifest.config.digest, labels={label: image.chain_id})
    request = content.UpdateRequest(info=info, update_mask=FieldMask(paths=[f"labels.{label}"]))
    await client.call(service(content, "Content").Update, request)
