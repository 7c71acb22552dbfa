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
# What a client feeds or drains may take as long as the client likes, and must not hold up the rest.
_streamers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="streaming")


async def blocking(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *func* in a worker thread and return its result.

    A thread cannot be cancelled. If the caller is, this still waits for *func* to return before CancelledError goes
    on, so that an undo step never runs beside the step it undoes.
    """
    return await _run(_workers, lambda: func(*args, **kwargs), lambda: None)


def aside(func: Callable[[], None], /) -> None:
    """Run *func*, which raises nothing and does not take long, in a worker thread that nobody waits for."""
    _workers.submit(func)


async def streaming(func: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """Like :func:`blocking`, for a *func* that waits for a client again and again; eight run at a time.

    If the caller is cancelled *interrupt* is called, which must make *func* return soon.
    """
    return await _run(_streamers, func, interrupt)


async def _run(pool: ThreadPoolExecutor, func: Callable[[], T], interrupt: Callable[[], None]) -> T:
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(pool, lambda: context.run(func))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        interrupt()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what the caller hears
        raise
