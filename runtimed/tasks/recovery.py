"""Finding the task of a bundle again after the daemon was away, or learning that it is gone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from runtimed.errors import NotFound, RuntimedError, Unavailable
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Status, TaskClient
from runtimed.tasks.endpoints import identified
from runtimed.tasks.launch import Launcher
from runtimed.tasks.remains import Ended, named
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_ANSWERS_WITHIN_S = 2.0
_CREATE_ENDS_WITHIN_S = 8.0
_ASK_AGAIN_S = 0.05

CleanUp = Callable[[Bundle], Awaitable[Ended]]


@dataclass(frozen=True, slots=True)
class Found:
    """The shim lives. It holds the task, which may have ended; or it does not answer, then pid is 0."""

    endpoint: Endpoint
    client: TaskClient
    pid: int


@dataclass(frozen=True, slots=True)
class Missing:
    """The shim is gone, or has no such task. is_told: somebody may know of the task, and is to hear of its end.

    Where it is not told, the daemon died while the task was made; `client` is the shim's then, if that lives.
    """

    is_told: bool
    client: TaskClient | None = None


async def find(launcher: Launcher, bundle: Bundle) -> Found | Missing:
    """Connect to the shim of *bundle*. Waits for some seconds at most.

    A container is given up only where nobody listens on its shim's socket, or where the shim says that it has no such
    task. Any other failure (its queue is full, it is stopped, we lack descriptors) says nothing of the container.

    Raises:
        RuntimedError: the bundle cannot be read now.
    """
    endpoint = await blocking(bundle.endpoint)
    is_created = await blocking(bundle.is_created)
    if endpoint is None:
        return Missing(is_created)
    try:
        client = await TaskClient.connect(endpoint, bundle.id, _ANSWERS_WITHIN_S)
    except Unavailable:
        return Missing(is_created)
    except RuntimedError as exc:
        if not is_created:
            return Missing(is_told=False)
        log.warning("a shim cannot be connected to", extra=named(bundle, endpoint) | {"error": str(exc)})
        return Found(endpoint, TaskClient.unconnected(endpoint, bundle.id), 0)
    if not is_created:
        return Missing(is_told=False, client=client)
    pid = 0
    try:
        pid = (await client.state("", _ANSWERS_WITHIN_S)).pid
        if not endpoint.pid:
            endpoint = identified(endpoint, await client.shim_pid(_ANSWERS_WITHIN_S))
    except (NotFound, Unavailable):  # it serves, but has no such task: the daemon died while it was deleted
        await client.close()
        return Missing(is_told=True)
    except RuntimedError as exc:
        log.warning("a shim does not answer", extra=named(bundle, endpoint) | {"error": str(exc)})
    if await blocking(bundle.shim):
        await launcher.logs.open(bundle)
    return Found(endpoint, client, pid)


async def give_up(clean_up: CleanUp, bundle: Bundle, missing: Missing) -> Ended:
    """Remove what is left of a task; return how it ended. Can take some seconds. Raises RuntimedError."""
    if missing.client is not None:
        await _creation_ended(missing.client)
        await missing.client.close()
    return await clean_up(bundle)


async def _creation_ended(client: TaskClient) -> None:
    """Wait until the shim has made the container or given up.

    Were it killed in between, the runtime that it has started would make the container after all, unseen.
    """
    with suppress(RuntimedError, TimeoutError):
        async with asyncio.timeout(_CREATE_ENDS_WITHIN_S):
            while (await client.state("", _ANSWERS_WITHIN_S)).status is Status.UNKNOWN:  # noqa: ASYNC110  not our state
                await asyncio.sleep(_ASK_AGAIN_S)
