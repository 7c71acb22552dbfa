"""Rollback: an operation of several steps that happens whole or not at all."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

_STEP_LIMIT_S = 10.0


class Rollback:
    """Undo steps, registered as the operation goes on, run last first unless :meth:`commit` is reached.

    Each undo step has 10 s of its own, also when the operation was cancelled; one that fails is logged with its
    description and does not replace the error that started the rollback.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[..., Awaitable[Any]], tuple[Any, ...]]] = []

    def undo(self, description: str, func: Callable[..., Awaitable[Any]], /, *args: Any) -> None:
        """Register ``await func(*args)`` as the way back from what has just been done (or is about to be)."""
        self._steps.append((description, func, args))

    def commit(self) -> None:
        """Keep everything: no registered step will run."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._steps:
            return
        # In a task of its own: a caller that is cancelled once more must not stop the undoing half-way.
        undoing = asyncio.create_task(self._undo())
        cancelled = False
        while not undoing.done():
            try:
                await asyncio.shield(undoing)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled and not isinstance(exc, asyncio.CancelledError):
            raise asyncio.CancelledError

    async def _undo(self) -> None:
        while self._steps:
            description, func, args = self._steps.pop()
            try:
                async with asyncio.timeout(_STEP_LIMIT_S):
                    await func(*args)
            except Exception:
                log.exception("undo step failed", extra={"step": description})
