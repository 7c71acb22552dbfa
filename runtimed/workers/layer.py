"""What a worker process does: take a job from the socket, do it, answer; until the socket closes."""

import gc
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from runtimed.diff import compression
from runtimed.diff.apply import Applied, apply
from runtimed.diff.compression import Compression, Readable
from runtimed.diff.erofs import MustExtract
from runtimed.errors import FailedPrecondition, Internal, ResourceExhausted, RuntimedError, Unavailable, os_errors
from runtimed.linux.syncfs import syncfs
from runtimed.mounts import mounted
from runtimed.workers import confinement, jobs
from runtimed.workers.arriving import Arriving
from runtimed.workers.differ import diff
from runtimed.workers.fetch import fetch
from runtimed.workers.growing import Growing
from runtimed.workers.layer_file import LayerFile, check
from runtimed.workers.pipe import read_ahead

_MAX_MESSAGE = 4096  # characters; some of it comes from layers and registries


def serve(control: socket.socket) -> None:
    """Answer each job that arrives on *control*, in turn."""
    with _Jobs() as work, control.makefile("rb") as lines:
        for line in lines:
            job = jobs.decode_job(line)
            control.sendall(jobs.encode(_answer(work, job, lambda offset: _report(control, offset), lines)))
            if not work.is_holding:
                gc.collect()


def _answer(
    work: "_Jobs", job: jobs.Job, progress: Callable[[int], None], lines: Iterator[bytes]
) -> jobs.Done | jobs.Failed:
    try:
        with os_errors(jobs.subject_of(job)):
            return work.do(job, progress, lines)
    except RuntimedError as exc:
        wait_s = exc.retry_after_s if isinstance(exc, Unavailable) else None
        return jobs.Failed(code=exc.code, message=str(exc)[:_MAX_MESSAGE], retry_after_s=wait_s)
    except MemoryError:
        message = f"worker process {os.getpid()}: the job needs more memory than a worker is allowed"
        return jobs.Failed(code=ResourceExhausted.code, message=message)
    except Exception as exc:  # a bug: the daemon logs it, and the process may go on
        message = f"worker process {os.getpid()}: {type(exc).__name__}: {exc}"[:_MAX_MESSAGE]
        return jobs.Failed(code=Internal.code, message=message, traceback=traceback.format_exc()[-_MAX_MESSAGE:])


class _Jobs:
    """Does jobs, and holds the layer file that one has received until the next finishes it."""

    def __init__(self) -> None:
        self._received = ExitStack()
        self._file: LayerFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    @property
    def is_holding(self) -> bool:
        return self._file is not None

    def do(self, job: jobs.Job, progress: Callable[[int], None], lines: Iterator[bytes]) -> jobs.Done:
        """Do *job*, of which *lines* may say more. Raises RuntimedError, OSError, MemoryError."""
        match job:
            case jobs.Fetch():
                return self._fetch(job, progress)
            case jobs.Apply():
                return _apply(job)
            case jobs.Receive():
                return self._receive(job)
            case jobs.Follow():
                return self._follow(job, lines)
            case jobs.Finish():
                return self._finish(job)
            case jobs.Check():
                checked = check(job.file)
                return jobs.Done(digest=checked.diff_id, size=checked.size)
            case jobs.Diff():
                return diff(job)

    def _fetch(self, job: jobs.Fetch, progress: Callable[[int], None]) -> jobs.Done:
        self._let_go()
        if job.directory is None:
            return fetch(job, progress)
        with Arriving(job.directory, job.media_type) as arriving:
            done = fetch(job, progress, arriving)
            received = arriving.finish()
        if received is None:
            return done
        file, applied = received
        self._file = self._received.enter_context(file)
        return jobs.Done(digest=done.digest, size=done.size, diff_id=applied.diff_id, tar_size=applied.size)

    def _receive(self, job: jobs.Receive) -> jobs.Done:
        self._let_go()
        self._file = self._received.enter_context(LayerFile(job.directory))
        with _opened(job) as layer:
            applied = self._file.receive(layer)
        return jobs.Done(digest=applied.diff_id, size=applied.size)

    def _follow(self, job: jobs.Follow, lines: Iterator[bytes]) -> jobs.Done:
        self._let_go()
        self._file = self._received.enter_context(LayerFile(job.directory))
        with Growing(job, lines) as file:
            kind, layer = compression.detected(file)
            if kind is Compression.NONE:
                return jobs.Done(size=self._file.receive_unhashed(layer))
            with read_ahead(layer) as ahead:
                applied = self._file.receive(ahead)
        return jobs.Done(digest=applied.diff_id, size=applied.size)

    def _finish(self, job: jobs.Finish) -> jobs.Done:
        if self._file is None:
            raise FailedPrecondition("nothing was received before")
        try:
            self._file.finish(job.mounts, job.mountpoint, job.target)
        except (MustExtract, MemoryError) as exc:
            return jobs.Done(must_extract=_reason(exc))
        finally:
            self._let_go()
        return jobs.Done()

    def _let_go(self) -> None:
        self._file = None
        self._received.close()


@contextmanager
def _opened(job: jobs.Apply | jobs.Receive) -> Iterator[Readable]:
    """Hold what the layer's uncompressed bytes are read from, by a thread of its own: only one may enter namespaces."""
    with compression.opened(job.blob, job.media_type) as layer, read_ahead(layer) as ahead:
        yield ahead


def _apply(job: jobs.Apply) -> jobs.Done:
    reason = ""
    if job.target is not None:
        try:
            with LayerFile(job.target.parent) as file:
                with _opened(job) as layer:
                    applied = file.receive(layer)
                file.finish(job.mounts, job.mountpoint, job.target)
            return jobs.Done(digest=applied.diff_id, size=applied.size)
        except (MustExtract, MemoryError) as exc:
            reason = _reason(exc)
    applied = _extract(job)
    return jobs.Done(digest=applied.diff_id, size=applied.size, must_extract=reason)


def _extract(job: jobs.Apply) -> Applied:
    with (
        confinement.private_mounts(),
        mounted(job.mounts, job.mountpoint) as root,
        _opened(job) as layer,
    ):
        applied = apply(layer, root)
        # Once for the whole layer: after it, what is committed outlives a power cut.
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
    return applied


def _reason(exc: Exception) -> str:
    return "its index takes too much memory" if isinstance(exc, MemoryError) else str(exc)[:_MAX_MESSAGE]


def _report(control: socket.socket, offset: int) -> None:
    control.sendall(jobs.encode(jobs.Progress(offset)))
