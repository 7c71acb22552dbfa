"""Ending a shim, and removing what is left of one that has gone: process, socket, container, bundle."""

import asyncio
import logging
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimed.errors import RuntimedError
from runtimed.tasks import client as shims
from runtimed.tasks import pids
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit, TaskClient
from runtimed.tasks.endpoints import identified
from runtimed.tasks.launch import Launcher
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_ANSWERS_WITHIN_S = 2.0
_SHUTDOWN_WITHIN_S = 3.0
_DISMISSED_WITHIN_S = 5.0


async def end_shim(client: TaskClient, endpoint: Endpoint, bundle: Bundle) -> None:
    """Ask a shim to end after its last task has been deleted, and see that it does."""
    with suppress(RuntimedError):
        await client.shutdown(_SHUTDOWN_WITHIN_S)
    await asyncio.wait([client.closed], timeout=_SHUTDOWN_WITHIN_S)
    if not client.closed.done():
        log.warning("a shim did not end when asked to", extra=named(bundle, endpoint))
        await blocking(pids.kill, endpoint.pid, endpoint.started)
    await blocking(_unlink, endpoint.path)


async def kill_shim(endpoint: Endpoint, id: str) -> None:
    """End a shim from outside, if it is not gone yet, and remove its socket."""
    if not endpoint.pid:  # the daemon died right after it had started the shim
        endpoint = await _with_pid(endpoint, id)
    await blocking(pids.kill, endpoint.pid, endpoint.started)
    await blocking(_unlink, endpoint.path)


async def dismiss(endpoint: Endpoint, id: str) -> None:
    """Have a shim that has other tasks end this one and forget it; if it has it, and answers."""
    with suppress(RuntimedError, TimeoutError):
        client = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
        try:
            async with asyncio.timeout(_DISMISSED_WITHIN_S):
                with suppress(RuntimedError):  # it has ended already
                    await client.kill("", signal.SIGKILL, all=True, timeout_s=_ANSWERS_WITHIN_S)
                await client.wait("")
                await client.delete("")
        finally:
            await client.close()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended whose shim has gone; is_told: subscribers know that already."""

    exit: Exit
    is_told: bool = False


async def clean_up(launcher: Launcher, bundle: Bundle) -> Ended:
    """Remove what a shim has left of a container, and the bundle; return how the container ended.

    Raises:
        RuntimedError: the bundle could not be removed.
    """
    launcher.logs.close(bundle)
    told = await blocking(bundle.exit)
    exit = await launcher.delete(bundle) if bundle.path.exists() else shims.killed(0)
    await blocking(bundle.delete)
    return Ended(told or exit, is_told=told is not None)


async def settled(task: asyncio.Task[Any], limit_s: float) -> None:
    """Wait for *task* to end, but not for ever; its outcome is of no interest."""
    await asyncio.wait([task], timeout=limit_s)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def named(bundle: Bundle, endpoint: Endpoint | None = None) -> dict[str, Any]:
    """Return the fields by which the log names a task, and its shim."""
    fields: dict[str, Any] = {"namespace": bundle.namespace, "task": bundle.id}
    return fields if endpoint is None else fields | {"shim": endpoint.pid}


async def _with_pid(endpoint: Endpoint, id: str) -> Endpoint:
    with suppress(RuntimedError):
        client = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
        try:
            return identified(endpoint, await client.shim_pid(_ANSWERS_WITHIN_S))
        finally:
            await client.close()
    return endpoint


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
