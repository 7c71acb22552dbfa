"""The program of a worker process: take a job from the socket, do it, answer; until the socket closes.

Its arguments are the directory of the code, the socket's fd and the daemon's pid; see :mod:`runtimed.workers.worker`.
"""

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable

from runtimed.diff import compression
from runtimed.diff.apply import apply
from runtimed.errors import Internal, ResourceExhausted, RuntimedError, os_errors
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import mounted
from runtimed.workers import confinement, jobs
from runtimed.workers.fetch import fetch

_MAX_MESSAGE = 4096  # characters; some of it comes from layers and registries


def main() -> None:
    """Serve the daemon until it closes the socket."""
    _, _, control_fd, parent = sys.argv[:4]
    confinement.end_with_parent(int(parent))
    confinement.drop_privileges()
    os.umask(0o022)
    gc.disable()  # a job makes no cycles to speak of, but hundreds of thousands of objects
    with socket.socket(fileno=int(control_fd)) as control:
        control.set_inheritable(False)
        serve(control)


def serve(control: socket.socket) -> None:
    """Answer each job that arrives on *control*, in turn."""
    with control.makefile("rb") as lines:
        for line in lines:
            job = jobs.decode_job(line)
            control.sendall(jobs.encode(_answer(job, lambda offset: _report(control, offset))))
            gc.collect()


def _answer(job: jobs.Job, progress: Callable[[int], None]) -> jobs.Done | jobs.Failed:
    try:
        with os_errors(jobs.subject_of(job)):
            return _apply(job) if isinstance(job, jobs.Apply) else fetch(job, progress)
    except RuntimedError as exc:
        return jobs.Failed(code=exc.code, message=str(exc)[:_MAX_MESSAGE])
    except MemoryError:
        message = f"worker process {os.getpid()}: the job needs more memory than a worker is allowed"
        return jobs.Failed(code=ResourceExhausted.code, message=message)
    except Exception as exc:  # a bug: the daemon logs it, and the process may go on
        message = f"worker process {os.getpid()}: {type(exc).__name__}: {exc}"[:_MAX_MESSAGE]
        return jobs.Failed(code=Internal.code, message=message, traceback=traceback.format_exc()[-_MAX_MESSAGE:])


def _apply(job: jobs.Apply) -> jobs.Done:
    with (
        compression.opened(job.blob, job.media_type) as layer,
        confinement.private_mounts(),
        mounted(job.mounts, job.mountpoint) as root,
    ):
        applied = apply(layer, root)
        # Once for the whole layer: after it, what is committed outlives a power cut.
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
    return jobs.Done(digest=applied.diff_id, size=applied.size)


def _report(control: socket.socket, offset: int) -> None:
    control.sendall(jobs.encode(jobs.Progress(offset)))
