"""What is in a snapshot, and what its children see of it."""

import errno
import os
import stat
from pathlib import Path

import pytest

from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance.tools import commit_layer


def test_a_fresh_snapshot_is_an_empty_directory_that_anybody_may_enter(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        assert list(root.iterdir()) == []
        found = root.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)


def test_a_child_sees_its_parents_files_and_not_the_reverse(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    commit_layer(snapshotter, "top", "base", {"a": "2", "b": "3"})

    with mounted_temporarily(snapshotter.view("v-top", "top", {})) as root:
        assert (root / "a").read_text() == "2"
        assert (root / "b").read_text() == "3"
    with mounted_temporarily(snapshotter.view("v-base", "base", {})) as root:
        assert sorted(path.name for path in root.iterdir()) == ["a"]


def test_two_children_of_one_parent_do_not_see_each_other(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    with (
        mounted_temporarily(snapshotter.prepare("one", "base", {})) as one,
        mounted_temporarily(snapshotter.prepare("two", "base", {})) as two,
    ):
        (one / "a").write_text("one")
        (two / "b").write_text("two")
        assert (two / "a").read_text() == "1"
        assert not (one / "b").exists()


def test_what_was_written_is_there_when_the_mounts_are_asked_for_again(snapshotter):
    mounts = snapshotter.prepare("a", "", {})
    with mounted_temporarily(mounts) as root:
        (root / "file").write_text("kept")
    assert snapshotter.mounts("a") == mounts
    with mounted_temporarily(snapshotter.mounts("a")) as root:
        assert (root / "file").read_text() == "kept"


def test_a_deleted_file_is_gone_from_the_child_only(snapshotter):
    commit_layer(snapshotter, "base", "", {"keep": "1", "gone": "1", "directory/file": "1"})
    with mounted_temporarily(snapshotter.prepare("a", "base", {})) as root:
        (root / "gone").unlink()
        (root / "directory" / "file").unlink()
        (root / "directory").rmdir()
    snapshotter.commit("top", "a", {})

    with mounted_temporarily(snapshotter.view("v", "top", {})) as root:
        assert [path.name for path in root.iterdir()] == ["keep"]
    with mounted_temporarily(snapshotter.view("w", "base", {})) as root:
        assert (root / "directory" / "file").read_text() == "1"


def test_a_directory_made_anew_hides_what_the_parent_had_in_it(snapshotter):
    commit_layer(snapshotter, "base", "", {"directory/old": "1"})
    with mounted_temporarily(snapshotter.prepare("a", "base", {})) as root:
        (root / "directory" / "old").unlink()
        (root / "directory").rmdir()
        (root / "directory").mkdir()
        (root / "directory" / "new").write_text("2")
    snapshotter.commit("top", "a", {})
    commit_layer(snapshotter, "more", "top", {"directory/newer": "3"})

    with mounted_temporarily(snapshotter.view("v", "more", {})) as root:
        assert sorted(path.name for path in (root / "directory").iterdir()) == ["new", "newer"]


def test_a_file_may_become_a_directory_and_a_directory_a_link(snapshotter):
    commit_layer(snapshotter, "base", "", {"file": "1", "directory/inner": "1"})
    with mounted_temporarily(snapshotter.prepare("a", "base", {})) as root:
        (root / "file").unlink()
        (root / "file").mkdir()
        (root / "directory" / "inner").unlink()
        (root / "directory").rmdir()
        (root / "directory").symlink_to("file")
    snapshotter.commit("top", "a", {})

    with mounted_temporarily(snapshotter.view("v", "top", {})) as root:
        assert (root / "file").is_dir()
        assert (root / "directory").readlink() == Path("file")


def test_owners_modes_times_and_xattrs_are_kept(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        file, link, directory = root / "file", root / "link", root / "directory"
        file.write_text("x")
        os.chown(file, 1234, 5678)
        file.chmod(0o4751)
        os.setxattr(file, "user.colour", b"blue")
        os.setxattr(file, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
        os.utime(file, ns=(1_000_000_001, 1_500_000_000_123_456_789))
        link.symlink_to("/nowhere")
        os.chown(link, 1, 2, follow_symlinks=False)
        os.setxattr(link, "trusted.mark", b"l", follow_symlinks=False)
        directory.mkdir(mode=0o1770)
        directory.chmod(0o1770)
        os.chown(directory, 33, 44)
        os.utime(directory, ns=(0, 123_456_789_000_000_000))
    snapshotter.commit("base", "a", {})
    commit_layer(snapshotter, "top", "base", {"other": ""})

    with mounted_temporarily(snapshotter.view("v", "top", {})) as root:
        found = (root / "file").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, 0o4751)
        assert found.st_mtime_ns == 1_500_000_000_123_456_789
        assert os.getxattr(root / "file", "user.colour") == b"blue"
        assert os.getxattr(root / "file", "security.capability")
        found = (root / "link").lstat()
        assert (found.st_uid, found.st_gid) == (1, 2)
        assert os.getxattr(root / "link", "trusted.mark", follow_symlinks=False) == b"l"
        found = (root / "directory").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (33, 44, 0o1770)
        assert found.st_mtime_ns == 123_456_789_000_000_000


def test_hard_links_devices_and_fifos_are_kept(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        (root / "one").write_text("shared")
        (root / "below").mkdir()
        os.link(root / "one", root / "below" / "two")
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mkfifo(root / "fifo")
    snapshotter.commit("base", "a", {})
    commit_layer(snapshotter, "top", "base", {"other": ""})

    with mounted_temporarily(snapshotter.view("v", "top", {})) as root:
        assert (root / "one").stat().st_ino == (root / "below" / "two").stat().st_ino
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
        assert (root / "fifo").is_fifo()


def test_holes_are_kept_and_take_no_room(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root, (root / "sparse").open("wb") as file:
        file.seek(1 << 24)
        file.write(b"end")
    snapshotter.commit("base", "a", {})
    commit_layer(snapshotter, "top", "base", {"other": ""})

    assert snapshotter.usage("base").size < 1 << 20
    with mounted_temporarily(snapshotter.view("v", "top", {})) as root:
        assert (root / "sparse").stat().st_size == (1 << 24) + 3
        assert (root / "sparse").read_bytes()[-4:] == b"\0end"


def test_the_root_directory_has_the_owner_and_mode_of_the_parents(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        root.chmod(0o1711)
        os.chown(root, 65534, 100)
    snapshotter.commit("base", "a", {})
    for make in (snapshotter.prepare, snapshotter.view):
        with mounted_temporarily(make(make.__name__, "base", {})) as root:
            found = root.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o1711, 65534, 100)


@pytest.mark.parametrize("parents", [0, 1, 2])
def test_a_view_cannot_be_written(snapshotter, parents):
    below = ""
    for name in ["one", "two"][:parents]:
        commit_layer(snapshotter, name, below, {name: "1"})
        below = name
    with mounted_temporarily(snapshotter.view("v", below, {})) as root:
        with pytest.raises(OSError, match="Read-only") as caught:
            (root / "new").touch()
        assert caught.value.errno == errno.EROFS


def test_a_hundred_layers_mount_and_read(snapshotter):
    below = ""
    for number in range(100):
        commit_layer(snapshotter, f"sha256:{number:064}", below, {f"file-{number}": str(number), "top": str(number)})
        below = f"sha256:{number:064}"

    with mounted_temporarily(snapshotter.view("v", below, {})) as root:
        assert (root / "top").read_text() == "99"
        assert (root / "file-0").read_text() == "0"
        assert len(list(root.iterdir())) == 101
    with mounted_temporarily(snapshotter.prepare("a", below, {})) as root:
        (root / "file-50").write_text("changed")
        assert (root / "file-51").read_text() == "51"


def test_the_layers_of_a_stack_fit_in_a_page_of_mount_options_if_there_are_forty(snapshotter):
    below = ""
    for number in range(40):
        commit_layer(snapshotter, f"layer {number}", below, {})
        below = f"layer {number}"
    (mount,) = snapshotter.prepare("a", below, {})
    assert len(",".join(mount.options)) < 4096
