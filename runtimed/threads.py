"""The door from the event loop to blocking code."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Blocking calls are short waits for disk and kernel, so more threads than cores; bounded, because each may hold a
# database connection.
_workers = ThreadPoolExecutor(max_workers=32, thread_name_prefix="blocking")


async def blocking(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *func* in a worker thread and return its result.

    A thread cannot be cancelled. If the caller is, this still waits for *func* to return before CancelledError goes
    on, so that an undo step never runs beside the step it undoes.
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(_workers, lambda: context.run(func, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what the caller hears
        raise
