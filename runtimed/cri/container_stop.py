"""StopContainer: ask, wait, kill."""

import asyncio
import signal
from contextlib import suppress

from runtimed.api import cri_pb2 as pb
from runtimed.cri import container_exit, ending
from runtimed.cri.container_exit import unseen_exit
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.errors import DeadlineExceeded, RuntimedError

_KILLED_WITHIN_S = 10.0  # from SIGKILL to the exit; more only if the kernel cannot end it
_TOLD_WITHIN_S = 1.0  # from SIGKILL to the word of the exit, as a rule


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
    if not await _ended(container, _TOLD_WITHIN_S) and not await _asked(core, container):
        raise DeadlineExceeded(f"container {container.id}: still there {_KILLED_WITHIN_S:g} s after SIGKILL")


def is_alive(container: Container) -> bool:
    """Say whether there may be a process."""
    return container.state in (pb.CONTAINER_RUNNING, pb.CONTAINER_UNKNOWN)


async def _asked(core: Core, container: Container) -> bool:
    """Wait for the end of a container that was killed; return whether it has come.

    The shim is asked: the word of it may be behind other events, or one that a daemon who was killed has not taken.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILLED_WITHIN_S - _TOLD_WITHIN_S):
            with suppress(RuntimedError):  # the task has gone with its shim, and that is told as well
                container_exit.told(core, container.id, await core.tasks.wait(NAMESPACE, container.id, ""))
            await container.ended.wait()
    return container.ended.is_set()


async def _ended(container: Container, limit_s: float) -> bool:
    """Wait for the end of a container; return whether it has come."""
    try:
        async with asyncio.timeout(limit_s):
            await container.ended.wait()
    except TimeoutError:
        return False
    return True
