"""The daemon's directories and sockets, also where somebody has been before."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from runtimed import directories
from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied


def test_a_directory_is_made_with_exactly_its_mode(tmp_path):
    with directories.umask(0o077):
        directories.make_private(tmp_path / "a/b", 0o711)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o711


def test_one_of_ours_that_is_too_open_is_closed(tmp_path):
    (tmp_path / "d").mkdir(mode=0o777)
    directories.make_private(tmp_path / "d", 0o700)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="is a link; remove it"):
        directories.make_private(tmp_path / "d", 0o700)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "d").touch()
    with pytest.raises(FailedPrecondition, match="not a directory"):
        directories.make_private(tmp_path / "d", 0o700)


@pytest.mark.root
def test_somebody_elses_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    os.chown(tmp_path / "d", 12345, -1)
    with pytest.raises(PermissionDenied, match="belongs to user 12345"):
        directories.make_private(tmp_path / "d", 0o700)


def test_a_directory_has_one_daemon_and_the_second_hears_who_it_is(tmp_path):
    with (
        directories.locked(tmp_path),
        pytest.raises(AlreadyExists, match=f"daemon with pid {os.getpid()}: stop it"),
        directories.locked(tmp_path),
    ):
        pass
    with directories.locked(tmp_path):
        pass


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="rt-") as directory:
        yield Path(directory, "s")


def test_a_socket_that_nobody_listens_on_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    directories.clear_socket(path)
    assert not path.exists()


def test_a_socket_that_somebody_listens_on_is_refused(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(AlreadyExists, match="another program listens on it"):
            directories.clear_socket(path)
    assert path.exists()


def test_what_is_no_socket_is_not_removed(path):
    path.write_text("precious")
    with pytest.raises(FailedPrecondition, match="not a socket"):
        directories.clear_socket(path)
    assert path.exists()


def test_a_socket_where_everybody_may_write_is_refused(path):
    path.parent.chmod(0o777)
    with pytest.raises(PermissionDenied, match="everybody may write"):
        directories.clear_socket(path)


def test_the_sockets_directory_is_made(path):
    directories.clear_socket(path.parent / "new/s")
    assert (path.parent / "new").is_dir()


def test_a_path_that_does_not_fit_is_refused_with_its_length():
    directories.check_address("/" + "x" * 100)
    with pytest.raises(InvalidArgument, match="has 102 bytes, 101 fit: give a shorter --address"):
        directories.check_address("/" + "x" * 101)
