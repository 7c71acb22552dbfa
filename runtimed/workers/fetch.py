"""A blob from a registry into a file: GET with resume (OCI distribution-spec, "Pulling blobs"; RFC 9110, "Range").

One connection to begin with. When that brings little of much, several fetch parts side by side (:mod:`.parts`).
"""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Protocol

from runtimed.errors import FailedPrecondition, OutOfRange, Unavailable, os_errors
from runtimed.linux.writeback import Writeback
from runtimed.oci import digest as digests
from runtimed.workers import jobs
from runtimed.workers.answers import check_range, refusal
from runtimed.workers.transport import Answer, Place, answer_of, connection_errors, too_slow
from runtimed.workers.watchdog import MIN_RATE, WINDOW_S, Watchdog

_CHUNK = 1 << 18
_PROGRESS_INTERVAL_S = 0.1
# A connection that brings less than this over that time may be one of several; most of what local registries and good
# mirrors give comes faster, and costs less CPU time by a single one.
_FAST = 64 << 20  # bytes a second
_JUDGED_AFTER_S = 1.0
_WORTH_PARTS = 32 << 20  # bytes that are missing


class Listener(Protocol):
    """Hears the bytes of the blob, from its first on, and when they were not those of the blob."""

    def feed(self, data: bytes | memoryview) -> None: ...

    def restart(self) -> None: ...


def fetch(job: jobs.Fetch, progress: Callable[[int], None], listener: Listener | None = None) -> jobs.Done:
    """Do *job*; see :meth:`runtimed.workers.pool.Pool.fetch` for what it promises."""
    with _Target(job, progress, listener) as target:
        if target.offset < job.size:
            with Watchdog(MIN_RATE, WINDOW_S) as watchdog:
                _download(job, target, watchdog)
        target.finish()
    return jobs.Done(digest=job.digest, size=job.size)


def _download(job: jobs.Fetch, target: "_Target", watchdog: Watchdog) -> None:
    place = Place(job.url, job.headers, job.tls)
    slow = _get(place, target, watchdog, job.connections > 1)
    if slow is None:
        return
    from runtimed.workers import parts  # it takes a while to load, and most layers do not need it

    try:
        parts.download(slow, target, watchdog, job.connections)
    except parts.NoRanges:
        _get(place, target, watchdog, False)


def _get(place: Place, target: "_Target", watchdog: Watchdog, may_stop: bool) -> Place | None:
    """Bring what is missing over one connection; with *may_stop*, return where to have the rest of it if it is slow."""
    with answer_of(place, _range(target.offset), watchdog) as answer:
        if answer.response.status != 416 or not target.offset:
            return _receive(answer, target, watchdog, may_stop)
        target.restart()  # what is there is not what the registry has
    with answer_of(place, {}, watchdog) as answer:
        return _receive(answer, target, watchdog, may_stop)


def _range(offset: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-"} if offset else {}


def _receive(answer: Answer, target: "_Target", watchdog: Watchdog, may_stop: bool) -> Place | None:
    host, response = answer.host, answer.response
    if response.status == 200:
        target.restart()  # a registry without ranges begins at the beginning
    elif response.status == 206:
        check_range(host, response, target.offset, target.job.size, target.job.size)
    else:
        raise refusal(host, response)
    missing = target.job.size - target.offset
    if response.length is not None and response.length != missing:
        raise FailedPrecondition(
            f"{host} has {response.length} more bytes for {target.job.digest}, not the {missing} of its descriptor"
        )
    has_ranges = response.status == 206 or response.getheader("Accept-Ranges", "").lower() == "bytes"
    may_stop = may_stop and has_ranges and missing >= _WORTH_PARTS
    begun, first = time.monotonic(), target.offset
    with connection_errors(host, watchdog):
        # What has arrived, without waiting for more; and a byte more than is wanted, to notice a body that goes on.
        while data := response.read1(min(_CHUNK, target.job.size - target.offset + 1)):
            watchdog.received(len(data))
            with watchdog.away():
                target.write(memoryview(data))
            if may_stop and (elapsed := time.monotonic() - begun) >= _JUDGED_AFTER_S:
                may_stop = False
                is_much = target.job.size - target.offset >= _WORTH_PARTS
                if is_much and target.offset - first < _FAST * elapsed:
                    return answer.place
    if target.offset < target.job.size:
        if watchdog.has_barked:
            raise too_slow(host, watchdog)
        raise Unavailable(f"{host} closed the connection after {target.offset} of {target.job.size} bytes; try again")
    return None


class _Target:
    """The file that grows, and the hash of all that is in it."""

    def __init__(self, job: jobs.Fetch, progress: Callable[[int], None], listener: Listener | None) -> None:
        self.job = job
        self._listener = listener
        self.offset = 0
        self._algorithm = digests.split(job.digest)[0]
        self._hash = hashlib.new(self._algorithm)
        self._progress = progress
        self._next_report = 0.0
        if not 0 <= job.offset <= job.size:
            raise OutOfRange(f"offset {job.offset} in a blob of {job.size} bytes")
        with os_errors(f"ingest of {job.digest}"):
            self._fd = os.open(job.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        # What is received on the way is not read again soon.
        self._writeback = Writeback(self._fd, job.offset, keep=listener is None)

    def __enter__(self) -> "_Target":
        try:
            self._resume()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def restart(self) -> None:
        """Forget everything."""
        with os_errors(f"ingest of {self.job.digest}"):
            os.ftruncate(self._fd, 0)
        self.offset = 0
        self._hash = hashlib.new(self._algorithm)
        self._writeback = Writeback(self._fd, keep=self._listener is None)
        if self._listener is not None:
            self._listener.restart()

    def write(self, data: memoryview) -> None:
        """Append *data*.

        Raises:
            FailedPrecondition: that is more than the blob has.
            ResourceExhausted: no space left.
        """
        if self.offset + len(data) > self.job.size:
            raise FailedPrecondition(f"the registry sends more than the {self.job.size} bytes of {self.job.digest}")
        self._hash.update(data)
        if self._listener is not None:
            self._listener.feed(data)
        with os_errors(f"ingest of {self.job.digest}"):
            while data:
                written = os.pwrite(self._fd, data, self.offset)
                self.offset += written
                data = data[written:]
        self._writeback.grown(self.offset)
        if (now := time.monotonic()) >= self._next_report:
            self._next_report = now + _PROGRESS_INTERVAL_S
            self._progress(self.offset)

    def finish(self) -> None:
        """Check the digest and bring the bytes to disk. Raises FailedPrecondition; the file is empty then."""
        found = f"{self._algorithm}:{self._hash.hexdigest()}"
        if found != self.job.digest:
            self.restart()  # nothing to resume from: some of it is wrong
            raise FailedPrecondition(f"the registry's content has digest {found}, not {self.job.digest}; pull again")
        with os_errors(f"ingest of {self.job.digest}"):
            os.fdatasync(self._fd)

    def _resume(self) -> None:
        with os_errors(f"ingest of {self.job.digest}"):
            if os.fstat(self._fd).st_size < self.job.offset:
                raise OutOfRange(f"offset {self.job.offset} is past the end of the ingest of {self.job.digest}")
            os.ftruncate(self._fd, self.job.offset)
            while self.offset < self.job.offset:
                data = os.pread(self._fd, min(_CHUNK, self.job.offset - self.offset), self.offset)
                if not data:
                    raise OutOfRange(f"the ingest of {self.job.digest} shrinks while it is read")
                self._hash.update(data)
                if self._listener is not None:
                    self._listener.feed(data)
                self.offset += len(data)
