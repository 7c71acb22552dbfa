"""CreateContainer: a record and a writable layer; nothing runs yet."""

import secrets
import time

from runtimed.api import cri_pb2 as pb
from runtimed.cri import basic_spec, cgroups, records
from runtimed.cri.core import Core
from runtimed.cri.images import Image
from runtimed.cri.records import ContainerRecord
from runtimed.cri.sandbox_status import publish
from runtimed.cri.state import Container, Sandbox, container_name
from runtimed.errors import FailedPrecondition, InvalidArgument
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.oci.runtime_spec import TYPE_URL
from runtimed.rollback import Rollback


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
    image = await core.images.get(config.image.image)
    container = _new(sandbox, config, image)
    async with Rollback() as steps:
        core.state.containers.reserve(container.name, container.id)
        steps.undo("release the name", _release, core, container)
        steps.undo("remove the writable layer", core.remove_snapshot, sandbox.snapshotter, container.id, sandbox.id)
        await core.prepare(sandbox.snapshotter, container.id, image.contents.chain_id, sandbox.id)
        record = _record(core, container, image)
        steps.undo("delete the record", core.db.write, records.delete, container.id)
        await core.db.write(records.create_container, record)
        if sandbox.is_stopping:
            raise FailedPrecondition(f"sandbox {sandbox.id} is being stopped")
        steps.commit()
    sandbox.containers[container.id] = container
    core.state.containers.add(container)
    publish(core, sandbox, container.id, pb.CONTAINER_CREATED_EVENT)
    return container.id


def _new(sandbox: Sandbox, config: pb.ContainerConfig, image: Image) -> Container:
    run = image.contents.config.config
    signal = pb.Signal.Name(config.stop_signal) if config.stop_signal else (run.stop_signal if run else None) or ""
    record = ContainerRecord(
        config=config.SerializeToString(),
        sandbox=sandbox.id,
        image=image.id,
        image_ref=image.digests[0] if image.digests else image.id,
        created_at=time.time_ns(),
        stop_signal=signal,
        resources=config.linux.resources.SerializeToString(),
    )
    return Container(id=secrets.token_hex(32), sandbox=sandbox, config=config, record=record)


def _record(core: Core, container: Container, image: Image) -> containers.Container:
    sandbox = container.sandbox
    handler = core.handlers.get(sandbox.handler)
    cgroup = cgroups.path_of(handler, sandbox.config.linux.cgroup_parent, container.id)
    spec = basic_spec.container_spec(
        container.config, sandbox, image.contents.config, cgroup, core.files(sandbox), id=container.id
    )
    return containers.Container(
        id=container.id,
        runtime=handler.settings.runtime,
        spec=Opaque(TYPE_URL, spec),
        image=container.config.image.user_specified_image or container.config.image.image,
        snapshotter=sandbox.snapshotter,
        snapshot_key=container.id,
        sandbox=sandbox.id,
        extensions=records.extensions(container.record),
        labels=records.marks(records.CONTAINER, container.config.labels),
    )


async def _release(core: Core, container: Container) -> None:
    core.state.containers.release(container.name, container.id)
