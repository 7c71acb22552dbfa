"""The ends of tasks: told once, by the shim, or by the daemon where the shim cannot any more; and waited for."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from runtimed.errors import ResourceExhausted, Unavailable
from runtimed.events import EventBus
from runtimed.tasks import client as shims
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Exit

T = TypeVar("T")


class Exits:
    """Publishes the ends that a shim cannot tell, unless it has told them before it went."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._told: set[tuple[str, str]] = set()  # namespace and ID of the tasks whose end has been published

    async def watch(self) -> None:
        """Note what shims tell; runs until the event bus closes."""
        while True:
            # Falling behind loses events, not the subscription's purpose: subscribe again.
            with suppress(ResourceExhausted), self._events.subscribe(["topic==/tasks/exit"]) as subscription:
                async for envelope in subscription:
                    if (key := shims.ended_init(envelope)) is not None:
                        self._told.add(key)
                return

    def forget(self, bundle: Bundle) -> None:
        """Make ready for the next task of this name."""
        self._told.discard((bundle.namespace, bundle.id))

    def publish(self, bundle: Bundle, exit: Exit) -> None:
        """Tell that the task ended so, if nobody has, and that it is gone."""
        if (bundle.namespace, bundle.id) not in self._told:
            self._events.publish(bundle.namespace, "/tasks/exit", shims.exit_event(bundle.id, exit))
        self._events.publish(bundle.namespace, "/tasks/delete", shims.delete_event(bundle.id, exit))


class Waits:
    """Calls that may take for ever, and that end when the daemon does."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Task[Any]] = set()
        self._have_ended = False

    async def run(self, call: Awaitable[T]) -> T:
        """Return what *call* returns.

        Raises:
            Unavailable: the daemon stops.
        """
        waiting = asyncio.ensure_future(call)
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        if self._have_ended:
            waiting.cancel()
        try:
            return await waiting
        except asyncio.CancelledError:
            # Cancelled from here, not by who called: that one is to hear why.
            current = asyncio.current_task()
            if not self._have_ended or (current is not None and current.cancelling()):
                raise
            raise Unavailable("the daemon is stopping; wait again when it is back") from None

    def end(self) -> None:
        """End every call, and those to come."""
        self._have_ended = True
        for waiting in self._waiting:
            waiting.cancel()
