import os
from pathlib import Path

import pytest

from runtimed.snapshots.trees import disk_usage, empty, names, opened, opened_below


def test_usage_is_blocks_and_inodes_with_a_hard_link_once(tmp_path):
    before = disk_usage(tmp_path)
    assert before.inodes == 1
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_bytes(b"x" * 5000)
    os.link(tmp_path / "directory" / "file", tmp_path / "again")
    (tmp_path / "link").symlink_to("/usr")
    with (tmp_path / "directory" / "file").open("rb") as file:
        os.fsync(file.fileno())
    wanted = sum((tmp_path / name).lstat().st_blocks * 512 for name in (".", "directory", "directory/file", "link"))
    assert disk_usage(tmp_path) == type(before)(wanted, 4)


def test_a_link_instead_of_a_directory_is_not_opened(tmp_path):
    (tmp_path / "link").symlink_to("/usr")
    with opened(tmp_path) as fd, pytest.raises(OSError, match="symbolic links"), opened_below(fd, "link/bin"):
        pass
    with opened(tmp_path) as fd, pytest.raises(OSError, match="cross-device"), opened_below(fd, "../.."):
        pass
    with pytest.raises(OSError, match="link"), opened(tmp_path / "link"):
        pass


def nest(directory: Path, depth: int) -> None:
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_tree_deeper_than_a_path_may_be_is_opened_measured_and_emptied(tmp_path):
    nest(tmp_path, 100)
    with opened(tmp_path) as top, opened_below(top, "/".join(["d" * 200] * 100)) as fd:
        assert names(fd) == ["bottom"]
    assert disk_usage(tmp_path).inodes == 102
    empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_emptying_follows_no_link_and_takes_every_kind_of_file(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "link").symlink_to(tmp_path / "outside")
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "a" / "b" / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "a" / "fifo")
    os.link(tmp_path / "outside" / "file", tree / "a" / "b" / "c" / "hard")
    (tree / "a" / "b").chmod(0)
    empty(tree)
    assert list(tree.iterdir()) == []
    assert (tmp_path / "outside" / "file").stat().st_nlink == 1
