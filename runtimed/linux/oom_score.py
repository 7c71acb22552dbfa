"""oom_score_adj (proc_pid_oom_score_adj(5)): how soon the kernel kills a process when memory runs out."""

from pathlib import Path

_LEAST = -1000


def least() -> int:
    """Return the lowest value that processes we start can be given.

    To go below what we have takes CAP_SYS_RESOURCE in the machine's own user namespace, which inside a container even
    root has not. It is found by trying: one below, and back. Blocks.
    """
    own = Path("/proc/self/oom_score_adj")
    current = int(own.read_text())
    if current == _LEAST:
        return _LEAST
    try:
        own.write_text(str(current - 1))
    except OSError:
        return current
    own.write_text(str(current))
    return _LEAST
