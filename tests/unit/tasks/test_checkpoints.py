"""The archive of a checkpoint, there and back, and archives that are none."""

import io
import tarfile

import pytest

from runtimed.errors import InvalidArgument
from runtimed.tasks.checkpoints import unpack


def archive(*members: tuple[str, bytes, bytes], link: str = "") -> io.BytesIO:
    """Return an archive of members: name, type (as tarfile has them) and contents."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as tar:
        for name, kind, data in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname, entry.mode = kind, len(data), link, 0o4777
            tar.addfile(entry, io.BytesIO(data))
    result.seek(0)
    return result


def test_files_come_out_as_they_are_and_for_root_alone(tmp_path):
    target = tmp_path / "images"
    big = bytes(range(256)) * 4096
    unpack(archive(("./", tarfile.DIRTYPE, b""), ("./a.img", tarfile.REGTYPE, b"a"), ("b.img", b"0", big)), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a.img": b"a", "b.img": big}
    assert {path.stat().st_mode & 0o7777 for path in target.iterdir()} == {0o600}
    assert target.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_nothing_but_files_is_taken(tmp_path, kind):
    with pytest.raises(InvalidArgument, match=r"'pages-1.img/?' is nothing that CRIU makes"):
        unpack(archive(("pages-1.img", kind, b""), link="/etc/passwd"), tmp_path / "images")
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("name", ["a/b.img", "../../a/b", "/etc/cron.d/x"])
def test_nothing_is_made_elsewhere(tmp_path, name):
    with pytest.raises(InvalidArgument, match="is nothing that CRIU makes"):
        unpack(archive((name, tarfile.REGTYPE, b"x")), tmp_path / "images")
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]


def test_a_name_above_the_root_stays_in_the_directory(tmp_path):
    unpack(archive(("../../x.img", tarfile.REGTYPE, b"x")), tmp_path / "images")
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "x.img"]


def test_a_file_comes_once(tmp_path):
    with pytest.raises(InvalidArgument, match="'a.img' is there twice"):
        unpack(archive(("a.img", b"0", b"1"), ("./a.img", b"0", b"2")), tmp_path / "images")


@pytest.mark.parametrize("data", [b"no archive at all" * 100, archive(("a", b"0", b"x" * 2000)).read()[:1000]])
def test_what_is_no_archive_is_refused(tmp_path, data):
    with pytest.raises(InvalidArgument, match="tar"):
        unpack(io.BytesIO(data), tmp_path / "images")
