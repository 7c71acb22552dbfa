"""The worker processes: forked when there is work, replaced when they die, ended when idle.

Layer bytes are handled there and never in the daemon, so that neither a bad layer nor much work stops it from
answering.
"""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from runtimed.diff import compression
from runtimed.diff.apply import Applied
from runtimed.diff.compression import Compression
from runtimed.errors import InvalidArgument, RuntimedError, Unavailable, from_code
from runtimed.mounts import Mount
from runtimed.workers import jobs
from runtimed.workers.jobs import Fetch
from runtimed.workers.nursery import Nursery
from runtimed.workers.worker import Worker

__all__ = ["Expected", "Fetch", "Pool", "Received"]

log = logging.getLogger(__name__)

_IDLE_S = 60.0
_FETCHES_PER_APPLY = 3  # fetching waits for the network most of the time; a slow registry must not hold up the rest


class Pool:
    """Runs jobs in worker processes: *count* layers are applied at a time, and three times as many fetched.

    A job whose caller is cancelled is over when the call returns: its process has been killed, and nothing that it
    mounted is left. *mountpoint* is a directory for the workers to mount on, each in a mount namespace of its own, so
    nobody else sees anything there; without it, :meth:`start` makes one in the directory for temporary files.
    """

    def __init__(self, count: int = 2, *, mountpoint: Path | None = None, idle_s: float = _IDLE_S) -> None:
        self._applying = asyncio.Semaphore(count)
        self._fetching = asyncio.Semaphore(count * _FETCHES_PER_APPLY)
        self._mountpoint = mountpoint
        self._temporary: Path | None = None
        self._idle_s = idle_s
        self._nursery = Nursery(idle_s)
        self._warming: asyncio.Task[None] | None = None
        self._expected: dict[str, Expected] = {}  # by digest
        self._idle: dict[Worker, asyncio.TimerHandle] = {}  # the longest idle first
        self._busy: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._is_open = False

    @property
    def busy(self) -> int:
        """How many processes have a job, or hold a layer."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """How many processes wait for a job."""
        return len(self._idle)

    async def start(self) -> None:
        """Take jobs from now on. No process is started before it is needed."""
        if self._mountpoint is None:
            self._temporary = self._mountpoint = Path(tempfile.mkdtemp(prefix="runtimed-workers-"))
        else:
            self._mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._is_open = True

    def warm(self) -> None:
        """Begin to start what worker processes come from, for there will be jobs; returns at once."""
        if self._is_open and (self._warming is None or self._warming.done()):
            self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        with suppress(RuntimedError):  # the job tells
            await self._nursery.start()

    async def close(self) -> None:
        """End all worker processes. Jobs that still run, and new ones, fail with Unavailable."""
        self._is_open = False
        for worker in list(self._idle):
            self._end(worker)
        await asyncio.gather(*self._ending, *(worker.kill() for worker in self._busy))
        if self._warming is not None:
            await asyncio.wait([self._warming])
        await self._nursery.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.rmdir()
            self._temporary = self._mountpoint = None

    async def apply(self, blob: Path, media_type: str, mounts: Sequence[Mount], target: Path | None = None) -> Applied:
        """Apply the layer *blob* to the snapshot of *mounts*; return its diff ID and size once it is durable.

        It becomes the layer file *target*, if that is given and a file can express it; else it is extracted over
        *mounts*.

        Raises:
            InvalidArgument: not a layer of *media_type*, or a hostile one.
            ResourceExhausted: no space left; part of the layer is there.
            Unavailable: the worker process died.
            Aborted: somebody else changes what *mounts* show.
        """
        if not mounts:
            raise InvalidArgument("a layer cannot be applied to no mounts at all")
        job = jobs.Apply(
            blob=blob, media_type=media_type, mounts=tuple(mounts), mountpoint=self._mounts_on(), target=target
        )
        done = await self._run(self._applying, job, _ignore)
        if done.must_extract:
            log.info("layer was extracted", extra={"layer": blob.name, "reason": done.must_extract})
        return Applied(diff_id=done.digest, size=done.size)

    @asynccontextmanager
    async def received(self, blob: Path, media_type: str, directory: Path) -> AsyncIterator["Received"]:
        """Hold the layer *blob* received in a file on the file system of *directory*, whose name it gets when finished.

        A worker process is kept for it, but no turn of those that work. Raises as :meth:`apply`.
        """
        async with self._applying:
            worker = await self._take()
            try:
                job = jobs.Receive(blob=blob, media_type=media_type, directory=directory)
                done = self._judged(worker, await worker.run(job, _ignore))
            except BaseException:
                await self._drop(worker)
                raise
        async with Received(self, worker, Applied(done.digest, done.size)) as received:
            yield received

    async def follow(self, path: Path, directory: Path, sizes: "asyncio.Queue[int | None]") -> "Received | None":
        """Receive the layer in the file *path* as :meth:`received` does, while it grows: to *sizes*, None at its end.

        Its diff ID is not known if it is not compressed. A process is taken if one is free for fetching. None: none
        was, or the file is no layer, or it failed.
        """
        if self._fetching.locked():
            return None
        async with self._fetching:
            try:
                worker = await self._take()
            except RuntimedError:
                return None
            feeding = asyncio.create_task(_feed(worker, sizes))
            try:
                answer = await worker.run(jobs.Follow(path, directory), _ignore)
                if isinstance(answer, jobs.Done):
                    return Received(self, worker, Applied(answer.digest, answer.size))
                log.debug("not received on the way", extra={"file": str(path), "error": answer.message})
            except Unavailable:
                pass
            except BaseException:
                await self._drop(worker)
                raise
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
            await self._drop(worker)  # it may not have heard all that it was told
            return None

    def give(self, digest: str, start: bytes, received: "Received") -> bool:
        """Give what was *received* to who expects the layer *digest*; say whether he takes it.

        Of a blob that begins with *start*, and may be compressed otherwise than was expected.
        """
        expected = self._expected.get(digest)
        if expected is None:
            return False
        try:
            compression.of(expected.media_type, start)
        except InvalidArgument:  # who unpacks it meets the same error, and tells
            return False
        if not received.applied.diff_id:  # of a layer that is not compressed
            if not digest.startswith("sha256:"):
                return False
            received.applied = Applied(digest, received.applied.size)
        return expected.give(received)

    def expect(self, digest: str, media_type: str, directory: Path, closed: Callable[[], None]) -> "Expected | None":
        """Have whatever fetches the layer *digest* receive it on the way, as :meth:`received` does afterwards.

        *closed* is called when what is returned is closed. None: somebody expects it already.
        """
        if digest in self._expected:
            return None
        expected = self._expected[digest] = Expected(self, digest, media_type, directory, closed)
        return expected

    async def check(self, file: Path) -> Applied:
        """Check the layer file *file* and return the diff ID and size of the layer that it was made of.

        Raises:
            DataLoss: what is wrong with it.
            NotFound: it is gone.
            Unavailable: the worker process died.
        """
        done = await self._run(self._applying, jobs.Check(file), _ignore)
        return Applied(diff_id=done.digest, size=done.size)

    async def diff(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        path: Path,
        compression: Compression,
        epoch: int | None = None,
    ) -> jobs.Done:
        """Write the layer that makes what *upper* shows of what *lower* shows to *path*, an existing file.

        No mounts as *lower* are an empty tree. Times are at most *epoch*, seconds since 1970. The same trees give the
        same bytes, with an epoch also on another machine. Nothing is synced.

        Raises:
            InvalidArgument: no *upper*, mounts that cannot be made, or a tree that a layer cannot express.
            Aborted: what *upper* shows is changed meanwhile.
            ResourceExhausted: no space left.
            Unavailable: the worker process died.
        """
        job = jobs.Diff(
            lower=tuple(lower),
            upper=tuple(upper),
            mountpoint=self._mounts_on(),
            path=path,
            compression=compression,
            epoch=epoch,
        )
        return await self._run(self._applying, job, _ignore)

    async def fetch(self, fetch: Fetch, progress: Callable[[int], None]) -> str:
        """Do *fetch* and return the digest of the whole file, which is the one asked for.

        *progress* is called with the size of the file so far, in bytes, at most ten times a second; the size goes
        back to 0 when the registry can not resume. When this fails, what has arrived stays in the file, unless it is
        known to be wrong.

        Raises:
            Unavailable: the registry, the connection or the worker process failed; resume later.
            NotFound, PermissionDenied, Unauthenticated: the registry's answer.
            FailedPrecondition: other bytes than the digest and size say, or another refusal.
            ResourceExhausted: no space left.
        """
        expected = self._expected.get(fetch.digest)
        if expected is not None:
            fetch = msgspec.structs.replace(fetch, directory=expected.directory, media_type=expected.media_type)
        return (await self._run(self._fetching, fetch, progress, expected)).digest

    async def _run(
        self,
        slots: asyncio.Semaphore,
        job: jobs.Job,
        progress: Callable[[int], None],
        expected: "Expected | None" = None,
    ) -> jobs.Done:
        async with slots:
            worker = await self._take()
            try:
                answer = await worker.run(job, progress)
            except BaseException:
                await self._drop(worker)
                raise
            if expected and isinstance(answer, jobs.Done) and answer.diff_id:
                received = Received(self, worker, Applied(answer.diff_id, answer.tar_size))
                if not expected.give(received):
                    await received.release()
            else:
                self._busy.discard(worker)
                self._keep(worker)
        return self._judged(worker, answer)

    def _judged(self, worker: Worker, answer: jobs.Done | jobs.Failed) -> jobs.Done:
        if isinstance(answer, jobs.Done):
            return answer
        if answer.traceback:
            log.error("bug in a worker process", extra={"pid": worker.pid, "traceback": answer.traceback})
        error = from_code(answer.code, answer.message)
        if isinstance(error, Unavailable):
            error.retry_after_s = answer.retry_after_s
        raise error

    def _mounts_on(self) -> Path:
        if self._mountpoint is None:
            raise Unavailable("the worker pool is not running")
        return self._mountpoint

    async def _drop(self, worker: Worker) -> None:
        try:
            await worker.kill()
        finally:
            self._busy.discard(worker)

    async def _take(self) -> Worker:
        if not self._is_open:
            raise Unavailable("the worker pool is closed: the daemon is stopping")
        while self._idle:
            worker, timer = self._idle.popitem()
            timer.cancel()
            self._busy.add(worker)
            if worker.is_alive:
                return worker
            log.warning("idle worker process died", extra={"pid": worker.pid})
            self._busy.discard(worker)
            self._end(worker)
        worker = await Worker.start(self._nursery)
        self._busy.add(worker)
        if not self._is_open:  # closed while it started
            self._busy.discard(worker)
            await worker.kill()
            raise Unavailable("the worker pool is closed: the daemon is stopping")
        return worker

    def _keep(self, worker: Worker) -> None:
        timer = asyncio.get_running_loop().call_later(self._idle_s, self._end, worker)
        self._idle[worker] = timer
        if not self._is_open:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        if timer := self._idle.pop(worker, None):
            timer.cancel()
        task = asyncio.create_task(worker.kill())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class Received:
    """A layer whose bytes are in a file, and the worker process that holds it; see :meth:`Pool.received`."""

    def __init__(self, pool: Pool, worker: Worker, applied: Applied) -> None:
        self._pool = pool
        self._worker = worker
        self.applied = applied
        self._is_finished = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()

    async def release(self) -> None:
        """Let go of the worker process, and of a file that has no name yet. Once."""
        if self._is_finished:
            self._pool._busy.discard(self._worker)
            self._pool._keep(self._worker)
        else:
            await self._pool._drop(self._worker)

    async def finish(self, mounts: Sequence[Mount], target: Path) -> bool:
        """Make it the layer file *target* of the active snapshot of *mounts*; say whether a file can express the layer.

        Once. Raises as :meth:`Pool.apply`.
        """
        async with self._pool._applying:
            job = jobs.Finish(mounts=tuple(mounts), mountpoint=self._pool._mounts_on(), target=target)
            answer = await self._worker.run(job, _ignore)
        self._is_finished = True
        return not self._pool._judged(self._worker, answer).must_extract


class Expected:
    """A layer that is received while it is fetched; see :meth:`Pool.expect`."""

    def __init__(self, pool: Pool, digest: str, media_type: str, directory: Path, closed: Callable[[], None]) -> None:
        self.media_type = media_type
        self.directory = directory
        self._pool = pool
        self._digest = digest
        self._closed = closed
        self._is_open = True
        self._received: Received | None = None

    def give(self, received: Received) -> bool:
        """Take what a fetch has received; say whether it is wanted."""
        if not self._is_open or self._received is not None:
            return False
        self._received = received
        return True

    def take(self) -> Received | None:
        """Return what was received, which is the caller's from then on; None: nothing was."""
        received, self._received = self._received, None
        return received

    async def close(self) -> None:
        """Expect it no more, and let go of what nobody took."""
        if self._is_open:
            self._is_open = False
            del self._pool._expected[self._digest]
            self._closed()
            if received := self.take():
                await received.release()


async def _feed(worker: Worker, sizes: "asyncio.Queue[int | None]") -> None:
    last = 0
    while (size := await sizes.get()) is not None:
        worker.tell(jobs.Grown(size))
        last = size
    worker.tell(jobs.Grown(last, True))


def _ignore(_: int) -> None:
    """Take no notice of progress: of a layer that is applied there is none."""
