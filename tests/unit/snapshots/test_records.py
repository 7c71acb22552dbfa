import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from runtimed.errors import DataLoss, NotFound, ResourceExhausted
from runtimed.snapshots.records import Records
from runtimed.snapshots.snapshotter import Kind, Usage


@pytest.fixture
def records(tmp_path) -> Iterator[Records]:
    with closing(Records(tmp_path)) as opened:
        yield opened


def committed(records: Records, name: str, parent: str = "") -> None:
    with records.writing():
        records.create(Kind.ACTIVE, "active", parent, {})
        records.commit(name, "active", {}, Usage(10, 2))


def create_and_fail(records: Records) -> None:
    with records.writing():
        records.create(Kind.ACTIVE, "a", "", {})
        raise RuntimeError


def test_ancestors_come_nearest_first(records):
    committed(records, "one")
    committed(records, "two", "one")
    committed(records, "three", "two")
    with records.writing():
        snapshot = records.create(Kind.ACTIVE, "top", "three", {})
    assert (snapshot.id, snapshot.parent_ids) == ("4", ("3", "2", "1"))
    assert records.get("one").parent_ids == ()


def test_a_transaction_that_raises_leaves_nothing(records):
    with pytest.raises(RuntimeError):
        create_and_fail(records)
    assert records.ids() == set()
    with pytest.raises(NotFound):
        records.get("a")


def test_an_id_is_never_given_twice(records, tmp_path):
    with pytest.raises(RuntimeError):
        create_and_fail(records)
    with records.writing():
        assert records.create(Kind.ACTIVE, "a", "", {}).id == "2"
        records.remove("a")
    with closing(Records(tmp_path)) as again, again.writing():
        assert again.create(Kind.ACTIVE, "b", "", {}).id == "3"


def test_what_was_measured_at_commit_is_recorded(records):
    committed(records, "base")
    with records.writing():
        records.create(Kind.ACTIVE, "a", "base", {})
        records.create(Kind.VIEW, "v", "base", {})
    assert records.recorded_usage("base") == Usage(10, 2)
    assert records.recorded_usage("v") == Usage(0, 0)
    assert records.recorded_usage("a") is None


def test_a_damaged_file_is_data_loss(tmp_path):
    (tmp_path / "records.db").write_bytes(b"not a database, " * 512)
    with pytest.raises(DataLoss, match="snapshot records"):
        Records(tmp_path)


def test_a_full_disk_is_told_as_such(records):
    records._conn.execute("PRAGMA max_page_count = 8")
    with pytest.raises(ResourceExhausted, match="no space left"), records.writing():
        records.create(Kind.ACTIVE, "x" * 100_000, "", {})
    records._conn.execute("PRAGMA max_page_count = 100000")
    with records.writing():
        records.create(Kind.ACTIVE, "a", "", {})


def test_records_are_written_to_disk_before_they_are_told(records):
    assert records._conn.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert records._conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite3.threadsafety > 0
