"""How many descriptors a process may have (getrlimit(2), RLIMIT_NOFILE)."""

import resource
from contextlib import suppress

_inherited: tuple[int, int] | None = None


def raise_nofile() -> None:
    """Allow this process as many descriptors as it may allow itself: each client and each shim takes some.

    Every process that is started later inherits that. It may be surprising there: programs that close all descriptors
    one by one take seconds over a million, and containers get the limit that their shim has. So whoever starts one
    gives it back what was set before, by :func:`restore_nofile`.
    """
    global _inherited
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # more than fs.nr_open, where that was lowered since
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            _inherited = soft, hard


def restore_nofile(pid: int) -> None:
    """Give the process *pid*, a child started just now, the limits that this process had at its start."""
    if _inherited is not None:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _inherited)
