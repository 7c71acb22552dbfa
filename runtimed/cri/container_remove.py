"""RemoveContainer."""

import shutil

from runtimed.api import cri_pb2 as pb
from runtimed.cri import ending, records
from runtimed.cri.container_images import unmount_images
from runtimed.cri.container_stop import stop_at_once
from runtimed.cri.core import Core
from runtimed.cri.sandbox_status import publish
from runtimed.cri.state import Container
from runtimed.threads import blocking


async def remove_container(core: Core, id: str) -> None:
    """Remove a container, ending it if it runs; fine if there is none.

    Raises:
        DeadlineExceeded: it cannot be killed.
    """
    container = core.state.containers.find(id)
    if container is not None:
        await core.operations.run(("RemoveContainer", container.id), lambda: _remove(core, container))


async def _remove(core: Core, container: Container) -> None:
    sandbox = container.sandbox
    await stop_at_once(core, container)
    await core.hooks.remove(container)
    async with container.lock:
        await ending.end(core, container.id)  # of one that was never started, or whose removal failed
        await core.db.write(records.delete, container.id)
        await core.remove_snapshot(sandbox.snapshotter, container.id, sandbox.id)
        await unmount_images(core, container)
        await blocking(shutil.rmtree, core.container_directory(container.id), ignore_errors=True)
        core.state.containers.remove(container)
        core.state.containers.release(container.name, container.id)
        sandbox.containers.pop(container.id, None)
    publish(core, sandbox, container.id, pb.CONTAINER_DELETED_EVENT)
