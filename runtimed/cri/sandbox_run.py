"""RunPodSandbox: what a pod is made of, as a list of steps of which each can be undone."""

import logging
import secrets
import time

from runtimed.api import cri_pb2 as pb
from runtimed.cri import ending, records, sandbox_files
from runtimed.cri.cni import NetworkList, addresses
from runtimed.cri.core import Core, together
from runtimed.cri.handlers import Handler
from runtimed.cri.images import NAMESPACE, Image
from runtimed.cri.namespaces import id_ranges, root_of, user_mappings
from runtimed.cri.records import SandboxRecord
from runtimed.cri.request import SandboxSpecRequest
from runtimed.cri.sandbox_check import check
from runtimed.cri.sandbox_status import publish
from runtimed.cri.sandbox_stop import detach
from runtimed.cri.spec import sandbox_spec
from runtimed.cri.state import Sandbox, sandbox_name
from runtimed.errors import FailedPrecondition, NotFound
from runtimed.metadata.containers import Container, Opaque
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import TYPE_URL
from runtimed.rollback import Rollback
from runtimed.tasks.making import NewTask
from runtimed.threads import blocking

log = logging.getLogger(__name__)


async def run_pod_sandbox(core: Core, config: pb.PodSandboxConfig, handler_name: str) -> str:
    """Bring a pod up; return its ID. The same request once more gets the same pod.

    Raises:
        InvalidArgument: a configuration that cannot be.
        AlreadyExists, FailedPrecondition: there is such a pod, of another configuration or stopped.
        RuntimedError: what a plugin, the runtime or the kernel says.
    """
    check(config)
    handler = core.handlers.get(handler_name)
    name = sandbox_name(config.metadata)
    request = (config.SerializeToString(deterministic=True), handler_name)
    existing = core.state.sandboxes.holder(name)
    if existing and existing.is_ready and (existing.config, existing.record.handler) == (config, handler_name):
        return existing.id
    sandbox = _new(core, config, handler, handler_name)
    if sandbox.record.userns and not core.has_user_namespaces(handler):
        raise FailedPrecondition(
            f"runtime handler {handler.name!r} has no user namespaces: they take the built-in shim, and a snapshotter"
            f" with ID-mapped layers, which {handler.snapshotter!r} is not here"
        )
    core.attachment(sandbox)  # refuses what the plugins could not be told
    return await core.operations.run(("RunPodSandbox", name), lambda: _run(core, sandbox, handler), request)


async def _run(core: Core, sandbox: Sandbox, handler: Handler) -> str:
    record = sandbox.record
    async with Rollback() as steps:
        core.state.sandboxes.reserve(sandbox.name, sandbox.id)
        core.state.coming[sandbox.id] = sandbox
        steps.undo("release the name", _release, core, sandbox)
        image = await core.pause_image()
        if record.netns:
            record.network = (await core.network.configured()).to_json()
        container = await blocking(_container, core, sandbox, handler, image)

        steps.undo("delete the record, unless the network has to be left first", _forget, core, sandbox)
        steps.undo("delete the files", blocking, sandbox_files.delete, core.files(sandbox))
        for path in record.pinned():
            steps.undo(f"delete the namespace {path}", core.network.unpin, path)
        await together(
            core.db.write(records.create_sandbox, container),
            _make_files(core, sandbox),
            _make_namespaces(core, sandbox),
        )
        steps.undo("leave the network", detach, core, sandbox)
        steps.undo("remove the snapshot", core.remove_snapshot, sandbox.snapshotter, sandbox.id, sandbox.id)
        steps.undo("end the pause process", ending.end, core, sandbox.id)
        # The process is made while the plugins work: it needs the namespace, not what will be in it.
        await together(_attach(core, sandbox), _create_pause(core, sandbox, image))
        record.is_made = True
        await together(core.tasks.start(NAMESPACE, sandbox.id, ""), core.save(sandbox.id, record))
        async with core.hooks.making():
            steps.undo("tell that it has come to nothing", core.hooks.remove_pod, sandbox)
            await core.hooks.run_pod(sandbox)
            steps.commit()
            del core.state.coming[sandbox.id]
            sandbox.is_ready = bool(sandbox.pid)  # 0 if it has ended already
            core.state.sandboxes.add(sandbox)
    publish(core, sandbox, sandbox.id, pb.CONTAINER_CREATED_EVENT)
    publish(core, sandbox, sandbox.id, pb.CONTAINER_STARTED_EVENT)
    return sandbox.id


def _new(core: Core, config: pb.PodSandboxConfig, handler: Handler, handler_name: str) -> Sandbox:
    id = secrets.token_hex(32)
    options = config.linux.security_context.namespace_options
    is_on_host = options.network == pb.NODE
    return Sandbox(
        id=id,
        config=config,
        record=SandboxRecord(
            config=config.SerializeToString(),
            handler=handler_name,
            created_at=time.time_ns(),
            netns="" if is_on_host else core.network.path(id),
            userns=core.network.userns_path(id) if user_mappings(options)[0] else "",
        ),
        handler=handler.name,
        snapshotter=handler.snapshotter,
    )


def _container(core: Core, sandbox: Sandbox, handler: Handler, image: Image) -> Container:
    sandbox.record.image = image.id
    request = SandboxSpecRequest(
        sandbox_id=sandbox.id,
        config=sandbox.config,
        image=image.contents.config.config or Execution(),
        netns=sandbox.record.netns,
        userns=sandbox.record.userns,
        directory=core.files(sandbox),
        rules=handler.rules,
    )
    return Container(
        id=sandbox.id,
        runtime=handler.settings.runtime,
        spec=Opaque(TYPE_URL, sandbox_spec(request).encode()),
        image=image.tags[0] if image.tags else image.id,
        snapshotter=sandbox.snapshotter,
        snapshot_key=sandbox.id,
        sandbox=sandbox.id,
        extensions=records.extensions(sandbox.record),
        labels=records.marks(records.SANDBOX, sandbox.config.labels),
    )


async def _make_files(core: Core, sandbox: Sandbox) -> None:
    options = sandbox.namespace_options
    await blocking(
        sandbox_files.create,
        core.files(sandbox),
        sandbox.config,
        host_network=options.network == pb.NODE,
        host_ipc=options.ipc == pb.NODE,
        owner=root_of(options),
    )


async def _make_namespaces(core: Core, sandbox: Sandbox) -> None:
    record = sandbox.record
    if record.userns:
        await core.network.create_userns(sandbox.id, *id_ranges(sandbox.namespace_options))
    if record.netns:
        await core.network.create_netns(sandbox.id, record.userns)


async def _attach(core: Core, sandbox: Sandbox) -> None:
    record = sandbox.record
    if record.network is None:
        return
    network = NetworkList.from_json(record.network)
    record.result = await core.network.attach(network, core.attachment(sandbox))
    record.ips = addresses(record.result)
    await blocking(sandbox_files.add_addresses, core.files(sandbox), sandbox.config.hostname, record.ips)


async def _create_pause(core: Core, sandbox: Sandbox, image: Image) -> None:
    try:
        mounts = await core.prepare(sandbox, sandbox.id, image)
    except NotFound:  # somebody has removed the image
        image = await core.pause_image(anew=True)
        mounts = await core.prepare(sandbox, sandbox.id, image)
    sandbox.pid = await core.tasks.create(NAMESPACE, NewTask(id=sandbox.id, rootfs=mounts))


async def _release(core: Core, sandbox: Sandbox) -> None:
    core.state.coming.pop(sandbox.id, None)
    core.state.sandboxes.release(sandbox.name, sandbox.id)


async def _forget(core: Core, sandbox: Sandbox) -> None:
    """Delete the record; where the network could not be left, keep the pod as a stopped one, to try that again."""
    record = sandbox.record
    if record.network is None:
        await core.remove_snapshot(sandbox.snapshotter, sandbox.id, sandbox.id)
        await core.db.write(records.delete, sandbox.id)
        return
    log.warning("a pod that could not be made has not left its network", extra={"sandbox": sandbox.id})
    record.is_named = False
    core.state.sandboxes.add(sandbox)
    await core.save(sandbox.id, record)
