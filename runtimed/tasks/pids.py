"""Which process a pid is: pids are used again, so one that is remembered comes with the start time of its process."""

import os
import select
import signal
from pathlib import Path

_GONE_WITHIN_S = 2.0
_PF_EXITING = 0x4  # include/linux/sched.h; in what proc_pid_stat(5) has as flags


def started(pid: int) -> int:
    """Return when *pid* started, in clock ticks since the boot (proc_pid_stat(5), field 22); 0 if it is gone."""
    fields = _fields(pid)
    return int(fields[19]) if fields else 0


def is_ending(pid: int) -> bool:
    """Say whether *pid* is at its end, or gone. With a container's first process the kernel ends all others."""
    fields = _fields(pid)
    return not fields or fields[0] in {b"Z", b"X"} or bool(int(fields[6]) & _PF_EXITING)


def _fields(pid: int) -> list[bytes]:
    """Return what proc_pid_stat(5) has from its field 3 on; nothing if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    return stat.rpartition(b")")[2].split()  # behind the name, which may hold blanks and parentheses


def kill(pid: int, start: int) -> bool:
    """Kill the process *pid* that started at *start* and see it gone; return whether it is. Blocks for up to 2 s."""
    if pid <= 1 or not start:
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Compared with the pidfd open: from here on it is this process, or none.
        if started(pid) != start:
            return True
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller = select.poll()  # unlike select() it takes any descriptor
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(_GONE_WITHIN_S * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
