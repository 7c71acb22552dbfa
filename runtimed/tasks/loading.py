"""The tasks of an earlier daemon, found again when this one starts."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimed.errors import RuntimedError
from runtimed.tasks import bundle as bundles
from runtimed.tasks.background import Background
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint
from runtimed.tasks.ending import Endings
from runtimed.tasks.exits import Exits
from runtimed.tasks.groups import Groups
from runtimed.tasks.launch import Launcher
from runtimed.tasks.recovery import Found, Missing, find, give_up
from runtimed.tasks.remains import Ended, named
from runtimed.tasks.table import Table, Task
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_ALL_LOADED_WITHIN_S = 5.0
_LOOKED_FOR_AT_ONCE = 128
_CLEANED_UP_AT_ONCE = 4  # each runs a shim's program and the OCI runtime


@dataclass(frozen=True, slots=True)
class _Served:
    """What a bundle says of its shim."""

    group: str
    program: str
    endpoint: Endpoint | None


def _served(bundle: Bundle) -> _Served:
    endpoint = None
    with suppress(RuntimedError):  # comes up again when the task is looked for
        endpoint = bundle.endpoint()
    return _Served(bundle.group(), bundle.shim(), endpoint)


class Loader:
    """Fills the table from the bundles there are."""

    def __init__(
        self,
        table: Table,
        groups: Groups,
        launcher: Launcher,
        endings: Endings,
        exits: Exits,
        background: Background,
    ) -> None:
        self._table = table
        self._groups = groups
        self._launcher = launcher
        self._endings = endings
        self._exits = exits
        self._background = background
        self._looking = asyncio.Semaphore(_LOOKED_FOR_AT_ONCE)
        self._cleaning = asyncio.Semaphore(_CLEANED_UP_AT_ONCE)
        self._lost: list[tuple[Bundle, Ended]] | None = []  # found dead, not yet told; None: tell at once

    async def load(self, root: Path, state: Path) -> None:
        """Find tasks again and clean up after those that are gone; before anything is served.

        Takes some seconds at most: what does not answer is left as it is, with status unknown.
        """
        found = await blocking(lambda: list(bundles.found(root, state)))
        if not found:
            return
        # All of them before the first is looked at: none is to end a shim that another one uses.
        served = await blocking(lambda: [_served(bundle) for bundle in found])
        for bundle, of in zip(found, served, strict=True):
            self._table.claim(bundle)
            self._use(bundle, of)
        looked = [asyncio.Event() for _ in found]
        loading = [
            self._background.spawn(self._load(bundle, of.group, event))
            for bundle, of, event in zip(found, served, looked, strict=True)
        ]
        # Nobody is told that there is no task while its shim may answer. Cleaning up after those that are gone goes on
        # by itself when it takes longer, their names taken: it is not to keep the others from being served.
        for event in looked:
            await event.wait()
        _, late = await asyncio.wait(loading, timeout=_ALL_LOADED_WITHIN_S)
        log.info("tasks loaded", extra={"found": len(found), "alive": len(list(self._table)), "late": len(late)})

    async def adopt(self, bundle: Bundle) -> bool:
        """Load the task of one more bundle; return whether there is one, or what was left of it has been removed.

        Raises:
            AlreadyExists: its name is taken by now.
        """
        of = await blocking(_served, bundle)
        self._table.claim(bundle)
        self._use(bundle, of)
        await self._load(bundle, of.group, asyncio.Event())
        return (bundle.namespace, bundle.id) in self._table.names()

    def tell_lost(self) -> None:
        """Publish the ends that :meth:`load` found; once there can be subscribers."""
        lost, self._lost = self._lost or [], None
        for bundle, ended in lost:
            self._exits.publish(bundle, ended, was_missed=True)

    def _use(self, bundle: Bundle, of: _Served) -> None:
        if of.endpoint is not None:
            self._groups.use(bundle, of.group, of.program, of.endpoint)

    async def _load(self, bundle: Bundle, group: str, looked: asyncio.Event) -> None:
        """Replace the claim of :meth:`load` by the task, or give it up; set *looked* once it is clear which."""
        found: Found | Missing | None = None
        ended = None
        try:
            async with self._looking:
                found = await find(self._launcher, bundle)
            if isinstance(found, Missing):
                looked.set()
                async with self._cleaning:
                    ended = await give_up(self._endings.clean_up, bundle, found)
        except Exception:
            log.exception("a task could not be loaded", extra=named(bundle))
        finally:
            self._table.release(bundle)
            looked.set()
        if isinstance(found, Found):
            self._endings.add(
                Task(bundle=bundle, group=group, endpoint=found.endpoint, client=found.client, pid=found.pid)
            )
        elif found is not None and found.is_told and ended is not None:
            if self._lost is None:
                self._exits.publish(bundle, ended, was_missed=True)
            else:
                self._lost.append((bundle, ended))
