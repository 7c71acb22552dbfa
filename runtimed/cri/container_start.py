"""StartContainer: the task that makes a container run."""

import time
from pathlib import Path
from urllib.parse import quote

from runtimed.api import cri_pb2 as pb
from runtimed.cri import container_exit, ending, restore
from runtimed.cri.attach import make_input
from runtimed.cri.core import Core, together
from runtimed.cri.images import NAMESPACE
from runtimed.cri.mapped_volumes import mapped_volumes
from runtimed.cri.sandbox_status import publish
from runtimed.cri.state import Container
from runtimed.errors import FailedPrecondition, RuntimedError, os_errors
from runtimed.rollback import Rollback
from runtimed.tasks.client import Exit, Stdio
from runtimed.tasks.making import NewTask
from runtimed.threads import blocking

_START_ERROR, _START_ERROR_CODE = "StartError", 128  # what the reference has for a command that cannot be run


async def start_container(core: Core, id: str) -> None:
    """Run a container that was created; fine if the same request has just done so.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it has been started before, or its pod does not run.
        RuntimedError: the runtime's own error. The container has ended then, and says why.
    """
    container = core.state.containers.get(id)
    await core.operations.run(("StartContainer", container.id), lambda: _start(core, container))


async def _start(core: Core, container: Container) -> None:
    async with container.lock:
        if container.state != pb.CONTAINER_CREATED:
            state = pb.ContainerState.Name(container.state)
            raise FailedPrecondition(f"container {container.id} is in state {state}, not CONTAINER_CREATED")
        sandbox = core.state.ready_sandbox(container.sandbox.id)
        try:
            await core.hooks.start(container)
            await _run(core, container)
        except RuntimedError as exc:
            container.record.started_at = 0
            container.record.reason, container.record.message = _START_ERROR, str(exc)
            exit = Exit(pid=0, status=_START_ERROR_CODE, exited_at=time.time_ns())
            container_exit.note(core, container, exit)
            await restore.forget(core, container)
            raise
        container.state = pb.CONTAINER_RUNNING
        await restore.forget(core, container)
    publish(core, sandbox, container.id, pb.CONTAINER_STARTED_EVENT)
    await core.hooks.started(container)


async def _run(core: Core, container: Container) -> None:
    snapshots = core.snapshots(container.sandbox.snapshotter)
    mounts = await blocking(snapshots.mounts, NAMESPACE, container.id)
    log = container.log_path
    if log:
        await blocking(_make_directory, Path(log).parent)
    output = f"cri://{quote(log)}?max_line={core.settings.max_log_line}"  # without a file, clients may be attached
    stdin = await blocking(make_input, core.container_directory(container.id)) if container.config.stdin else ""
    tty = container.config.tty
    stdio = Stdio(stdin=str(stdin), stdout=output, stderr="" if tty else output, terminal=tty)
    async with Rollback() as steps:
        steps.undo("remove the task", ending.end, core, container.id)
        new = NewTask(id=container.id, rootfs=mounts, stdio=stdio, options=await restore.task_options(core, container))
        async with mapped_volumes(core, container):
            await core.tasks.create(NAMESPACE, new)
        container.record.started_at = time.time_ns()
        # Whatever happens from here on, it counts as one that has run.
        _, container.pid = await together(
            core.save(container.id, container.record), core.tasks.start(NAMESPACE, container.id, "")
        )
        steps.commit()


def _make_directory(path: Path) -> None:
    with os_errors(f"log directory {path}"):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
