"""Users as images and people write them, and files that try to lie about them."""

import os

import pytest

from runtimed import passwd
from runtimed.errors import InvalidArgument, NotFound
from runtimed.oci.runtime_spec import User

PASSWD = (
    "# comment\nroot:x:0:0::/:/bin/sh\nalice:x:1000:1001::/:/bin/sh\nshort:x\nbig:x:4294967296:0::/:\nneg:x:-1:0::/:\n"
)
GROUP = "root:x:0:\nwheel:x:10:alice,bob\nalice:x:1001:alice\nhuge:x:99999999999:alice\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(uid=0, gid=0)),
        ("0", User(uid=0, gid=0)),
        ("5:6", User(uid=5, gid=6)),
        ("root", User(uid=0, gid=0)),
        ("alice", User(uid=1000, gid=1001, additional_gids=(10,))),
        ("1000", User(uid=1000, gid=1001, additional_gids=(10,))),
        ("alice:wheel", User(uid=1000, gid=10)),
        ("alice:7", User(uid=1000, gid=7)),
        ("77:wheel", User(uid=77, gid=10)),
        ("77", User(uid=77, gid=0)),
        ("2147483647", User(uid=2**31 - 1, gid=0)),
    ],
)
def test_a_user_is_found(root, text, user):
    assert passwd.resolve(text, root) == user


@pytest.mark.parametrize(
    "text",
    ["2147483648", "4294967296", "18446744073709551616", "-1", "0x0", "+0", " 0", "0 ", "a b", ":", ":0", "0:", "a:b:c",
     "::::" * 1000, "٣", "root\n", "root\0", "x" * 100_000],
)  # fmt: skip
def test_a_user_that_cannot_be_is_refused(root, text):
    with pytest.raises(InvalidArgument, match="user"):
        passwd.resolve(text, root)


@pytest.mark.parametrize("text", ["nobody", "alice:nogroup", "short", "big", "neg"])
def test_a_name_that_is_not_there_is_not_found(root, text):
    with pytest.raises(NotFound):
        passwd.resolve(text, root)


def test_a_number_is_never_looked_up_as_a_name(root):
    (root / "etc/passwd").write_text("1234:x:0:0::/:/bin/sh\n")
    assert passwd.resolve("1234", root) == User(uid=1234, gid=0)


def test_only_what_is_not_said_in_numbers_needs_the_rootfs():
    assert passwd.numeric("") == passwd.numeric("0") == User(uid=0, gid=0)
    assert passwd.numeric("5:6") == User(uid=5, gid=6)
    assert passwd.numeric("5") is None
    assert passwd.numeric("alice") is None


def test_an_image_without_the_files_knows_numbers_only(tmp_path):
    assert passwd.resolve("5", tmp_path) == User(uid=5, gid=0)
    with pytest.raises(NotFound):
        passwd.resolve("alice", tmp_path)


def test_a_link_stays_within_the_root(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_text("alice:x:7:7::/:\n")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to(outside)
    with pytest.raises(NotFound, match="alice"):
        passwd.resolve("alice", root)
    (root / "etc/passwd").unlink()
    (root / "real").write_text("alice:x:8:8::/:\n")
    (root / "etc/passwd").symlink_to("/real")
    assert passwd.resolve("alice:0", root).uid == 8


def test_a_fifo_a_directory_and_a_giant_are_refused_at_once(root):
    file = root / "etc/passwd"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        passwd.resolve("alice", root)
    file.unlink()
    file.mkdir()
    with pytest.raises(InvalidArgument, match="not a regular file"):
        passwd.resolve("alice", root)
    file.rmdir()
    with file.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(InvalidArgument, match="larger than"):
        passwd.resolve("alice", root)


def test_a_user_in_absurdly_many_groups_is_refused(root):
    (root / "etc/group").write_text("".join(f"g{n}:x:{n}:alice\n" for n in range(2000)))
    with pytest.raises(InvalidArgument, match="more than 1024 groups"):
        passwd.resolve("alice", root)
