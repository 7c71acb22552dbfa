"""The metadata database: transactions for functions that take one.

``<root>/metadata.db`` is SQLite in WAL mode. Readers have a connection per thread and never wait for the writer. One
thread writes; what queues up while it works is committed together, so that many small writes share one sync to disk,
and each is acknowledged only after that sync (``synchronous=FULL``): an acknowledged write survives a power cut.

On a full disk a write is ResourceExhausted, and nothing of it happened. Those that :func:`frees` marks then get the
space of ``<root>/metadata.db-reserve``, so that deleting goes on with no byte free.
"""

import asyncio
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from runtimed.errors import DataLoss, Internal, ResourceExhausted, RuntimedError, Unavailable
from runtimed.metadata.migrations import migrate
from runtimed.metadata.reserve import Reserve
from runtimed.threads import blocking

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Tx = sqlite3.Connection  # with a transaction open; functions that take it never commit

_MOST_IN_A_COMMIT = 128
_REFILL_S = 1.0  # how often to look for space for the reserve, once it was used
_BUSY_TIMEOUT_S = 5.0


_Item = tuple[Callable[[Tx], Any], Future[Any], bool, bool]  # write, answer, may it use the reserve, is it a change
Listener = Callable[[int, bool], object]  # how many changes were committed together, and whether one only removed


def frees(func: F) -> F:
    """Mark a function of ``tx`` that only removes: it may use the reserve when the disk is full."""
    func.__dict__["frees"] = True
    return func


def unnoticed(func: F) -> F:
    """Mark a function of ``tx`` of which :attr:`Database.listener` is not told."""
    func.__dict__["unnoticed"] = True
    return func


class _Connection(sqlite3.Connection):
    """A connection that knows its cursors.

    One that is not read to its end, because an error came in between and its traceback keeps the cursor, would hold the
    state of that moment: what is read later on the same connection would be old, and a write refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: list[weakref.ref[sqlite3.Cursor]] = []

    def execute(self, *args: Any) -> sqlite3.Cursor:
        cursor = super().execute(*args)
        self._cursors.append(weakref.ref(cursor))
        return cursor

    def finish(self) -> None:
        """Give up whatever has not been read."""
        for reference in self._cursors:
            if (cursor := reference()) is not None:
                cursor.close()
        self._cursors.clear()


class Database:
    """Reads in any thread, writes in one; open for as long as the daemon runs."""

    def __init__(self, path: Path) -> None:
        """Open (or make) the database and bring its schema up to date. Blocks.

        Raises:
            DataLoss: the file is not a database, or damaged.
            FailedPrecondition: written by a newer version.
        """
        self._path = path
        self._local = threading.local()
        self._connections: list[_Connection] = []
        self._guard = threading.Lock()
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"))
        try:
            conn = self._open()
        except RuntimedError:
            if not self._reserve.release():
                raise
            conn = self._open()  # opening takes some space too
        self._reserve.fill()
        self._refilled = time.monotonic()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self.listener: Listener | None = None  # is told, in the writer's thread, of each commit that changed something
        self._writer = threading.Thread(target=self._write_loop, args=(conn,), name="metadata-writer", daemon=True)
        self._writer.start()

    async def read(self, func: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``func(tx, *args)`` of one consistent state of the database."""

        def run() -> T:
            with self.reading() as tx:
                return func(tx, *args, **kwargs)

        return await blocking(run)

    def look_up(self, func: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``func(tx, *args)`` of one row, found by its key, in this very thread.

        For the event loop, which must not wait: a row takes 20 us, and to have a thread look for it 200. A reader never
        waits for the writer.
        """
        with self.reading() as tx:
            return func(tx, *args, **kwargs)

    async def write(self, func: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``func(tx, *args)`` once its writes are on disk; if it raises, none of them happened.

        A cancelled caller still waits for a write that has begun, and one that has not begun never happens.
        """
        submitted = self.submit(func, *args, **kwargs)
        future = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            submitted.cancel()
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen; the cancellation is what the caller hears
            raise

    def submit(self, func: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a write from blocking code; ``.result()`` is as :meth:`write`."""
        future: Future[T] = Future()
        with self._guard:
            self._check_open()
            frees, is_change = getattr(func, "frees", False), not getattr(func, "unnoticed", False)
            self._queue.put((lambda tx: func(tx, *args, **kwargs), future, frees, is_change))
        return future

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        """Hold a read transaction of this thread open: everything read in it is of one state."""
        self._check_open()
        conn: _Connection | None = getattr(self._local, "conn", None)
        with sqlite_errors():
            if conn is None:
                conn = self._local.conn = self._connect()
            conn.execute("BEGIN")
            try:
                yield conn
            finally:
                conn.finish()
                if conn.in_transaction:
                    conn.execute("ROLLBACK")  # nothing was written

    def close(self) -> None:
        """Finish what is queued, then close every connection. Call when no reader is left. Blocks."""
        with self._guard:
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._close_connections()

    def _close_connections(self) -> None:
        with self._guard:
            for conn in self._connections:
                conn.close()
            self._connections.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("metadata database is closed: the daemon is stopping")

    def _open(self) -> _Connection:
        try:
            with sqlite_errors():
                conn = self._connect()
                migrate(conn)
        except BaseException:
            self._close_connections()
            raise
        return conn

    def _connect(self) -> _Connection:
        try:
            conn = sqlite3.connect(
                self._path,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
        except sqlite3.OperationalError as exc:
            raise Internal(f"metadata database {self._path}: {exc}") from exc
        with self._guard:
            self._connections.append(conn)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA foreign_keys = ON")
        conn.execute("PRAGMA temp_store = MEMORY")  # garbage collection's notes; see gc.py
        return conn

    def _write_loop(self, conn: _Connection) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            # What has queued up meanwhile joins this commit. The None that ends the loop must stay behind it.
            stop = False
            while len(batch) < _MOST_IN_A_COMMIT and not stop:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                else:
                    batch.append(following)
            if batch := [item for item in batch if item[1].set_running_or_notify_cancel()]:
                self._commit(conn, batch)
            if stop:
                return

    def _commit(self, conn: _Connection, batch: list[_Item]) -> None:
        """Commit *batch* and answer everybody in it. Those that free space get what there is on a full disk."""
        failure = _commit_together(conn, batch)
        done = batch if failure is None else []
        if isinstance(failure, ResourceExhausted):
            freeing = [item for item in batch if item[2]]
            batch = [item for item in batch if not item[2]]
            if freeing:
                self._reserve.release()
                second = _commit_together(conn, freeing)
                _fail(freeing, second)
                done = freeing if second is None else []
        _fail(batch, failure)
        changes = [item for item in done if item[3]]
        if changes and self.listener is not None:
            self.listener(len(changes), any(item[2] for item in changes))
        if time.monotonic() - self._refilled > _REFILL_S:
            self._reserve.fill()
            self._refilled = time.monotonic()


def _fail(batch: list[_Item], failure: BaseException | None) -> None:
    if failure is not None:
        for _, future, *_ in batch:
            future.set_exception(failure)


def _commit_together(conn: _Connection, batch: list[_Item]) -> BaseException | None:
    """Run each function under a savepoint of one transaction; answer them all after the commit.

    Return what made the whole transaction fail: then nothing happened, and nobody has been answered.
    """
    answers: list[Callable[[], None]] = []
    try:
        with sqlite_errors():
            conn.execute("BEGIN IMMEDIATE")
            for func, future, *_ in batch:
                conn.execute("SAVEPOINT one")
                try:
                    with sqlite_errors():
                        result = func(conn)
                except BaseException as exc:
                    if not conn.in_transaction:  # SQLite gave the whole transaction up (disk full, I/O error)
                        raise
                    conn.execute("ROLLBACK TO one")
                    answers.append(lambda future=future, exc=exc: future.set_exception(exc))  # type: ignore[misc]
                else:
                    answers.append(lambda future=future, result=result: future.set_result(result))  # type: ignore[misc]
                conn.execute("RELEASE one")
            conn.finish()
            conn.execute("COMMIT")
    except BaseException as exc:
        conn.finish()
        if conn.in_transaction:
            with suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
        return exc
    for answer in answers:
        answer()
    return None


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """Raise what SQLite says of the disk as our own errors; integrity errors pass, store functions expect them."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as exc:
        raise _translated(exc) from exc


def _translated(exc: sqlite3.DatabaseError) -> RuntimedError:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhausted("metadata database: no space left on the device; free some and try again")
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return DataLoss(f"metadata database: {exc}")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Unavailable(f"metadata database: {exc}")
    return Internal(f"metadata database: {exc}")
