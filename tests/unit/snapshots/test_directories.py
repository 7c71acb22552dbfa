from collections.abc import Iterator
from contextlib import closing

import pytest

from runtimed.snapshots.directories import Directories
from runtimed.snapshots.records import Records
from runtimed.snapshots.snapshotter import Kind


@pytest.fixture
def records(tmp_path) -> Iterator[Records]:
    with closing(Records(tmp_path)) as opened:
        yield opened


def placed(directories: Directories, records: Records, key: str) -> str:
    with directories.making() as fresh:
        (fresh.path / "fs").mkdir()
        with records.writing():
            id = records.create(Kind.ACTIVE, key, "", {}).id
            directories.place(fresh, id)
    return id


def test_a_directory_gets_its_place_with_its_row(tmp_path, records):
    directories = Directories(tmp_path, records)
    id = placed(directories, records, "a")
    assert (directories.path(id) / "fs").is_dir()
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / "snapshots").stat().st_mode & 0o777 == 0o700


def test_what_fails_after_it_had_its_place_goes(tmp_path, records):
    directories = Directories(tmp_path, records)

    def fail() -> None:
        with directories.making() as fresh, records.writing():
            directories.place(fresh, records.create(Kind.ACTIVE, "a", "", {}).id)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [list((tmp_path / name).iterdir()) for name in ("new", "snapshots", "trash")] == [[], [], []]


def test_what_a_crash_left_is_put_aside_at_start_and_deleted_by_cleanup(tmp_path, records):
    id = placed(Directories(tmp_path, records), records, "a")
    (tmp_path / "new" / "half" / "fs").mkdir(parents=True)
    (tmp_path / "snapshots" / "77" / "fs").mkdir(parents=True)
    (tmp_path / "trash" / "t" / "0" / "fs").mkdir(parents=True)

    directories = Directories(tmp_path, records)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [id]
    assert list((tmp_path / "new").iterdir()) == []
    directories.cleanup()
    assert list((tmp_path / "trash").iterdir()) == []
    assert (directories.path(id) / "fs").is_dir()


def test_cleanup_leaves_what_is_being_made(tmp_path, records):
    directories = Directories(tmp_path, records)
    with directories.making() as fresh:
        directories.cleanup()
        assert fresh.path.is_dir()
        with records.writing():
            directories.place(fresh, records.create(Kind.ACTIVE, "a", "", {}).id)
    directories.cleanup()
    assert directories.path("1").is_dir()
