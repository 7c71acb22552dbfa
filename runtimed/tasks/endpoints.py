"""Who answers where a shim of ours is to be."""

from dataclasses import replace

from runtimed.errors import DeadlineExceeded, NotFound, RuntimedError
from runtimed.tasks import pids
from runtimed.tasks.client import Endpoint, TaskClient

_ANSWERS_WITHIN_S = 2.0


def identified(endpoint: Endpoint, pid: int) -> Endpoint:
    """Return *endpoint* with the shim's pid and the start time that tells it from a later process with that pid."""
    return replace(endpoint, pid=pid, started=pids.started(pid))


async def joined(endpoint: Endpoint, id: str, group: str) -> Endpoint | None:
    """Return the shim at *endpoint* if it can take task *id*; None if it is gone. Raises DeadlineExceeded."""
    try:
        connected = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
    except RuntimedError:
        return None
    try:
        return identified(endpoint, await connected.shim_pid(_ANSWERS_WITHIN_S))
    except DeadlineExceeded:
        raise DeadlineExceeded(
            f"task {id}: the shim of its group {group} (pid {endpoint.pid}) does not answer; end that group's tasks"
        ) from None
    except RuntimedError:
        return None
    finally:
        await connected.close()


async def answering(endpoint: Endpoint, id: str) -> Endpoint | None:
    """Return *endpoint* with the pid of the shim that answers there; None if none does."""
    try:
        connected = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
    except RuntimedError:
        return None
    try:
        return identified(endpoint, await connected.shim_pid(_ANSWERS_WITHIN_S))
    except NotFound:
        return endpoint  # shims of before 2.0 answer so while they have no task
    except RuntimedError:
        return None
    finally:
        await connected.close()
