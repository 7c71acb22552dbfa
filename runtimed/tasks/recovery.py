"""Finding the task of a bundle again after the daemon was away, or learning that it is gone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from runtimed.errors import NotFound, RuntimedError, Unavailable
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Status, TaskClient
from runtimed.tasks.launch import Launcher, identified
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
class Lost:
    """The shim is gone, and with it the container."""

    ended: Ended


async def recover(launcher: Launcher, clean_up: CleanUp, bundle: Bundle) -> Found | Lost | None:
    """Connect to the shim of *bundle*; where that is gone, clean up after it.

    None: the daemon died while the task was made, and nobody was told that there is one. Then it is gone now, and its
    name is free. Nothing in here waits long for a shim, but cleaning up can take some seconds.
    """
    endpoint = await blocking(bundle.endpoint)
    is_created = await blocking(bundle.is_created)
    client = None
    if endpoint is not None:
        try:
            client = await TaskClient.connect(endpoint, bundle.id, _ANSWERS_WITHIN_S)
        except Unavailable:
            pass  # nobody listens: it is gone
        except RuntimedError as exc:  # its queue is full, or we lack descriptors, say: no reason to end a container
            if is_created:
                log.warning("a shim cannot be connected to", extra=named(bundle, endpoint) | {"error": str(exc)})
                return Found(endpoint, TaskClient.unconnected(endpoint, bundle.id), 0)
    if client is None or not is_created:
        if client is not None:
            await _creation_ended(client)
            await client.close()
        ended = await clean_up(bundle)
        return Lost(ended) if is_created else None
    assert endpoint is not None
    pid = 0
    try:
        pid = (await client.state("", _ANSWERS_WITHIN_S)).pid
        if not endpoint.pid:
            endpoint = identified(endpoint, await client.shim_pid(_ANSWERS_WITHIN_S))
    except (NotFound, Unavailable):  # it serves, but has no such task: the daemon died while it was deleted
        await client.close()
        return Lost(await clean_up(bundle))
    except RuntimedError as exc:
        log.warning("a shim does not answer", extra=named(bundle, endpoint) | {"error": str(exc)})
    if await blocking(bundle.shim):
        await launcher.open_log(bundle)
    return Found(endpoint, client, pid)


async def _creation_ended(client: TaskClient) -> None:
    """Wait until the shim has made the container or given up.

    Were it killed in between, the runtime that it has started would make the container after all, unseen.
    """
    with suppress(RuntimedError, TimeoutError):
        async with asyncio.timeout(_CREATE_ENDS_WITHIN_S):
            while (await client.state("", _ANSWERS_WITHIN_S)).status is Status.UNKNOWN:  # noqa: ASYNC110  not our state
                await asyncio.sleep(_ASK_AGAIN_S)
