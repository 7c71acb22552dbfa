"""What a process can say about itself and its descriptors: prctl(2), /proc/self."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from runtimed.linux.prctl import PR_SET_PDEATHSIG, prctl

PR_SET_CHILD_SUBREAPER = 36

_MAX_NAME = 15  # bytes, TASK_COMM_LEN without its NUL
_MAX_OOM_SCORE_ADJ = 1000


def set_child_subreaper(on: bool = True) -> None:
    """Become the parent of descendants whose own parent ends, in init's place (PR_SET_CHILD_SUBREAPER), or stop it."""
    prctl(PR_SET_CHILD_SUBREAPER, int(on))


def end_with_parent() -> None:
    """Be killed when the parent ends (PR_SET_PDEATHSIG); it may have by now."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_name(name: str) -> None:
    """Set the name that ps and top show, cut to 15 bytes (proc_pid_comm(5)). Nothing where /proc is read-only."""
    with suppress(OSError):
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, os.fsencode(name)[:_MAX_NAME])
        finally:
            os.close(fd)


def raise_oom_score_adj(by: int) -> None:
    """Make the OOM killer prefer this process by *by* more than so far (proc_pid_oom_score_adj(5))."""
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        value = min(int(os.read(fd, 16)) + by, _MAX_OOM_SCORE_ADJ)
        os.pwrite(fd, str(value).encode(), 0)
    finally:
        os.close(fd)


def close_fds(keep: Collection[int]) -> None:
    """Close every descriptor above 2 but those to *keep*, however it came here."""
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in keep:
            with suppress(OSError):  # the one that listed the directory is closed already
                os.close(fd)
