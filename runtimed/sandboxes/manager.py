"""Sandboxes as clients see them: which controller one is of, and the events of its life."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from runtimed.api import events_pb2
from runtimed.errors import NotFound, RuntimedError
from runtimed.events import EventBus
from runtimed.metadata import sandboxes
from runtimed.metadata.db import Database
from runtimed.sandboxes.controller import READY, Controller, NewSandbox, Started
from runtimed.tasks.background import Background

_ANSWERS_WITHIN_S = 2.0

PAUSE, SHIM = "pause", "shim"
_OTHER_NAMES = {"podsandbox": PAUSE}  # as containerd calls the one of its CRI


class Sandboxes:
    """Finds controllers, and tells of what happens: made, started, and once that it has ended, whoever noticed."""

    def __init__(self, db: Database, events: EventBus, controllers: Mapping[str, Controller]) -> None:
        self._db = db
        self._events = events
        self._controllers = controllers
        self._background = Background()
        self._watched: set[tuple[str, str]] = set()

    async def load(self) -> None:
        """Watch the sandboxes of an earlier daemon again. A shim that does not answer keeps nobody waiting."""
        found = await self._db.read(sandboxes.everywhere)
        await asyncio.gather(*(self._load(namespace, sandbox.id, sandbox.sandboxer) for namespace, sandbox in found))

    async def _load(self, namespace: str, id: str, name: str) -> None:
        with suppress(RuntimedError):
            controller = await self.controller(namespace, id, name)
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN_S):
                    is_ready = (await controller.status(namespace, id, verbose=False)).state == READY
            except TimeoutError:
                is_ready = True  # as far as anybody knows
            if is_ready:
                self._watch(namespace, id, controller)

    async def close(self) -> None:
        await self._background.end()

    async def controller(self, namespace: str, id: str, name: str) -> Controller:
        """Return the controller called *name*; "" means the one that the record says, or that of shims.

        Raises:
            NotFound: no such controller.
        """
        if not name:
            with suppress(NotFound):
                name = (await self._db.read(sandboxes.get, namespace, id)).sandboxer
        name = name or SHIM  # clients before containerd 2.0 do not say, and knew no other
        controller = self._controllers.get(_OTHER_NAMES.get(name, name))
        if controller is None:
            raise NotFound(f"sandbox controller {name[:80]!r}; there are {', '.join(self._controllers)}")
        return controller

    async def create(self, namespace: str, new: NewSandbox, name: str) -> None:
        """Make a sandbox. Raises as :meth:`Controller.create`."""
        id = new.sandbox.id
        controller = await self.controller(namespace, id, name or new.sandbox.sandboxer)
        await controller.create(namespace, new)
        self._events.publish(namespace, "/sandboxes/create", events_pb2.SandboxCreate(sandbox_id=id))

    async def start(self, namespace: str, id: str, name: str) -> Started:
        """Start it, and watch for its end from here on. Raises as :meth:`Controller.start`."""
        controller = await self.controller(namespace, id, name)
        started = await controller.start(namespace, id)
        self._events.publish(namespace, "/sandboxes/start", events_pb2.SandboxStart(sandbox_id=id))
        self._watch(namespace, id, controller)
        return started

    def _watch(self, namespace: str, id: str, controller: Controller) -> None:
        if (namespace, id) not in self._watched:
            self._watched.add((namespace, id))
            self._background.spawn(self._tell_exit(namespace, id, controller))

    async def _tell_exit(self, namespace: str, id: str, controller: Controller) -> None:
        try:
            exit = await controller.wait(namespace, id)
        except RuntimedError:  # the daemon stops, or it was removed without an end
            return
        finally:
            self._watched.discard((namespace, id))
        event = events_pb2.SandboxExit(sandbox_id=id, exit_status=exit.status)
        event.exited_at.FromNanoseconds(exit.exited_at)
        self._events.publish(namespace, "/sandboxes/exit", event)
