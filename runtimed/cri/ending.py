"""Ending tasks, whatever state they are in."""

import signal
from contextlib import suppress

from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.errors import FailedPrecondition, NotFound
from runtimed.tasks.client import Exit


async def kill(core: Core, id: str, number: int = signal.SIGKILL) -> bool:
    """Send a signal to the first process of a task; return whether there was one to send it to."""
    try:
        await core.tasks.kill(NAMESPACE, id, "", number, all=False)
    except NotFound:
        return False
    return True


async def exists(core: Core, id: str) -> bool:
    """Say whether there is a task, in whatever state."""
    try:
        await core.tasks.get(NAMESPACE, id)
    except NotFound:
        return False
    return True


async def end(core: Core, id: str) -> Exit | None:
    """Kill a task and remove it; return how it ended, None if there is none."""
    with suppress(NotFound):
        with suppress(FailedPrecondition):  # not started yet: deleting does it
            await core.tasks.kill(NAMESPACE, id, "", signal.SIGKILL, all=False)
            await core.tasks.wait(NAMESPACE, id, "")
        return await core.tasks.delete(NAMESPACE, id)
    with suppress(NotFound):  # killing found no process; the task may be there
        return await core.tasks.delete(NAMESPACE, id)
    return None


async def remove(core: Core, id: str) -> Exit | None:
    """Remove a task that has ended; return how, None if it is gone."""
    with suppress(NotFound):
        return await core.tasks.delete(NAMESPACE, id)
    return None
