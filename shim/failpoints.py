"""Failpoints in a shim, by the program of ``runtimed.failpoints``: the daemon's environment is the warm parent's, too.

``shim.create.{begun,mounted,made}``, ``shim.start.{begun,started}``, ``shim.exec.{begun,made,started}`` and
``shim.delete.{begun,runtime,streams,unmounted}``; ``shim.runc.COMMAND`` before each run of the OCI runtime. *made* is
when the runtime has made a process of which the shim does not know yet.
"""

import os

_is_on = False


def arm() -> None:
    """Have failpoints work from here on: in a shim, and not in the rehearsals of its parent."""
    global _is_on
    _is_on = "RUNTIMED_FAILPOINTS" in os.environ


async def hit(name: str) -> None:
    """Do what the point *name* is to do; a delay is none for others. Raises RuntimedError."""
    if _is_on:
        from runtimed.failpoints import reached  # here: no shim in use needs it
        from shim import loop

        if delay_s := reached(name):
            await loop.sleep(delay_s)
