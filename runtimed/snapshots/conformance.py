"""The conformance kit: what every snapshotter promises (`snapshotter.py`), as tests for pytest.

To run them on a snapshotter of your own, as root, put into a test module::

    from runtimed.snapshots.conformance import *

    @pytest.fixture
    def implementation():
        return lambda root: MySnapshotter(root, MySnapshotter.Config())

*root* is in pytest's ``tmp_path``. If your snapshotter needs a certain file system, have ``--basetemp`` on it, or a
fixture ``tmp_path`` of your own. `docs/snapshotters.md` tells more. Only tests import this module; it
needs pytest.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimedError
from runtimed.mounts import Mount, mounted, mounted_temporarily, mounts_below
from runtimed.snapshots.snapshotter import Kind, Snapshotter

Implementation = Callable[[Path], Snapshotter]


@pytest.fixture
def root(tmp_path) -> Iterator[Path]:
    yield tmp_path / "snapshotter"
    assert not mounts_below(tmp_path)


@pytest.fixture
def snapshotter(implementation: Implementation, root: Path) -> Iterator[Snapshotter]:
    with closing(implementation(root)) as made:
        yield made


def commit_layer(snapshotter: Snapshotter, name: str, parent: str, files: dict[str, str]) -> None:
    """Commit *name*, which adds or replaces *files* (path to text)."""
    with mounted_temporarily(snapshotter.prepare(f"active {name}", parent, {})) as root:
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    snapshotter.commit(name, f"active {name}", {})


# ---- content


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


# ---- keys, kinds, parents


@pytest.mark.parametrize("key", ["a/b/../c", "extract-1-aBc sha256:00ff", "..", "moby/12/ä:b", "x" * 3000])
def test_a_key_is_any_text(snapshotter, key):
    with mounted_temporarily(snapshotter.prepare(key, "", {})) as root:
        (root / "file").write_text(key)
    assert snapshotter.stat(key).name == key
    snapshotter.commit(f"{key} committed", key, {})
    with mounted_temporarily(snapshotter.view(key, f"{key} committed", {})) as root:
        assert (root / "file").read_text() == key


def test_an_empty_key_is_refused(snapshotter):
    with pytest.raises(InvalidArgument):
        snapshotter.prepare("", "", {})
    snapshotter.prepare("a", "", {})
    with pytest.raises(InvalidArgument):
        snapshotter.commit("", "a", {})


def test_a_key_that_is_taken_is_refused_and_stays_as_it_is(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    with mounted_temporarily(snapshotter.prepare("taken", "base", {})) as root:
        (root / "mine").write_text("kept")
    for make in (snapshotter.prepare, snapshotter.view):
        for key in ("taken", "base"):
            with pytest.raises(AlreadyExists, match=key):
                make(key, "", {})
    with mounted_temporarily(snapshotter.mounts("taken")) as root:
        assert (root / "mine").read_text() == "kept"


def test_a_parent_must_be_there_and_committed(snapshotter):
    snapshotter.prepare("active", "", {})
    snapshotter.view("view", "", {})
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(NotFound, match="missing"):
            make("child", "missing", {})
        for parent in ("active", "view"):
            with pytest.raises(InvalidArgument, match=parent):
                make("child", parent, {})
    assert {info.name for info in snapshotter.list()} == {"active", "view"}


def test_only_an_active_snapshot_is_committed(snapshotter):
    commit_layer(snapshotter, "base", "", {})
    snapshotter.view("view", "base", {})
    for key in ("base", "view"):
        with pytest.raises(FailedPrecondition, match=key):
            snapshotter.commit("name", key, {})
    with pytest.raises(NotFound, match="missing"):
        snapshotter.commit("name", "missing", {})


def test_a_commit_to_a_taken_name_is_refused_and_the_snapshot_goes_on(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        (root / "mine").write_text("kept")
    for name in ("base", "a"):
        with pytest.raises(AlreadyExists, match=name):
            snapshotter.commit(name, "a", {})
    with mounted_temporarily(snapshotter.mounts("a")) as root:
        assert (root / "mine").read_text() == "kept"


def test_a_committed_snapshot_has_no_mounts_and_its_key_is_free_again(snapshotter):
    commit_layer(snapshotter, "base", "", {})
    with pytest.raises(FailedPrecondition, match="base"):
        snapshotter.mounts("base")
    with pytest.raises(NotFound):
        snapshotter.mounts("active base")
    snapshotter.prepare("active base", "base", {})


def test_a_record_tells_kind_parent_labels_and_times(snapshotter):
    mark = {"containerd.io/snapshot/mark": "1"}
    snapshotter.prepare("a", "", mark)
    made = snapshotter.stat("a")
    assert (made.kind, made.parent, dict(made.labels)) == (Kind.ACTIVE, "", mark)
    assert made.created_at == made.updated_at > 1_600_000_000 * 10**9
    snapshotter.commit("base", "a", {"containerd.io/snapshot/other": "2"})
    committed = snapshotter.stat("base")
    assert (committed.kind, dict(committed.labels)) == (Kind.COMMITTED, {"containerd.io/snapshot/other": "2"})
    snapshotter.view("v", "base", {})
    assert (snapshotter.stat("v").kind, snapshotter.stat("v").parent) == (Kind.VIEW, "base")


def test_an_update_replaces_the_labels_and_nothing_else(snapshotter):
    snapshotter.prepare("a", "", {"one": "1", "two": "2"})
    before = snapshotter.stat("a")
    after = snapshotter.update("a", {"two": "3"})
    assert dict(after.labels) == {"two": "3"}
    assert (after.created_at, after.kind) == (before.created_at, before.kind)
    assert after.updated_at > before.updated_at
    assert snapshotter.stat("a") == after


def test_a_list_has_parents_before_their_children(snapshotter):
    commit_layer(snapshotter, "z", "", {})
    commit_layer(snapshotter, "m", "z", {})
    snapshotter.prepare("a", "m", {})
    assert [(info.name, info.parent) for info in snapshotter.list()] == [("z", ""), ("m", "z"), ("a", "m")]


def test_what_is_missing_is_not_found(snapshotter):
    calls: list[Callable[[], object]] = [
        lambda: snapshotter.stat("x"),
        lambda: snapshotter.mounts("x"),
        lambda: snapshotter.usage("x"),
        lambda: snapshotter.update("x", {}),
        lambda: snapshotter.remove("x"),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="'x'"):
            call()


# ---- removal


def test_children_are_removed_before_their_parents(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    commit_layer(snapshotter, "top", "base", {})
    snapshotter.view("v", "top", {})
    for key in ("base", "top"):
        with pytest.raises(FailedPrecondition, match=key):
            snapshotter.remove(key)
    for key in ("v", "top", "base"):
        snapshotter.remove(key)
    assert list(snapshotter.list()) == []
    with pytest.raises(NotFound):
        snapshotter.remove("base")


def test_a_removed_snapshot_leaves_nothing_on_disk(snapshotter, root):
    snapshotter.prepare("first", "", {})
    before = files(root)
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        nest(mountpoint, 60)
        (mountpoint / "file").write_text("x" * 100_000)
        (mountpoint / "link").symlink_to("/etc")
    snapshotter.remove("a")
    assert files(root) == before


def test_nothing_is_deleted_through_a_mount(snapshotter, root, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        (mountpoint / "inner").mkdir()
    (inner,) = [path for path in root.rglob("inner") if path.is_dir()]
    with mounted([Mount("bind", str(precious), options=("rbind",))], inner):
        with pytest.raises(FailedPrecondition, match="inner"):
            snapshotter.remove("a")
        assert snapshotter.stat("a").kind is Kind.ACTIVE
        assert (precious / "file").read_text() == "kept"
    snapshotter.remove("a")
    assert (precious / "file").read_text() == "kept"


# ---- usage


def test_a_tree_deeper_than_a_path_may_be_is_committed_measured_and_removed(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        nest(mountpoint, 60)
    assert snapshotter.usage("a").inodes >= 61
    snapshotter.commit("base", "a", {})
    snapshotter.prepare("child", "base", {})
    snapshotter.remove("child")
    snapshotter.remove("base")


def test_usage_counts_inodes_and_blocks_and_a_hard_link_once(snapshotter):
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        empty = snapshotter.usage("a")
        (root / "file").write_bytes(os.urandom(1 << 20))
        os.sync()
        os.link(root / "file", root / "again")
        (root / "sparse").touch()
        os.truncate(root / "sparse", 1 << 30)
        (root / "directory").mkdir()
        measured = snapshotter.usage("a")
    assert measured.inodes == empty.inodes + 3
    assert 1 << 20 <= measured.size - empty.size < (1 << 20) + 65536
    snapshotter.commit("base", "a", {})
    assert snapshotter.usage("base") == measured
    assert snapshotter.usage("base").size > 0


def test_usage_of_a_view_is_nothing(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1" * 10_000})
    snapshotter.view("v", "base", {})
    assert snapshotter.usage("v").size == 0


# ---- durability and concurrency


def test_everything_is_there_after_it_was_opened_again(implementation, root):
    with closing(implementation(root)) as first:
        commit_layer(first, "base", "", {"a": "1"})
        mounts = first.prepare("active", "base", {"label": "1"})
        with mounted_temporarily(mounts) as mountpoint:
            (mountpoint / "b").write_text("2")
        first.view("view", "base", {})
        before = list(first.list())
        usage = first.usage("base")

    with closing(implementation(root)) as second:
        assert list(second.list()) == before
        assert second.usage("base") == usage
        assert second.mounts("active") == mounts
        with mounted_temporarily(mounts) as mountpoint:
            assert sorted(path.name for path in mountpoint.iterdir()) == ["a", "b"]
        second.prepare("another", "base", {})


def test_mounts_stay_while_the_snapshotter_is_closed(implementation, root):
    with closing(implementation(root)) as first:
        mounts = first.prepare("a", "", {})
    with mounted_temporarily(mounts) as mountpoint:
        (mountpoint / "file").write_text("1")
        with closing(implementation(root)) as second:
            assert second.mounts("a") == mounts
            second.cleanup()
            assert (mountpoint / "file").read_text() == "1"


def test_what_a_failed_prepare_left_is_not_in_the_way(snapshotter, root):
    before = files(root)
    for _ in range(3):
        with pytest.raises(RuntimedError):
            snapshotter.prepare("a", "missing", {})
    snapshotter.cleanup()
    assert files(root) == before
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
        assert list(mountpoint.iterdir()) == []


def test_of_many_prepares_of_one_key_at_once_one_wins(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})
    answers = at_once(8, lambda _: snapshotter.prepare("key", "base", {}))
    assert [type(answer) for answer in answers].count(list) == 1
    assert [type(answer) for answer in answers].count(AlreadyExists) == 7
    with mounted_temporarily(snapshotter.mounts("key")) as root:
        assert (root / "a").read_text() == "1"


def test_of_many_commits_to_one_name_at_once_one_wins(snapshotter):
    for number in range(4):
        snapshotter.prepare(f"a{number}", "", {})
    answers = at_once(4, lambda number: snapshotter.commit("name", f"a{number}", {}))
    assert [type(answer) for answer in answers].count(AlreadyExists) == 3
    assert sorted(info.kind for info in snapshotter.list()) == ["active"] * 3 + ["committed"]


def test_different_keys_may_be_used_at_once(snapshotter):
    commit_layer(snapshotter, "base", "", {"a": "1"})

    def life(number: int) -> None:
        commit_layer(snapshotter, f"layer {number}", "base", {"mine": str(number)})
        with mounted_temporarily(snapshotter.view(f"view {number}", f"layer {number}", {})) as root:
            assert (root / "mine").read_text() == str(number)
        snapshotter.remove(f"view {number}")
        snapshotter.remove(f"layer {number}")

    assert at_once(6, life) == [None] * 6
    assert [info.name for info in snapshotter.list()] == ["base"]


def at_once(count: int, call: Callable[[int], object]) -> list[object]:
    """Call in *count* threads at the same moment; return what each returned or raised."""
    answers: list[object] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = call(number)
        except Exception as exc:
            answers[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def nest(directory: Path, depth: int) -> None:
    """Make directories of 200 characters within each other: 60 of them are three times what one path may have."""
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def files(root: Path) -> list[str]:
    """Return every path below *root* but a database's own."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith("records.db"))
