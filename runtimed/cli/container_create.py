"""From an image to a container that can be started: record, snapshot, spec."""

import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf.any_pb2 import Any

from runtimed import labels
from runtimed.api import containers_pb2 as containers
from runtimed.api import namespaces_pb2 as namespaces
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.api import types_pb2 as types
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.namespaces_pb2_grpc import NamespacesStub
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from runtimed.cli import users
from runtimed.cli.client import Client
from runtimed.cli.documents import Documents
from runtimed.cli.unpack import ensure_unpacked
from runtimed.errors import NotFound, Unavailable
from runtimed.mounts import Mount, mounted_temporarily
from runtimed.oci.runtime_spec import TYPE_URL, Options, User, container_spec
from runtimed.rollback import Rollback
from runtimed.threads import blocking

DEFAULT_RUNTIME = "io.containerd.runc.v2"
DEFAULT_SNAPSHOTTER = "overlayfs"

_ADJECTIVES = (
    "amber brave calm clever eager fair gentle happy keen kind lively lucky merry noble proud quick quiet swift"
)
_ANIMALS = "badger crane deer eagle falcon finch fox hare heron lynx marten otter owl raven robin seal stork wren"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to create."""

    id: str
    image_name: str
    image: Documents
    snapshotter: str
    runtime: str
    user: str = ""  # "" is the image's
    labels: dict[str, str] = field(default_factory=dict)


def random_id() -> str:
    """Return an ID that people can read out, ``quick-otter-3fa9c1``."""
    return f"{random.choice(_ADJECTIVES.split())}-{random.choice(_ANIMALS.split())}-{random.getrandbits(24):06x}"


async def defaults(client: Client) -> tuple[str, str]:
    """Return the snapshotter and the runtime for who asks for none: the namespace's, else containerd's."""
    try:
        request = namespaces.GetNamespaceRequest(name=client.namespace)
        found = (await client.call(NamespacesStub(client.channel).Get, request)).namespace.labels
    except NotFound:
        found = {}
    return (
        found.get(labels.DEFAULT_SNAPSHOTTER) or DEFAULT_SNAPSHOTTER,
        found.get(labels.DEFAULT_RUNTIME) or DEFAULT_RUNTIME,
    )


async def create(client: Client, plan: Plan, options: Options, steps: Rollback) -> list[types.Mount]:
    """Create the container and return the mounts of its rootfs; *steps* undoes it.

    Raises:
        AlreadyExists: the ID is taken.
    """
    await ensure_unpacked(client, plan.image, plan.snapshotter)
    user = await _user(client, plan)
    spec = container_spec(plan.image.execution, replace(options, user=user))
    record = containers.Container(
        id=plan.id,
        labels=plan.labels,
        image=plan.image_name,
        runtime=containers.Container.Runtime(name=plan.runtime),
        spec=Any(type_url=TYPE_URL, value=spec.encode()),
        snapshotter=plan.snapshotter,
        snapshot_key=plan.id,
    )
    # The record first: it claims the ID, and refers to the snapshot before there is one that could be collected.
    stub = ContainersStub(client.channel)
    try:
        await client.call(stub.Create, containers.CreateContainerRequest(container=record))
    except Unavailable as exc:
        # Not undone: were the ID taken by then, it would be somebody else's that is deleted.
        exc.add_note(f"container {plan.id!r} may have been made; see 'rctl ps -a'")
        raise
    steps.undo("delete the container", delete_container, client, plan.id)
    prepare = snapshots.PrepareSnapshotRequest(snapshotter=plan.snapshotter, key=plan.id, parent=plan.image.chain_id)
    prepared = await client.call(SnapshotsStub(client.channel).Prepare, prepare)
    steps.undo("remove the snapshot", remove_snapshot, client, plan.snapshotter, plan.id)
    return list(prepared.mounts)


async def delete_container(client: Client, id: str) -> None:
    """Delete the record; it being gone is fine."""
    try:
        request = containers.DeleteContainerRequest(id=id)
        await client.call(ContainersStub(client.channel).Delete, request, patient=True)
    except NotFound:
        pass


async def remove_snapshot(client: Client, snapshotter: str, key: str) -> None:
    """Remove the snapshot; it being gone is fine."""
    try:
        request = snapshots.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        await client.call(SnapshotsStub(client.channel).Remove, request, patient=True)
    except NotFound:
        pass


def has_cgroup_v2() -> bool:
    """Say whether /sys/fs/cgroup is the unified hierarchy (cgroups(7))."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


async def _user(client: Client, plan: Plan) -> User:
    """Return the user as numbers; only for a name, or for a user without a group, the image's files are read."""
    text = plan.user or plan.image.execution.user or ""
    found = users.numeric(text)
    if found is not None:
        return found
    stub = SnapshotsStub(client.channel)
    key = f"rctl-user-{os.getpid()}-{random.getrandbits(32):08x}"
    async with client.held_lease():
        view = snapshots.ViewSnapshotRequest(snapshotter=plan.snapshotter, key=key, parent=plan.image.chain_id)
        answer = await client.call(stub.View, view)
        try:
            return await blocking(_resolve, text, [to_mount(message) for message in answer.mounts])
        finally:
            await remove_snapshot(client, plan.snapshotter, key)


def _resolve(text: str, mounts: list[Mount]) -> User:
    with mounted_temporarily(mounts) as root:
        return users.resolve(text, root)


def to_mount(message: types.Mount) -> Mount:
    """Return the mount of a message."""
    return Mount(message.type, message.source, message.target, tuple(message.options))
