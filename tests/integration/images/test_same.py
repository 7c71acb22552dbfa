"""The script that compares ways to unpack, on an image with all that layers say; and that it finds what differs."""

import tarfile

import pytest

from tests.images import same
from tests.images.stacks import Extracted

pytestmark = pytest.mark.root


def member(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.fixture
def image(layout):
    first = {
        "d": member("d", tarfile.DIRTYPE, mode=0o750, uid=7, gid=8, mtime=1000),
        "d/file": b"1" * 3000,
        "d/link": "file",
        "d/hard": member("d/hard", tarfile.LNKTYPE, linkname="d/file", mode=0o755),
        "null": member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, mtime=5),
        "fifo": member("fifo", tarfile.FIFOTYPE, mode=0o600, mtime=5),
        "gone": b"",
        "becomes": b"a file",
        "was": member("was", tarfile.DIRTYPE, mode=0o755, mtime=9),
        "was/in": b"",
        "hidden": member("hidden", tarfile.DIRTYPE, mode=0o755, mtime=9),
        "hidden/old": b"",
    }
    second = {
        ".wh.gone": b"",
        "becomes": member("becomes", tarfile.DIRTYPE, mode=0o700, mtime=7),
        "becomes/new": b"2",
        "was": b"a file now",
        "hidden": member("hidden", tarfile.DIRTYPE, mode=0o755, mtime=9),
        "hidden/.wh..wh..opq": b"",
        "hidden/new": b"",
    }
    layout.image("1", [layout.layer(first), layout.layer(second, "zstd")])
    return layout.root


def test_all_ways_give_the_same_tree(image, tmp_path):
    (tmp_path / "scratch").mkdir()
    assert same.compare(image, "1", tmp_path / "scratch") == []


def test_a_difference_is_found(image, tmp_path, monkeypatch):
    class Worse(Extracted):
        def add(self, archive: bytes) -> None:
            super().add(archive)
            (self.view() / "d").chmod(0o751) if len(self._layers) == 1 else None

    monkeypatch.setattr(same, "Extracted", Worse)
    (tmp_path / "scratch").mkdir()
    lines = same.compare(image, "", tmp_path / "scratch")
    assert any("'d': type and mode: '0o40750', '0o40751'" in line for line in lines)
