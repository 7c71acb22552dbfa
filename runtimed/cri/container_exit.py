"""What the end of a container, or of a pod's first process, means: told by events of its task."""

import asyncio
import logging
import time
from contextlib import suppress

from google.protobuf.message import DecodeError

from runtimed.api import cri_pb2 as pb
from runtimed.api import events_pb2, types_pb2
from runtimed.cri import ending
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.sandbox_status import publish
from runtimed.cri.state import Container, Sandbox
from runtimed.errors import ResourceExhausted, RuntimedError
from runtimed.events import EventBus
from runtimed.tasks import client, pids
from runtimed.tasks.client import Exit, Status
from runtimed.threads import blocking

log = logging.getLogger(__name__)

OOM_KILLED = "OOMKilled"
_UNSEEN = 255  # containerd's too: nobody knows how it ended
_TOLD_WITHIN_S = 2.0  # from the end of a first process to the word of it; more only if the daemon has much to do


async def watch(core: Core, events: EventBus, ready: asyncio.Event) -> None:
    """Take note of ends and of memory that ran out, until the bus closes. *ready* is set once nothing is missed."""
    topics = [f"topic==/tasks/{what},namespace=={NAMESPACE}" for what in ("exit", "oom")]
    is_behind = False
    while True:
        with suppress(ResourceExhausted), events.subscribe(topics) as subscription:
            if is_behind:  # of what was lost, the tasks themselves tell the end
                await look(core)
            ready.set()
            async for envelope in subscription:
                if envelope.topic == "/tasks/oom":
                    if (container := core.state.containers.find(_out_of_memory(envelope))) is not None:
                        container.is_oom = True
                elif (ended := client.ended_init(envelope)) is not None:
                    told(core, ended.id, ended.exit)
            return
        is_behind = True


def _out_of_memory(envelope: types_pb2.Envelope) -> str:
    """Return whose memory ran out; "" if the event does not say so: any client may publish what it likes."""
    try:
        return events_pb2.TaskOOM.FromString(envelope.event.value).container_id
    except DecodeError:
        return ""


async def look(core: Core) -> None:
    """Ask every task that should run how it is, and take note of those that have ended."""
    for container in core.state.containers:
        if container.state == pb.CONTAINER_RUNNING:
            with suppress(RuntimedError):
                process = await core.tasks.get(NAMESPACE, container.id)
                if process.status is Status.STOPPED:
                    told(core, container.id, exit_of(process))
    for sandbox in core.state.sandboxes:
        if sandbox.is_ready and not await ending.exists(core, sandbox.id):
            told(core, sandbox.id, unseen_exit())


def exit_of(process: client.Process) -> Exit:
    """Return how a process that has stopped ended."""
    return Exit(pid=process.pid, status=process.exit_status, exited_at=process.exited_at)


def unseen_exit() -> Exit:
    """Return the end of a container that nobody has seen."""
    return Exit(pid=0, status=_UNSEEN, exited_at=time.time_ns())


def note(core: Core, container: Container, exit: Exit) -> None:
    """Remember how a container has ended, and tell it. The first to say so counts, unless he only guessed."""
    record = container.record
    if container.state == pb.CONTAINER_EXITED and not (record.exit_code == _UNSEEN and exit.status != _UNSEEN):
        return
    container.state, container.pid = pb.CONTAINER_EXITED, 0
    record.exit_code, record.finished_at = exit.status, exit.exited_at
    record.reason = OOM_KILLED if container.is_oom and exit.status else record.reason
    container.ended.set()
    core.save_soon(container.id, record)
    publish(core, container.sandbox, container.id, pb.CONTAINER_STOPPED_EVENT)


async def remove_unstarted(core: Core, container: Container) -> None:
    """Remove the task of a container that is to be started yet: starting it makes another one."""
    async with container.lock:
        await ending.end(core, container.id)
        container.pid = container.record.started_at = 0
        core.save_soon(container.id, container.record)


async def has_ended(container: Container) -> bool:
    """Say whether a container runs no more; wait for the word of it if its first process is at its end.

    With that the kernel kills all others, and starts no more, some time before anybody is told.
    """
    if container.state == pb.CONTAINER_RUNNING and await blocking(pids.is_ending, container.pid):
        with suppress(TimeoutError):
            async with asyncio.timeout(_TOLD_WITHIN_S):
                await container.ended.wait()
    return container.state != pb.CONTAINER_RUNNING


def told(core: Core, id: str, exit: Exit) -> None:
    """Take note, in the background, that the first process of a container or pod has ended."""
    sandbox = core.state.coming.get(id) or core.state.sandboxes.find(id)
    if sandbox is not None:
        core.spawn(_sandbox_ended(core, sandbox))
    elif (container := core.state.containers.find(id)) is not None:
        core.spawn(_container_ended(core, container, exit))


async def _container_ended(core: Core, container: Container, exit: Exit) -> None:
    async with container.lock:  # a start under way is told before its end
        if _is_anothers(container, exit):
            return
        note(core, container, exit)
        try:
            await ending.remove(core, container.id)
        except RuntimedError as exc:
            log.warning("an ended task stays", extra={"container": container.id, "error": str(exc)})
    await core.hooks.stop(container)


def _is_anothers(container: Container, exit: Exit) -> bool:
    """Say whether *exit* is that of an earlier task of a container: one that a daemon was killed before it started."""
    is_unstarted = container.state == pb.CONTAINER_CREATED
    return is_unstarted or bool(exit.pid and container.pid and exit.pid != container.pid)


async def _sandbox_ended(core: Core, sandbox: Sandbox) -> None:
    sandbox.pid = 0
    if sandbox.is_ready:
        log.info("a pod's first process has ended", extra={"sandbox": sandbox.id})
        sandbox.is_ready = False
        publish(core, sandbox, sandbox.id, pb.CONTAINER_STOPPED_EVENT)
