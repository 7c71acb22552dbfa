"""Failpoints in a shim, by the program of ``runtimed.failpoints``: the daemon's environment is the warm parent's, too.

``shim.create.{begun,mounted,made}``, ``shim.start.{begun,started}``, ``shim.exec.{begun,made,started}`` and
``shim.delete.{begun,runtime,streams,unmounted}``; ``shim.runc.COMMAND`` before each run of the OCI runtime. *made* is
when the runtime has made a process of which the shim does not know yet.
"""

import os

_IS_ON = "RUNTIMED_FAILPOINTS" in os.environ


async def hit(name: str) -> None:
    """Do what the point *name* is to do; a delay is none for others. Raises RuntimedError."""
    if _IS_ON:
        from runtimed.failpoints import reached  # here: no shim in use needs it
        from shim import loop

        if delay_s := reached(name):
            await loop.sleep(delay_s)
