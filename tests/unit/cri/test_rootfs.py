"""Root file systems for making specs: who is looked into, and what is remembered of it."""

from contextlib import contextmanager

import pytest

from runtimed.cri import rootfs
from runtimed.cri.rootfs import KnownAccounts, Rootfs
from runtimed.errors import NotFound


@pytest.fixture
def image(tmp_path):
    """Return a root file system, and a function that stands for mounting it and notes whether it is."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("alice:x:1000:1001::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("staff:x:50:alice\n")
    is_mounted = []

    @contextmanager
    def mount():
        is_mounted.append(True)
        try:
            yield tmp_path
        finally:
            is_mounted[-1] = False

    return tmp_path, mount, is_mounted


def test_nobody_looks_so_nothing_is_mounted(image):
    _, mount, is_mounted = image
    with Rootfs(mount()):
        pass
    assert is_mounted == []


def test_it_is_mounted_once_and_until_the_end(image):
    path, mount, is_mounted = image
    with Rootfs(mount()) as root:
        assert root.accounts().user("alice").uid == 1000
        assert root.path() == root.path() == path
        assert is_mounted == [True]
    assert is_mounted == [False]


def test_the_accounts_of_an_image_are_read_once(image):
    path, mount, is_mounted = image
    known = KnownAccounts()
    for _ in range(2):
        with Rootfs(mount(), "sha256:a", known) as root:
            assert root.accounts().user("alice").gid == 1001
    assert is_mounted == [False]
    (path / "etc/passwd").write_text("")
    with Rootfs(mount(), "sha256:b", known) as root, pytest.raises(NotFound, match="alice"):
        root.accounts().user("alice")
    assert is_mounted == [False, False]


def test_without_a_chain_nothing_is_remembered(image):
    _, mount, is_mounted = image
    known = KnownAccounts()
    for _ in range(2):
        with Rootfs(mount(), "", known) as root:
            root.accounts()
    assert is_mounted == [False, False]


def test_what_cannot_be_mounted_is_told_and_not_remembered(image):
    _, mount, _ = image
    known = KnownAccounts()

    @contextmanager
    def broken():
        raise OSError("no such device")
        yield

    with Rootfs(broken(), "sha256:a", known) as root, pytest.raises(OSError, match="no such device"):
        root.accounts()
    with Rootfs(mount(), "sha256:a", known) as root:
        assert root.accounts().user("alice").uid == 1000


def test_an_absurdly_large_file_is_not_kept(image, monkeypatch):
    path, mount, is_mounted = image
    monkeypatch.setattr(rootfs, "_LARGEST", (path / "etc/passwd").stat().st_size)  # etc/group comes on top
    known = KnownAccounts()
    for _ in range(2):
        with Rootfs(mount(), "sha256:a", known) as root:
            root.accounts()
    assert is_mounted == [False, False]


def test_those_not_used_for_long_are_forgotten(image, monkeypatch):
    _, mount, _ = image
    monkeypatch.setattr(rootfs, "_MOST", 2)
    known = KnownAccounts()
    for chain in ("a", "b", "a", "c"):
        with Rootfs(mount(), chain, known) as root:
            root.accounts()
    assert known.find("a")
    assert known.find("c")
    assert known.find("b") is None
