"""StopContainer: ask, wait, kill."""

import asyncio
import signal

from runtimed.api import cri_pb2 as pb
from runtimed.cri import container_exit, ending
from runtimed.cri.container_exit import unseen_exit
from runtimed.cri.core import Core
from runtimed.cri.state import Container
from runtimed.errors import DeadlineExceeded

_KILLED_WITHIN_S = 10.0  # from SIGKILL to the exit; more only if the kernel cannot end it


async def stop_container(core: Core, id: str, timeout_s: int) -> None:
    """Send the stop signal, and SIGKILL if the container has not ended *timeout_s* later; return when it has.

    Fine if there is no such container, or it does not run. Several calls at once are one container's end: the
    shortest timeout counts.

    Raises:
        DeadlineExceeded: it cannot be killed.
    """
    container = core.state.containers.find(id)
    if container is None:
        return
    async with container.lock:
        pass  # a start under way comes first
    if not is_alive(container):
        return
    await core.hooks.stop(container)
    if timeout_s > 0:
        number = container.record.stop_signal or signal.SIGTERM
        if await ending.kill(core, container.id, number) and await _ended(container, timeout_s):
            return
    await stop_at_once(core, container)


async def stop_at_once(core: Core, container: Container) -> None:
    """Kill a container, if it runs, and wait for its end. Raises DeadlineExceeded."""
    async with container.lock:
        pass
    if not is_alive(container):
        return
    await core.hooks.stop(container)
    if not await ending.kill(core, container.id) and not await ending.exists(core, container.id):
        container_exit.note(core, container, unseen_exit())
        return
    if not await _ended(container, _KILLED_WITHIN_S):
        raise DeadlineExceeded(f"container {container.id}: still there {_KILLED_WITHIN_S:g} s after SIGKILL")


def is_alive(container: Container) -> bool:
    """Say whether there may be a process."""
    return container.state in (pb.CONTAINER_RUNNING, pb.CONTAINER_UNKNOWN)


async def _ended(container: Container, limit_s: float) -> bool:
    """Wait for the end of a container; return whether it has come."""
    try:
        async with asyncio.timeout(limit_s):
            await container.ended.wait()
    except TimeoutError:
        return False
    return True
