"""A program at a terminal of its own, to which somebody types."""

import os
import pty
import select
import time
from collections.abc import Mapping, Sequence

_LIMIT_S = 30


def at_terminal(command: Sequence[object], typed: bytes, env: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Run *command* to its end and return its exit status and all that appeared on the terminal."""
    argv = [str(word) for word in command]
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.execvpe(argv[0], argv, env or os.environ)
        finally:
            os._exit(127)
    try:
        os.write(master, typed)
        output = b""
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline and select.select([master], [], [], _LIMIT_S)[0]:
            try:
                output += os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output
