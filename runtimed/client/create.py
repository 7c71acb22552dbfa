"""From an image to a container that can be started: record, snapshot, spec."""

import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.any_pb2 import Any

from runtimed import labels, passwd
from runtimed.api import containers_pb2 as containers
from runtimed.api import namespaces_pb2 as namespaces
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.api import types_pb2 as types
from runtimed.client.connection import Connection, service, together
from runtimed.client.documents import Documents
from runtimed.errors import NotFound, Unavailable
from runtimed.oci.container_spec import Options, container_spec
from runtimed.oci.runtime_spec import TYPE_URL, User
from runtimed.rollback import Rollback

if TYPE_CHECKING:
    from runtimed.mounts import Mount

DEFAULT_RUNTIME = "io.containerd.runc.v2"
DEFAULT_SNAPSHOTTER = "overlayfs"

_ADJECTIVES = (
    "amber brave calm clever eager fair gentle happy keen kind lively lucky merry noble proud quick quiet swift"
)
_ANIMALS = "badger crane deer eagle falcon finch fox hare heron lynx marten otter owl raven robin seal stork wren"

_Done = list[Callable[[], Awaitable[None]]]  # what undoes each step that has been done


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to create."""

    id: str
    image_name: str
    image: Documents
    snapshotter: str
    runtime: str
    user: str = ""  # "" is the image's
    labels: dict[str, str] = {}


def random_id() -> str:
    """Return an ID that people can read out, ``quick-otter-3fa9c1``."""
    adjectives, animals, number = _ADJECTIVES.split(), _ANIMALS.split(), os.urandom(5)
    return f"{adjectives[number[0] % len(adjectives)]}-{animals[number[1] % len(animals)]}-{number[2:].hex()}"


async def defaults(client: Connection) -> tuple[str, str]:
    """Return the snapshotter and the runtime for who asks for none: the namespace's, else containerd's."""
    try:
        request = namespaces.GetNamespaceRequest(name=client.namespace)
        found = (await client.call(service(namespaces, "Namespaces").Get, request)).namespace.labels
    except NotFound:
        found = {}
    return (
        found.get(labels.DEFAULT_SNAPSHOTTER) or DEFAULT_SNAPSHOTTER,
        found.get(labels.DEFAULT_RUNTIME) or DEFAULT_RUNTIME,
    )


async def create(client: Connection, plan: Plan, options: Options, steps: Rollback) -> list[types.Mount]:
    """Create the container and return the mounts of its rootfs; *steps* undoes it.

    Raises:
        AlreadyExists: the ID is taken.
    """
    user = await _user(client, plan)
    spec = container_spec(plan.image.execution, msgspec.structs.replace(options, user=user))
    record = containers.Container(
        id=plan.id,
        labels=plan.labels,
        image=plan.image_name,
        runtime=containers.Container.Runtime(name=plan.runtime),
        spec=Any(type_url=TYPE_URL, value=spec.encode()),
        snapshotter=plan.snapshotter,
        snapshot_key=plan.id,
    )
    done: _Done = []
    steps.undo("remove the container and its snapshot", _undo, done)
    # The record is sent, and written, first: without it the snapshot could be collected, as nothing referred to it.
    mounts: list[types.Mount]
    _, mounts = await together(_create_record(client, record, done), _prepare(client, plan, done))
    return mounts


async def _undo(done: _Done) -> None:
    await together(*(undo() for undo in done))


async def _create_record(client: Connection, record: containers.Container, done: _Done) -> None:
    try:
        request = containers.CreateContainerRequest(container=record)
        await client.call(service(containers, "Containers").Create, request)
    except Unavailable as exc:
        # Not undone: were the ID taken by then, it would be somebody else's that is deleted.
        exc.add_note(f"container {record.id!r} may have been made; see 'rctl ps -a'")
        raise
    done.append(lambda: delete_container(client, record.id))


async def _prepare(client: Connection, plan: Plan, done: _Done) -> list[types.Mount]:
    prepare = service(snapshots, "Snapshots").Prepare
    request = snapshots.PrepareSnapshotRequest(snapshotter=plan.snapshotter, key=plan.id, parent=plan.image.chain_id)
    try:
        prepared = await client.call(prepare, request)
    except NotFound:
        await _ensure_unpacked(client, plan)
        prepared = await client.call(prepare, request)
    done.append(lambda: remove_snapshot(client, plan.snapshotter, plan.id))
    return list(prepared.mounts)


async def _ensure_unpacked(client: Connection, plan: Plan) -> None:
    from runtimed.client.unpack import ensure_unpacked  # here: a pull has unpacked it

    await ensure_unpacked(client, plan.image, plan.snapshotter)


async def delete_container(client: Connection, id: str) -> None:
    """Delete the record; it being gone is fine."""
    try:
        request = containers.DeleteContainerRequest(id=id)
        await client.call(service(containers, "Containers").Delete, request, patient=True)
    except NotFound:
        pass


async def remove_snapshot(client: Connection, snapshotter: str, key: str) -> None:
    """Remove the snapshot; it being gone is fine."""
    try:
        request = snapshots.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        await client.call(service(snapshots, "Snapshots").Remove, request, patient=True)
    except NotFound:
        pass


def has_cgroup_v2() -> bool:
    """Say whether /sys/fs/cgroup is the unified hierarchy (cgroups(7))."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


async def _user(client: Connection, plan: Plan) -> User:
    """Return the user as numbers; only for a name, or for a user without a group, the image's files are read."""
    text = plan.user or plan.image.execution.user or ""
    found = passwd.numeric(text)
    if found is not None:
        return found
    from runtimed.threads import blocking

    await _ensure_unpacked(client, plan)
    stub = service(snapshots, "Snapshots")
    key = f"rctl-user-{os.getpid()}-{os.urandom(4).hex()}"
    async with client.held_lease():
        view = snapshots.ViewSnapshotRequest(snapshotter=plan.snapshotter, key=key, parent=plan.image.chain_id)
        answer = await client.call(stub.View, view)
        try:
            return await blocking(_resolve, text, answer.mounts)
        finally:
            await remove_snapshot(client, plan.snapshotter, key)


def _resolve(text: str, messages: Iterable[types.Mount]) -> User:
    from runtimed.mounts import mounted_temporarily  # here and below: seldom needed, and it loads ctypes

    with mounted_temporarily([to_mount(message) for message in messages]) as root:
        return passwd.resolve(text, root)


def to_mount(message: types.Mount) -> "Mount":
    """Return the mount of a message."""
    from runtimed.mounts import Mount

    return Mount(message.type, message.source, message.target, tuple(message.options))
