"""Parts of one blob over several connections, where one alone is slow.

The file grows in order all the same: what has come early waits in memory, so that whenever this ends, the file is what
the next fetch can go on from. Memory is bounded by the size and number of the parts under way.
"""

import http.client
import queue
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from runtimed.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from runtimed.workers import jobs
from runtimed.workers.answers import check_range, refusal
from runtimed.workers.transport import Connection, Place, connection_errors, too_slow
from runtimed.workers.watchdog import Watchdog

_PART = 4 << 20  # bytes
_CHUNK = 1 << 18


class NoRanges(Exception):
    """The host gives no parts after all."""


class Target(Protocol):
    """The file that grows."""

    job: jobs.Fetch
    offset: int

    def write(self, data: memoryview) -> None: ...


def download(place: Place, target: Target, watchdog: Watchdog, connections: int) -> None:
    """Bring what is missing of *target* from *place*, which answered a request itself, over so many *connections*.

    Raises:
        NoRanges: an answer was the whole blob.
        FailedPrecondition: another part than was asked for.
        Unavailable: the connection failed, or the place is no more (signed URLs expire): ask the registry again.
    """
    free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    for _ in range(connections):
        free.put(Connection(place))
    with ThreadPoolExecutor(connections, thread_name_prefix="part") as threads:
        coming: deque[Future[bytearray]] = deque()
        begins = iter(range(target.offset, target.job.size, _PART))
        is_over = threading.Event()

        def begin_next() -> None:
            if (begin := next(begins, None)) is not None:
                end = min(begin + _PART, target.job.size)
                part = _Part(begin, end, target.job.size)
                coming.append(threads.submit(_get, part, free, watchdog, is_over))

        try:
            for _ in range(connections):
                begin_next()
            while coming:
                data = coming.popleft().result()
                begin_next()
                with watchdog.away():
                    target.write(memoryview(data))
        finally:
            is_over.set()
            threads.shutdown(wait=False, cancel_futures=True)
            if coming:
                watchdog.end_all()  # whoever reads a part that nobody waits for
    while not free.empty():
        free.get().close()


@dataclass(frozen=True, slots=True)
class _Part:
    begin: int
    end: int
    size: int  # of the whole blob

    def __len__(self) -> int:
        return self.end - self.begin


def _get(part: _Part, free: "queue.SimpleQueue[Connection]", watchdog: Watchdog, is_over: threading.Event) -> bytearray:
    """Return the bytes of *part*, by a connection that is *free*; short if it *is_over*."""
    connection = free.get()
    try:
        with connection_errors(connection.name, watchdog), _answer(connection, part, watchdog) as response:
            match response.status:
                case 206:
                    check_range(connection.name, response, part.begin, part.end, part.size)
                case 200:
                    raise NoRanges
                case _:
                    raise _gone(refusal(connection.name, response))
            data = bytearray()
            while not is_over.is_set() and (chunk := response.read1(min(_CHUNK, len(part) - len(data) + 1))):
                data += chunk
                watchdog.received(len(chunk))
                if len(data) > len(part):
                    raise FailedPrecondition(f"{connection.name} sends more than the {len(part)} bytes of a part")
        if len(data) < len(part):
            if watchdog.has_barked:
                raise too_slow(connection.name, watchdog)
            raise Unavailable(f"{connection.name} closed the connection in the middle of a part; try again")
        return data
    except BaseException:
        connection.close()
        raise
    finally:
        free.put(connection)


def _answer(connection: Connection, part: _Part, watchdog: Watchdog) -> http.client.HTTPResponse:
    wanted = {"Range": f"bytes={part.begin}-{part.end - 1}"}
    if connection.wire is None:
        watchdog.watch(connection)
        return connection.get(wanted)
    try:
        return connection.get(wanted)
    except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
        connection.close()  # it was closed since the last part; a new one is made by itself
        return connection.get(wanted)


def _gone(error: Exception) -> Exception:
    """Return what *error* of a place means that gave bytes a moment ago: what was signed has expired."""
    if isinstance(error, PermissionDenied | NotFound):
        return Unavailable(str(error))
    return error
