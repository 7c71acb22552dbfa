"""What outlives a snapshotter that is closed, and what threads do to each other."""

from contextlib import closing

import pytest

from runtimed.errors import AlreadyExists, RuntimedError
from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance.tools import at_once, commit_layer, files


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
