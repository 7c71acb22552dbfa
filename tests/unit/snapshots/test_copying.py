import os
import stat
from pathlib import Path

from runtimed.snapshots.copying import copy_tree


def test_links_are_copied_and_not_followed(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "directory").mkdir(parents=True)
    target.mkdir()
    (source / "directory" / "up").symlink_to("../../outside")
    (source / "absolute").symlink_to("/etc/passwd")
    (tmp_path / "outside").mkdir()
    copy_tree(source, target)
    assert (target / "directory" / "up").readlink() == Path("../../outside")
    assert (target / "absolute").readlink() == Path("/etc/passwd")
    assert list((tmp_path / "outside").iterdir()) == []


def test_names_data_modes_times_and_hard_links_are_the_same(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "directory").mkdir(parents=True)
    target.mkdir()
    odd = os.fsdecode(b"not utf-8 \xff\n")
    (source / odd).write_bytes(b"x" * 3_000_000)
    (source / odd).chmod(0o640)
    os.link(source / odd, source / "directory" / "again")
    (source / "directory").chmod(0o500)
    os.utime(source / odd, ns=(1, 2_000_000_003))
    os.utime(source / "directory", ns=(1, 5_000_000_000))
    source.chmod(0o751)
    copy_tree(source, target)
    assert {path.name for path in target.iterdir()} == {"directory", odd}
    assert (target / odd).read_bytes() == b"x" * 3_000_000
    assert (target / odd).stat().st_ino == (target / "directory" / "again").stat().st_ino
    assert (target / odd).stat().st_ino != (source / odd).stat().st_ino
    assert (target / odd).stat().st_mtime_ns == 2_000_000_003
    assert (target / "directory").stat().st_mtime_ns == 5_000_000_000
    assert stat.S_IMODE((target / odd).stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "directory").stat().st_mode) == 0o500
    assert stat.S_IMODE(target.stat().st_mode) == 0o751


def test_holes_stay_holes(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with (source / "file").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(1 << 31)
    (source / "empty").touch()
    (source / "hole").touch()
    os.truncate(source / "hole", 12345)
    copy_tree(source, target)
    copy = target / "file"
    assert copy.stat().st_size == 1 << 31
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert file.read(6) == b"start\0"
        file.seek(1 << 30)
        assert file.read(7) == b"middle\0"
    assert (target / "hole").read_bytes() == bytes(12345)
    assert (target / "empty").stat().st_size == 0
