"""The ends of tasks: told once, by the shim, or by the daemon where the shim cannot any more; and waited for."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from runtimed.errors import NotFound, ResourceExhausted, Unavailable
from runtimed.events import EventBus
from runtimed.tasks import client as shims
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Exit
from runtimed.tasks.remains import Ended
from runtimed.tasks.table import Table
from runtimed.threads import blocking

T = TypeVar("T")


class Exits:
    """Publishes the ends that a shim cannot tell, unless it has told them before it went.

    What shims have told is noted in memory and in the bundle, so that it counts for the next daemon as well.
    """

    def __init__(self, events: EventBus, table: Table) -> None:
        self._events = events
        self._table = table
        self._told: dict[Bundle, Exit] = {}  # of tasks in the table

    async def watch(self) -> None:
        """Note what shims tell; runs until the event bus closes."""
        while True:
            # Falling behind loses events, not the subscription's purpose: subscribe again.
            with suppress(ResourceExhausted), self._events.subscribe(["topic==/tasks/exit"]) as subscription:
                async for envelope in subscription:
                    if (ended := shims.ended_init(envelope)) is not None:
                        with suppress(NotFound):  # deleted already, or somebody else's
                            await self._note(self._table.get(envelope.namespace, ended.id).bundle, ended.exit)
                return

    async def _note(self, bundle: Bundle, exit: Exit) -> None:
        self._told[bundle] = exit
        await blocking(bundle.mark_exit, exit)

    def told(self, bundle: Bundle) -> Exit | None:
        """Return how the task ended, if its shim has told this daemon."""
        return self._told.get(bundle)

    def forget(self, bundle: Bundle) -> None:
        """Drop what was noted of a task that is gone."""
        self._told.pop(bundle, None)

    def publish(self, bundle: Bundle, ended: Ended, *, was_missed: bool = False) -> None:
        """Tell that the task ended so, if nobody has, and that it is gone.

        *was_missed*: it happened before anybody could listen, so that those who come soon are to hear it as well.
        """
        id, exit, namespace = bundle.id, ended.exit, bundle.namespace
        if not ended.is_told:
            self._events.publish(namespace, "/tasks/exit", shims.exit_event(id, exit), was_missed=was_missed)
        self._events.publish(namespace, "/tasks/delete", shims.delete_event(id, exit), was_missed=was_missed)


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
