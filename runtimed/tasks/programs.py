"""Programs of shims and OCI runtimes that are run to their end."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimed.errors import DeadlineExceeded, from_os_error
from runtimed.linux.rlimit import restore_nofile


async def run(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], stdin: bytes, limit_s: float
) -> tuple[int, bytes, bytes]:
    """Run *command* and return exit status, stdout and stderr.

    They are files, not pipes: a shim's `start` leaves a child behind, and if that has kept a pipe open, reading to the
    end of it would never end.

    Raises:
        NotFound, PermissionDenied: it cannot be started.
        DeadlineExceeded: not done within *limit_s*; it has been killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=directory,
                env=environment,
                process_group=0,
            )
        except OSError as exc:
            raise from_os_error(exc, f"shim {command[0]}") from exc
        restore_nofile(process.pid)
        try:
            async with asyncio.timeout(limit_s):
                status = await process.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"shim {command[0]}: {command[-1]} not done within {limit_s:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return status, _content(out.fileno()), _content(err.fileno())


def _content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def last_line(text: bytes) -> str:
    """Return the last line of what a program printed, for an error."""
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:1000] if lines else "it printed nothing"
