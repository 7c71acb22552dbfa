"""StopPodSandbox and RemovePodSandbox: the steps of RunPodSandbox backwards, each fine with "already gone"."""

import logging

from runtimed.api import cri_pb2 as pb
from runtimed.cri import ending, records, sandbox_files
from runtimed.cri.cni import NetworkList
from runtimed.cri.container_remove import remove_container
from runtimed.cri.container_stop import stop_at_once
from runtimed.cri.core import Core, all_of
from runtimed.cri.sandbox_status import publish
from runtimed.cri.state import Sandbox
from runtimed.threads import blocking

log = logging.getLogger(__name__)


async def stop_pod_sandbox(core: Core, id: str) -> None:
    """Stop a pod with its containers and take its network away; fine if there is none, or it is stopped.

    Raises:
        RuntimedError: a plugin's, for one. The pod does not run then, and who asks again goes on from there.
    """
    sandbox = core.state.sandboxes.find(id)
    if sandbox is not None:
        await core.operations.run(("StopPodSandbox", sandbox.id), lambda: _stop(core, sandbox))


async def remove_pod_sandbox(core: Core, id: str) -> None:
    """Remove a pod with its containers, running or not; fine if there is none. Raises as :func:`stop_pod_sandbox`."""
    sandbox = core.state.sandboxes.find(id)
    if sandbox is not None:
        await core.operations.run(("RemovePodSandbox", sandbox.id), lambda: _remove(core, sandbox))


async def _stop(core: Core, sandbox: Sandbox) -> None:
    async with sandbox.lock:
        sandbox.is_stopping = True  # no containers from here on
        if sandbox.record.is_stopped and not sandbox.record.network and not sandbox.pid:
            return
        await all_of(*(stop_at_once(core, container) for container in sandbox.containers.values()))
        await core.hooks.stop_pod(sandbox)
        await all_of(_end_pause(core, sandbox), detach(core, sandbox))
        for path in sandbox.record.pinned():
            await core.network.unpin(path)
        await blocking(sandbox_files.unmount, core.files(sandbox))
        sandbox.record.is_stopped = True
        await core.save(sandbox.id, sandbox.record)


async def _remove(core: Core, sandbox: Sandbox) -> None:
    await core.operations.run(("StopPodSandbox", sandbox.id), lambda: _stop(core, sandbox))
    async with sandbox.lock:
        for container in list(sandbox.containers.values()):
            await remove_container(core, container.id)
        await core.hooks.remove_pod(sandbox)
        await core.remove_snapshot(sandbox.snapshotter, sandbox.id, sandbox.id)
        await blocking(sandbox_files.delete, core.files(sandbox))
        await core.db.write(records.delete, sandbox.id)
        core.state.sandboxes.remove(sandbox)
        core.state.sandboxes.release(sandbox.name, sandbox.id)
    publish(core, sandbox, sandbox.id, pb.CONTAINER_DELETED_EVENT)


async def detach(core: Core, sandbox: Sandbox) -> None:
    """Leave the network, if the pod is on one or may be; remember when that is done."""
    record = sandbox.record
    if record.network is None:
        return
    network = NetworkList.from_json(record.network)
    await core.network.detach(network, core.attachment(sandbox), record.result)
    record.network = record.result = None


async def _end_pause(core: Core, sandbox: Sandbox) -> None:
    await ending.end(core, sandbox.id)
    if sandbox.is_ready:
        sandbox.is_ready, sandbox.pid = False, 0
        publish(core, sandbox, sandbox.id, pb.CONTAINER_STOPPED_EVENT)
