import asyncio
import re
import sqlite3
import threading

import pytest

from runtimed.errors import DataLoss, FailedPrecondition, Internal, NotFound, ResourceExhausted, Unavailable
from runtimed.metadata import migrations
from runtimed.metadata.db import Database

LATER_TABLES = ("sandboxes", "mounts")  # what the first version of the schema did not have


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metadata.db"


@pytest.fixture
def database(path):
    database = Database(path)
    yield database
    database.close()


def put(tx, key, value="x"):
    tx.execute("INSERT INTO facts (key, value) VALUES (?, ?)", (key, value))
    return key


def keys(tx):
    return [key for (key,) in tx.execute("SELECT key FROM facts ORDER BY key")]


class Blocked:
    """Holds the writer thread inside one write, so that what is submitted meanwhile queues up behind it."""

    def __init__(self, database):
        self._begun, self._go = threading.Event(), threading.Event()
        self._future = database.submit(self._wait)

    def _wait(self, tx):
        self._begun.set()
        assert self._go.wait(10)

    def __enter__(self):
        assert self._begun.wait(10)
        return self

    def __exit__(self, *exc_info):
        self._go.set()
        self._future.result(10)


async def test_what_is_written_can_be_read(database):
    assert await database.write(put, "a") == "a"
    assert await database.read(keys) == ["a"]


async def test_a_function_that_fails_leaves_nothing(database):
    def fails(tx):
        put(tx, "a")
        raise NotFound("x")

    with pytest.raises(NotFound):
        await database.write(fails)
    assert await database.read(keys) == []


def test_of_writes_that_are_committed_together_a_failing_one_leaves_the_others(database):
    def fails(tx):
        put(tx, "lost")
        raise NotFound("x")

    with Blocked(database):
        before, failing, after = database.submit(put, "a"), database.submit(fails), database.submit(put, "b")
    assert (before.result(10), after.result(10)) == ("a", "b")
    with pytest.raises(NotFound):
        failing.result(10)
    with database.reading() as tx:
        assert keys(tx) == ["a", "b"]


def test_writes_that_queue_up_share_commits(database):
    statements: list[str] = []
    database.submit(lambda tx: tx.set_trace_callback(statements.append)).result(10)
    with Blocked(database):
        futures = [database.submit(put, f"{number:03}") for number in range(300)]
    for future in futures:
        future.result(10)
    database.submit(lambda tx: tx.set_trace_callback(None)).result(10)
    assert statements.count("COMMIT") <= 5  # of 301 writes
    with database.reading() as tx:
        assert len(keys(tx)) == 300


def test_reads_do_not_wait_for_a_write_that_a_slow_disk_holds_up(database):
    database.submit(put, "before").result()
    with Blocked(database):
        waiting = database.submit(put, "later")
        assert database.look_up(keys) == ["before"]
        assert not waiting.done()
    waiting.result()
    assert database.look_up(keys) == ["before", "later"]


def test_a_write_is_acknowledged_only_after_its_commit(database, path):
    seen = []

    def look(future):
        with sqlite3.connect(path) as other:
            seen.extend(keys(other))
        other.close()

    with Blocked(database):
        database.submit(put, "a").add_done_callback(look)
        last = database.submit(put, "b")
    last.result(10)
    assert seen == ["a", "b"]


def test_a_reader_sees_one_state_while_others_write(database):
    database.submit(put, "a").result(10)
    with database.reading() as tx:
        assert keys(tx) == ["a"]
        database.submit(put, "b").result(10)
        assert keys(tx) == ["a"]
    with database.reading() as tx:
        assert keys(tx) == ["a", "b"]


def test_a_reader_cannot_write(database):
    with database.reading() as tx:
        put(tx, "a")
    with database.reading() as tx:
        assert keys(tx) == []


def test_a_result_stays_an_integrity_error_for_the_store_to_translate(database):
    database.submit(put, "a").result(10)
    with pytest.raises(sqlite3.IntegrityError):
        database.submit(put, "a").result(10)


def test_wrong_sql_is_an_internal_error(database):
    with pytest.raises(Internal, match="no such table"):
        database.submit(lambda tx: tx.execute("SELECT * FROM missing")).result(10)


async def test_a_cancelled_write_that_has_not_begun_never_happens(database):
    with Blocked(database):
        writing = asyncio.create_task(database.write(put, "a"))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    assert await database.read(keys) == []


async def test_a_cancelled_write_that_has_begun_is_waited_for(database):
    begun, go = threading.Event(), threading.Event()

    def slow(tx):
        begun.set()
        assert go.wait(10)
        return put(tx, "a")

    writing = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    writing.cancel()
    await asyncio.sleep(0)
    assert not writing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await database.read(keys) == ["a"]


async def test_a_cancelled_write_that_then_fails_is_still_a_cancelled_one(database):
    begun, go = threading.Event(), threading.Event()

    def fails(tx):
        begun.set()
        assert go.wait(10)
        raise NotFound("x")

    writing = asyncio.create_task(database.write(fails))
    await asyncio.to_thread(begun.wait, 10)
    writing.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await writing


def test_closing_finishes_what_is_queued(path):
    database = Database(path)
    futures = [database.submit(put, str(number)) for number in range(300)]
    database.close()
    assert all(future.done() for future in futures)
    reopened = Database(path)
    with reopened.reading() as tx:
        assert len(keys(tx)) == 300
    reopened.close()


async def test_a_closed_database_says_that_the_daemon_stops(path):
    database = Database(path)
    database.close()
    with pytest.raises(Unavailable, match="stopping"):
        await database.write(put, "a")
    with pytest.raises(Unavailable, match="stopping"):
        await database.read(keys)


def test_a_writer_that_was_killed_leaves_what_it_acknowledged(path, tmp_path):
    database = Database(path)
    database.submit(put, "a").result(10)
    copy = tmp_path / "after-the-crash.db"  # what is on disk now, with the log, as after SIGKILL
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    database.close()
    recovered = Database(copy)
    with recovered.reading() as tx:
        assert keys(tx) == ["a"]
    recovered.close()


def test_a_newer_schema_is_refused_and_left_alone(path):
    Database(path).close()
    with sqlite3.connect(path) as conn:
        conn.execute(f"PRAGMA user_version = {migrations.LATEST + 1}")
    conn.close()
    with pytest.raises(FailedPrecondition, match="start the newer version"):
        Database(path)
    with sqlite3.connect(path) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (migrations.LATEST + 1,)
    conn.close()


def test_a_step_that_fails_leaves_the_older_schema(path, monkeypatch):
    Database(path).close()

    def half(conn):
        conn.execute("CREATE TABLE half (x)")
        raise NotFound("x")

    monkeypatch.setitem(migrations.STEPS, migrations.LATEST + 1, half)
    monkeypatch.setattr(migrations, "LATEST", migrations.LATEST + 1)
    with pytest.raises(NotFound):
        Database(path)
    monkeypatch.undo()
    database = Database(path)
    with database.reading() as tx:
        assert not tx.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone()
    database.close()


def test_steps_are_applied_in_order_once(path, monkeypatch):
    Database(path).close()
    last = migrations.LATEST
    monkeypatch.setitem(migrations.STEPS, last + 1, lambda conn: conn.execute("CREATE TABLE two (x)"))
    monkeypatch.setitem(migrations.STEPS, last + 2, lambda conn: conn.execute("ALTER TABLE two ADD COLUMN y"))
    monkeypatch.setattr(migrations, "LATEST", last + 2)
    for _ in range(2):
        database = Database(path)
        with database.reading() as tx:
            assert tx.execute("SELECT x, y FROM two").fetchall() == []
        database.close()


def test_the_steps_lead_to_the_schema_of_a_new_database(path):
    def schema(file):
        with sqlite3.connect(file) as conn:
            rows = conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        conn.close()
        return {name: "".join(re.sub("--.*", "", sql).split()) for name, sql in rows}

    Database(path).close()
    new = schema(path)
    with sqlite3.connect(path) as conn:  # what the first version had
        for name in LATER_TABLES:
            conn.execute(f"DROP TABLE {name}")
        conn.execute("PRAGMA user_version = 1")
    conn.close()
    Database(path).close()
    assert schema(path) == new


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_data_loss(path, content):
    path.write_bytes(content)
    with pytest.raises(DataLoss, match="metadata database"):
        Database(path)


def test_a_root_that_is_missing_is_named(tmp_path):
    with pytest.raises(Internal, match="missing/metadata.db"):
        Database(tmp_path / "missing" / "metadata.db")


def test_a_full_disk_is_resource_exhausted_and_passes(database):
    database.submit(put, "a").result(10)
    # As SQLite sees it: no page more. What is queued behind shares the commit and its fate, and nothing half is left.
    (pages,) = database.submit(lambda tx: tx.execute("PRAGMA page_count").fetchone()).result(10)
    database.submit(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchone()).result(10)
    with pytest.raises(ResourceExhausted, match="no space left"):
        database.submit(put, "large", "x" * 100_000).result(10)
    database.submit(lambda tx: tx.execute("PRAGMA max_page_count = 100000").fetchone()).result(10)
    database.submit(put, "large", "x" * 100_000).result(10)
    with database.reading() as tx:
        assert keys(tx) == ["a", "large"]


def half_read(tx):
    """Fail with a query in hand; the traceback keeps it."""
    rows = tx.execute("SELECT key FROM facts")
    next(rows)
    raise NotFound("half-way")


def test_a_read_that_fails_half_way_does_not_show_its_moment_to_later_ones(database):
    for key in "ab":
        database.submit(put, key).result()
    with pytest.raises(NotFound) as kept, database.reading() as tx:
        half_read(tx)
    database.submit(put, "c").result()
    with database.reading() as tx:
        assert keys(tx) == ["a", "b", "c"]
    assert kept.traceback


def test_a_write_that_fails_half_way_does_not_stop_later_ones(path, database):
    for key in "ab":
        database.submit(put, key).result()
    with pytest.raises(NotFound) as kept:
        database.submit(half_read).result()
    with sqlite3.connect(path) as other:  # what the writer has seen is old now
        put(other, "c")
    other.close()
    database.submit(put, "d").result()
    assert kept.traceback
