"""CreateContainer: a record and a writable layer; nothing runs yet."""

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.api import runc_options_pb2
from runtimed.cri import mapped_volumes, records, restore, signals
from runtimed.cri.container_images import mount_images, unmount_images
from runtimed.cri.core import Core
from runtimed.cri.images import Image
from runtimed.cri.namespaces import id_ranges
from runtimed.cri.records import ContainerRecord
from runtimed.cri.request import ContainerSpecRequest
from runtimed.cri.rootfs import Rootfs
from runtimed.cri.sandbox_status import publish
from runtimed.cri.spec import container_spec
from runtimed.cri.state import Container, Sandbox, container_name
from runtimed.diff.stacks import read_only
from runtimed.errors import FailedPrecondition, InvalidArgument
from runtimed.linux import idmap
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.mounts import Mount, mounted_temporarily
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import TYPE_URL, User
from runtimed.rollback import Rollback
from runtimed.tasks.client import RUNC_OPTIONS
from runtimed.threads import blocking


async def create_container(core: Core, sandbox_id: str, config: pb.ContainerConfig) -> str:
    """Make a container in a pod; return its ID. The same request once more gets the same container.

    Raises:
        NotFound: no such pod, or the image is not here.
        InvalidArgument: a configuration that cannot be.
        FailedPrecondition, AlreadyExists: the pod does not run; its name is that of another container.
    """
    if not config.metadata.name:
        raise InvalidArgument("container: its metadata must have a name")
    sandbox = core.state.ready_sandbox(sandbox_id)
    name = container_name(config.metadata, sandbox.config.metadata)
    existing = core.state.containers.holder(name)
    if existing is not None and existing.state == pb.CONTAINER_CREATED and existing.config == config:
        return existing.id
    request = (sandbox.id, config.SerializeToString(deterministic=True))
    return await core.operations.run(("CreateContainer", name), lambda: _create(core, sandbox, config), request)


async def _create(core: Core, sandbox: Sandbox, config: pb.ContainerConfig) -> str:
    async with restore.origin(core, sandbox, config) as origin:
        return await _make(core, _new(sandbox, config, origin), origin)


async def _make(core: Core, container: Container, origin: restore.Origin) -> str:
    sandbox, image, checkpoint = container.sandbox, origin.image, origin.checkpoint
    async with Rollback() as steps:
        core.state.containers.reserve(container.name, container.id)
        steps.undo("release the name", _release, core, container)
        steps.undo("remove the writable layer", core.remove_snapshot, sandbox.snapshotter, container.id, sandbox.id)
        mounts = await core.prepare(sandbox, container.id, image)
        if checkpoint is not None:
            await checkpoint.apply(core, mounts)
        steps.undo("take its images off", unmount_images, core, container)
        images = await mount_images(core, container)
        steps.undo("delete its directory", blocking, shutil.rmtree, core.container_directory(container.id), True)
        record = await blocking(_record, core, container, image, mounts, images)
        async with core.hooks.making():
            steps.undo("tell that it has come to nothing", core.hooks.remove, container)
            record = await core.hooks.create(container, record)
            if checkpoint is not None:
                await checkpoint.check(container, record.spec.value)
            steps.undo("delete the record", core.db.write, records.delete, container.id)
            await core.db.write(records.create_container, record)
            if sandbox.is_stopping:
                raise FailedPrecondition(f"sandbox {sandbox.id} is being stopped")
            steps.commit()
            sandbox.containers[container.id] = container
            core.state.containers.add(container)
            await core.hooks.created(container)
    publish(core, sandbox, container.id, pb.CONTAINER_CREATED_EVENT)
    return container.id


def _new(sandbox: Sandbox, config: pb.ContainerConfig, origin: restore.Origin) -> Container:
    image = origin.image
    record = ContainerRecord(
        config=config.SerializeToString(),
        sandbox=sandbox.id,
        image=image.id,
        image_ref=image.digests[0] if image.digests else image.id,
        created_at=time.time_ns(),
        stop_signal=_stop_signal(config, image.contents.config.config or Execution()),
        resources=config.linux.resources.SerializeToString(),
        restored_image=origin.checkpoint.base if origin.checkpoint else "",
    )
    return Container(id=origin.id, sandbox=sandbox, config=config, record=record)


def _record(
    core: Core, container: Container, image: Image, mounts: Sequence[Mount], images: Mapping[str, Path]
) -> containers.Container:
    """Return the record. Blocks: who the container runs as stands in its rootfs."""
    sandbox, config = container.sandbox, container.config
    handler = core.handlers.get(sandbox.handler)
    name = container.image.user_specified_image or container.image.image
    # Without an upperdir: taking that off has the kernel bring the whole file system below it to disk.
    root = mounted_temporarily(read_only(mounts), core.mountpoints())
    accounts_of = "" if container.record.restored_image else image.contents.chain_id  # or they are its own
    with Rootfs(root, accounts_of, core.known_accounts) as rootfs:
        request = ContainerSpecRequest(
            container_id=container.id,
            sandbox_id=sandbox.id,
            sandbox_pid=sandbox.pid,
            config=config,
            sandbox_config=sandbox.config,
            image=image.contents.config.config or Execution(),
            image_name=name,
            netns=sandbox.record.netns,
            rootfs=rootfs,
            directory=core.container_directory(container.id),
            sandbox_directory=core.files(sandbox),
            mapped_volumes=mapped_volumes.directory(core, container.id),
            target_pid=_target(core, config),
            image_mounts=images,
            rules=handler.rules,
        )
        spec = container_spec(request)
    user = spec.process.user
    container.record.user = [user.uid, user.gid, *user.additional_gids]
    return containers.Container(
        id=container.id,
        runtime=handler.settings.runtime,
        runtime_options=_stream_owner(sandbox, user),
        spec=Opaque(TYPE_URL, spec.encode()),
        image=name,
        snapshotter=sandbox.snapshotter,
        snapshot_key=container.id,
        sandbox=sandbox.id,
        extensions=records.extensions(container.record),
        labels=records.marks(records.CONTAINER, config.labels),
    )


def _stream_owner(sandbox: Sandbox, user: User) -> Opaque | None:
    """Return the runtime's options of a container in a user namespace: it can open its streams if they are its own."""
    uids, gids = id_ranges(sandbox.namespace_options)
    if not uids:
        return None
    try:
        options = runc_options_pb2.Options(io_uid=idmap.shown(user.uid, uids), io_gid=idmap.shown(user.gid, gids))
    except ValueError:
        message = f"user {user.uid} and group {user.gid} must be in the mappings of the pod's user namespace"
        raise InvalidArgument(message) from None
    return Opaque(RUNC_OPTIONS, options.SerializeToString())


def _target(core: Core, config: pb.ContainerConfig) -> int | None:
    """Return the process whose pid namespace the container is to share; None if none is asked for."""
    options = config.linux.security_context.namespace_options
    if options.pid != pb.TARGET:
        return None
    target = core.state.containers.get(options.target_id)
    if target.state != pb.CONTAINER_RUNNING:
        raise FailedPrecondition(f"container {target.id}, whose pid namespace is asked for, is not running")
    return target.pid


def _stop_signal(config: pb.ContainerConfig, image: Execution) -> int:
    """Return what it is stopped with; an image that names no signal must be stopped all the same."""
    try:
        return signals.stop_signal(config, image)
    except InvalidArgument:
        return signal.SIGTERM


async def _release(core: Core, container: Container) -> None:
    core.state.containers.release(container.name, container.id)
