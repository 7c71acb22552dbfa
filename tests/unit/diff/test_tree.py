import errno
import os

import pytest

from runtimed.diff.tree import Tree, remove


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    return root


def test_links_are_followed_inside_the_tree(root):
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "absolute").symlink_to("/usr")
    (root / "up").symlink_to("../../../usr/../usr/lib")
    with Tree(root) as tree:
        assert tree.directory(b"lib").path == b"usr/lib"
        assert tree.directory(b"absolute/lib").path == b"usr/lib"
        assert tree.directory(b"up").path == b"usr/lib"


def test_what_is_missing_is_made_also_behind_a_dangling_link(root):
    (root / "run").symlink_to("/var/run")
    with Tree(root) as tree:
        assert tree.directory(b"run/lock/x").path == b"var/run/lock/x"
    assert (root / "var/run/lock/x").is_dir()


def test_nothing_is_made_when_only_asked_for(root):
    with Tree(root) as tree, pytest.raises(FileNotFoundError):
        tree.directory(b"a/b", create=False)
    assert not list(root.iterdir())


def test_links_in_circles_and_files_in_the_way_are_errors(root):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    (root / "grows").symlink_to("grows/x")
    (root / "file").touch()
    with Tree(root) as tree:
        for path, code in ((b"a/x", errno.ELOOP), (b"grows", errno.ELOOP), (b"file/x", errno.ENOTDIR)):
            with pytest.raises(OSError, match=r".") as caught:
                tree.directory(path)
            assert caught.value.errno == code


def test_a_link_to_a_magic_link_does_not_lead_out(root):
    (root / "magic").symlink_to("/proc/self/root/etc")
    with Tree(root) as tree:
        assert tree.directory(b"magic").path == b"proc/self/root/etc"


def test_many_directories_need_few_descriptors(root):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path has no way to list descriptors once
    with Tree(root) as tree:
        for number in range(1000):
            tree.directory(b"d%d" % number)
        assert len(os.listdir("/proc/self/fd")) < before + 200  # noqa: PTH208
        assert tree.directory(b"d0").path == b"d0"
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_tree_is_removed_without_following_links(root, tmp_path):
    (tmp_path / "outside/file").touch()
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/link").symlink_to(tmp_path / "outside")
    (root / "a/file").touch()
    fd = os.open(root, os.O_RDONLY)
    try:
        remove(fd, b"a", is_directory=True)
    finally:
        os.close(fd)
    assert not list(root.iterdir())
    assert (tmp_path / "outside/file").exists()


def test_a_tree_deeper_than_python_recurses_is_removed(root):
    with Tree(root) as tree:
        at = root
        for _ in range(9):
            at = at / "/".join(["d"] * 100)
            at.mkdir(parents=True)
        tree.remove(tree.directory(b""), b"d")
    assert not list(root.iterdir())
