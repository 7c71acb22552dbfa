"""Tests that run on the shim's own loop."""

import functools
import inspect

from shim import loop


def on_loop(test):
    """Run an async test by the shim's loop instead of asyncio's; a minute at most."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def limited():
            with loop.timeout(60):
                await test(*args, **kwargs)

        loop.run(limited())

    del run.__wrapped__  # by which pytest would see that it is async
    run.__dict__["__signature__"] = inspect.signature(test)
    return run
