import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from runtimed.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from runtimed.mounts import Mount, mounted, mounted_temporarily, mounts_below
from runtimed.snapshots.snapshotter import NotSupported, Snapshotter
from snapshotters.native import NativeSnapshotter
from snapshotters.overlay import OverlaySnapshotter

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path) -> Iterator[Path]:
    yield tmp_path / "root"
    assert mounts_below(tmp_path) == []


@pytest.fixture
def overlay(root) -> Iterator[OverlaySnapshotter]:
    with closing(OverlaySnapshotter(root, OverlaySnapshotter.Config())) as made:
        yield made


def commit(snapshotter: Snapshotter, name: str, parent: str = "") -> None:
    snapshotter.prepare("active", parent, {})
    snapshotter.commit(name, "active", {})


def test_mounts_are_what_clients_of_containerd_know(overlay, root):
    assert overlay.prepare("a", "", {}) == [Mount("bind", f"{root}/snapshots/1/fs", options=("rw", "rbind"))]
    overlay.commit("one", "a", {})
    assert overlay.view("v1", "one", {}) == [Mount("bind", f"{root}/snapshots/1/fs", options=("ro", "rbind"))]
    (mount,) = overlay.prepare("a", "one", {})
    assert (mount.type, mount.source) == ("overlay", "overlay")
    assert mount.options[-3:] == (
        f"workdir={root}/snapshots/3/work",
        f"upperdir={root}/snapshots/3/fs",
        f"lowerdir={root}/snapshots/1/fs",
    )
    overlay.commit("two", "a", {})
    (mount,) = overlay.view("v2", "two", {})
    assert mount.options[-1] == f"lowerdir={root}/snapshots/3/fs:{root}/snapshots/1/fs"


def test_nothing_but_the_changes_is_left_of_a_committed_snapshot(overlay, root):
    with mounted_temporarily(overlay.prepare("a", "", {})):
        pass
    commit(overlay, "one")
    with mounted_temporarily(overlay.prepare("b", "one", {})) as mountpoint:
        (mountpoint / "file").touch()
    overlay.commit("two", "b", {})
    assert sorted(path.name for path in (root / "snapshots" / "3").iterdir()) == ["fs"]
    assert list((root / "trash").iterdir()) == list((root / "new").iterdir()) == []


def test_of_several_that_are_removed_those_stay_that_one_alone_would(overlay, root, tmp_path):
    below = ""
    for number in range(4):
        commit(overlay, f"{number}", below)
        below = f"{number}"
    overlay.prepare("used", "", {})
    commit(overlay, "kept")
    overlay.prepare("above", "kept", {})
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with mounted(overlay.mounts("used"), mountpoint):
        assert overlay.remove_many(["3", "2", "1", "0", "used", "gone", "kept"]) == {"used", "kept"}
    assert [info.name for info in overlay.list()] == ["used", "kept", "above"]
    assert sorted(path.name for path in (root / "snapshots").iterdir()) == ["5", "6", "7"]
    assert list((root / "trash").iterdir()) == []


def test_if_the_records_cannot_be_written_none_of_several_is_removed(overlay, root, monkeypatch):
    commit(overlay, "one")
    commit(overlay, "two")

    def full(key):
        if key == "two":
            raise ResourceExhausted("no space")
        return remove(key)

    remove = overlay._records.remove
    monkeypatch.setattr(overlay._records, "remove", full)
    with pytest.raises(ResourceExhausted):
        overlay.remove_many(["one", "two"])
    assert [info.name for info in overlay.list()] == ["one", "two"]
    assert len(list((root / "snapshots").iterdir())) == 2


def test_configured_options_are_in_every_overlay_mount(root):
    config = OverlaySnapshotter.Config(mount_options=("xino=on",))
    with closing(OverlaySnapshotter(root, config)) as overlay:
        commit(overlay, "one")
        mounts = overlay.prepare("a", "one", {})
        assert "xino=on" in mounts[0].options
        with mounted_temporarily(mounts) as mountpoint:
            (mountpoint / "file").touch()


def test_a_deep_stack_can_be_mounted_by_mount8_from_the_common_directory(overlay, root, tmp_path):
    """As containerd's Go client does it when the options exceed a page."""
    below = ""
    for number in range(120):
        commit(overlay, f"layer {number}", below)
        below = f"layer {number}"
    (mount,) = overlay.prepare("a", below, {})
    common = f"{root}/snapshots/"
    options = ",".join(option.replace(common, "") for option in mount.options if option.startswith("lowerdir="))
    others = ",".join(option for option in mount.options if not option.startswith("lowerdir="))
    assert len(options) + len(others) < 4096
    (tmp_path / "target").mkdir()
    command = ["mount", "-i", "-t", "overlay", "overlay", "-o", f"{others},{options}", str(tmp_path / "target")]
    subprocess.run(command, cwd=common, check=True)
    subprocess.run(["umount", str(tmp_path / "target")], check=True)


def test_a_root_that_lies_on_an_overlay_is_not_supported(tmp_path, root):
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    root.mkdir()
    options = tuple(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    with mounted([Mount("overlay", "overlay", options=options)], root):
        with pytest.raises(NotSupported, match="overlayfs does not work on"):
            OverlaySnapshotter(root / "below", OverlaySnapshotter.Config())
        assert list((root / "below" / "new").iterdir()) == list((root / "below" / "trash").iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_root_that_mount_options_cannot_name_is_refused(tmp_path, name):
    with pytest.raises(InvalidArgument, match="choose another path"):
        OverlaySnapshotter(tmp_path / name, OverlaySnapshotter.Config())


@pytest.mark.parametrize("cls", [OverlaySnapshotter, NativeSnapshotter])
def test_a_snapshot_that_is_mounted_is_not_removed_under_its_container(root, cls):
    with closing(cls(root, cls.Config())) as snapshotter:
        commit(snapshotter, "base")
        for key, parent in [("a", "base"), ("b", "")]:
            with mounted_temporarily(snapshotter.prepare(key, parent, {})) as mountpoint:
                (mountpoint / "file").touch()
                with pytest.raises(
                    FailedPrecondition, match=f"snapshot '{key}' is in use: unmount '{mountpoint}' first"
                ):
                    snapshotter.remove(key)
                assert (mountpoint / "file").exists()
            snapshotter.remove(key)


LONG_KEYS = [f"{number} {'k' * 1000}" for number in range(100)]  # some still fit into what SQLite has allocated


def prepare_all(snapshotter: Snapshotter, taken: list[str]) -> None:
    for key in LONG_KEYS:
        snapshotter.prepare(key, "base", {})
        taken.append(key)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("cls", [OverlaySnapshotter, NativeSnapshotter])
def test_a_full_disk_is_told_and_costs_no_name(root, cls):
    root.mkdir()
    with ExitStack() as opened:
        opened.enter_context(mounted([Mount("tmpfs", "tmpfs", options=("size=2m",))], root))
        snapshotter = opened.enter_context(closing(cls(root / "s", cls.Config())))
        with mounted_temporarily(snapshotter.prepare("a", "", {})) as mountpoint:
            (mountpoint / "file").write_bytes(bytes(900_000))
        snapshotter.commit("base", "a", {})
        fill(root / "filler")
        taken: list[str] = []
        with pytest.raises(ResourceExhausted, match="[Nn]o space left"):
            prepare_all(snapshotter, taken)
        (root / "filler").unlink()
        refused = LONG_KEYS[len(taken)]
        snapshotter.prepare(refused, "base", {})
        snapshotter.remove(refused)
        snapshotter.cleanup()
        assert list((root / "s" / "trash").iterdir()) == []
        assert {path.name for path in (root / "s" / "snapshots").iterdir()} == snapshotter._records.ids()
