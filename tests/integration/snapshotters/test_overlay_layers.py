"""Layers that are EROFS files: when they are mounted, what is made of them, what is left of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from runtimed import failpoints
from runtimed.errors import DataLoss
from runtimed.labels import SNAPSHOT_REF
from runtimed.linux.mount import MNT_DETACH, umount2
from runtimed.linux.tmpfile import link_unnamed, open_unnamed
from runtimed.mounts import Mount, mounted, mounted_temporarily, mounts_below
from runtimed.snapshots.snapshotter import Kind, LayerFiles, NotSupported
from snapshotters.overlay import OverlaySnapshotter
from tests.integration.snapshotters.packing import PackingOverlaySnapshotter, pack

pytestmark = pytest.mark.root

REF = {SNAPSHOT_REF: "sha256:" + "0" * 64}


@pytest.fixture
def root(tmp_path) -> Iterator[Path]:
    yield tmp_path / "root"
    assert mounts_below(tmp_path) == []


def opened(root: Path, layers: Literal["auto", "erofs", "directories"] = "erofs") -> OverlaySnapshotter:
    return OverlaySnapshotter(root, OverlaySnapshotter.Config(layers=layers))


@pytest.fixture
def overlay(root) -> Iterator[OverlaySnapshotter]:
    with closing(opened(root)) as made:
        yield made


@pytest.fixture
def tree(tmp_path) -> Path:
    made: Path = tmp_path / "tree"
    (made / "directory").mkdir(parents=True)
    (made / "directory" / "file").write_text("packed")
    return made


def unpack(overlay: OverlaySnapshotter, tree: Path, name: str = "base", parent: str = "", key: str = "a") -> None:
    apply(overlay, tree, key, parent)
    overlay.commit(name, key, {})


def apply(overlay: OverlaySnapshotter, tree: Path, key: str = "a", parent: str = "") -> list[Mount]:
    """Do what a client and a worker do, up to the commit."""
    mounts = overlay.prepare(key, parent, REF)
    target = overlay.layer_target(mounts)
    assert target is not None
    assert pack(tree, target)
    return mounts


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def mounted_layers(root: Path) -> set[str]:
    return {path.name for path in mounts_below(root / "layers")}


# ---- what becomes of a layer


def test_a_layer_is_one_file_and_its_mounts_are_what_clients_know(overlay, root, tree):
    unpack(overlay, tree)
    assert [path.name for path in (root / "snapshots" / "1").iterdir()] == ["layer.erofs"]
    assert overlay.view("v", "base", {}) == [Mount("bind", f"{root}/layers/1", options=("ro", "rbind"))]
    (mount,) = overlay.prepare("c", "base", {})
    assert (mount.type, mount.source) == ("overlay", "overlay")
    assert "xino=on" in mount.options
    assert mount.options[-3:] == (
        f"workdir={root}/snapshots/3/work",
        f"upperdir={root}/snapshots/3/fs",
        f"lowerdir={root}/layers/1",
    )


def test_a_file_has_the_device_of_its_directory_whatever_layer_it_is_in(overlay, tree):
    unpack(overlay, tree)
    unpack(overlay, tree, "top", "base")
    with mounted_temporarily(overlay.prepare("c", "top", {})) as merged:
        (merged / "new").touch()
        found = [merged, merged / "directory", merged / "directory" / "file", merged / "new"]
        assert len({path.stat().st_dev for path in found}) == 1


def test_directories_and_files_mix_in_a_chain(root, tree):
    with closing(opened(root, "directories")) as overlay:
        with mounted_temporarily(overlay.prepare("a", "", REF)) as merged:
            (merged / "below").write_text("1")
        overlay.commit("bottom", "a", {})
    with closing(opened(root)) as overlay:
        unpack(overlay, tree, "middle", "bottom")
    with closing(opened(root, "directories")) as overlay:
        mounts = overlay.prepare("a", "middle", REF)
        assert overlay.layer_target(mounts) is None
        assert overlay.layer_directory is None
        with mounted_temporarily(mounts) as merged:
            (merged / "directory" / "file").unlink()
            (merged / "above").write_text("3")
        overlay.commit("top", "a", {})
        with mounted_temporarily(overlay.view("v", "top", {})) as merged:
            assert sorted(path.name for path in merged.rglob("*")) == ["above", "below", "directory"]


def test_what_is_written_after_the_layer_lies_over_it(overlay, root, tree):
    mounts = apply(overlay, tree)
    with mounted_temporarily(mounts) as merged:
        (merged / "later").write_text("1")
    with mounted_temporarily(overlay.mounts("a")) as merged:
        assert (merged / "directory" / "file").read_text() == "packed"
        (merged / "directory" / "file").unlink()
    overlay.commit("base", "a", {})
    assert sorted(path.name for path in (root / "snapshots" / "1").iterdir()) == ["fs", "layer.erofs"]
    with mounted_temporarily(overlay.prepare("c", "base", {})) as merged:
        assert sorted(path.name for path in merged.rglob("*")) == ["directory", "later"]


def test_a_root_directory_that_was_changed_is_kept(overlay, tree):
    mounts = apply(overlay, tree)
    with mounted_temporarily(mounts) as merged:
        merged.chmod(0o1700)
        os.chown(merged, 5, 6)
    overlay.commit("base", "a", {})
    with mounted_temporarily(overlay.prepare("c", "base", {})) as merged:
        found = merged.stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o1700, 5, 6)
        assert (merged / "directory" / "file").exists()


def test_a_file_that_comes_after_the_commit_is_no_part_of_it(overlay, root, tree):
    target = overlay.layer_target(overlay.prepare("a", "", REF))
    overlay.commit("base", "a", {})
    assert pack(tree, target)
    with mounted_temporarily(overlay.view("v", "base", {})) as merged:
        assert list(merged.iterdir()) == []
    assert mounted_layers(root) == set()


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"no file system"])
def test_a_file_that_the_kernel_does_not_take_is_not_committed(overlay, content):
    overlay.layer_target(overlay.prepare("a", "", REF)).write_bytes(content)
    with pytest.raises(DataLoss, match=r"unpacked\.erofs' is damaged .*pull it again"):
        overlay.commit("base", "a", {})
    assert [info.kind for info in overlay.list()] == [Kind.ACTIVE]


def test_usage_is_that_of_the_file(overlay, tree):
    (tree / "large").write_bytes(os.urandom(1 << 20))
    apply(overlay, tree)
    active = overlay.usage("a")
    overlay.commit("base", "a", {})
    usage = overlay.usage("base")
    assert usage.inodes == 1
    assert 1 << 20 <= usage.size < active.size < (1 << 20) + 65536


# ---- who may have a layer taken as a file


def test_only_the_first_layer_of_a_snapshot_made_for_unpacking_is_taken_as_a_file(overlay, tree, root):
    target = overlay.layer_target
    assert target(overlay.prepare("extract-1-a b", "", {})) is None
    assert target(overlay.prepare(f"ns/0/extract-1-a sha256:{'0' * 64}", "", {})) is not None
    mounts = overlay.prepare("a", "", REF)
    assert target(mounts) == root / "snapshots" / "3" / "unpacked.erofs"
    with mounted_temporarily(mounts) as merged:
        (merged / "file").touch()
    assert target(mounts) is None
    mounts = apply(overlay, tree, "b")
    assert target(mounts) is None
    overlay.commit("base", "b", {})
    assert target(mounts) is None
    assert target(overlay.prepare("c", "base", REF)) == root / "snapshots" / "5" / "unpacked.erofs"
    assert target(overlay.view("v", "base", REF)) is None
    for other in ([], [Mount("bind", "/")], [Mount("tmpfs", "tmpfs")], [*mounts, *mounts], [Mount("overlay", "o")]):
        assert target(other) is None


def test_it_offers_to_take_layers_as_files(overlay):
    assert isinstance(overlay, LayerFiles)


def test_a_layer_file_may_be_made_before_its_snapshot(overlay, root, tree, tmp_path):
    assert pack(tree, tmp_path / "image")
    fd = open_unnamed(overlay.layer_directory)
    os.write(fd, (tmp_path / "image").read_bytes())
    link_unnamed(fd, overlay.layer_target(overlay.prepare("a", "", REF)))
    os.close(fd)
    overlay.commit("base", "a", {})
    assert list((root / "new").iterdir()) == []
    with mounted_temporarily(overlay.view("v", "base", {})) as merged:
        assert (merged / "directory" / "file").read_text() == "packed"


def test_where_the_kernel_mounts_no_files_layers_are_directories_unless_that_is_refused(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted([Mount("tmpfs", "tmpfs")], disk):
        with closing(opened(disk / "auto", "auto")) as overlay:
            assert overlay.layer_target(overlay.prepare("a", "", REF)) is None
        with pytest.raises(NotSupported, match='layers = "erofs": the kernel mounts no EROFS file on .*directories'):
            opened(disk / "forced")
    with closing(opened(tmp_path / "root", "auto")) as overlay:
        assert overlay.layer_target(overlay.prepare("a", "", REF)) is not None


# ---- mounts


def test_a_layer_is_mounted_when_it_is_first_needed_and_until_it_is_not(overlay, root, tree):
    unpack(overlay, tree)
    assert mounted_layers(root) == set()
    for key in ("b", "c"):
        overlay.prepare(key, "base", {})
        assert mounted_layers(root) == {"1"}
    overlay.remove("b")
    overlay.cleanup()
    assert mounted_layers(root) == {"1"}
    overlay.remove("c")
    overlay.cleanup()
    assert mounted_layers(root) == set()
    assert list((root / "layers").iterdir()) == []


def test_removing_a_layer_frees_its_space_whoever_has_its_mount_in_a_namespace_of_his_own(root, tmp_path):
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        (disk / "tree").mkdir()
        (disk / "tree" / "large").write_bytes(os.urandom(8 << 20))
        with closing(opened(disk / "root")) as overlay:
            before = free(disk)
            unpack(overlay, disk / "tree")
            mounts = overlay.view("v", "base", {})
            assert free(disk) < before - (8 << 20)
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read wait"]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                other.stdout.readline()
                with mounted_temporarily(mounts):
                    pass
                overlay.remove("v")
                overlay.remove("base")
                assert free(disk) > before - (1 << 20)  # records.db has grown
                other.communicate(b"\n")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_four_hundred_layers_are_one_mount(root, tmp_path):
    tree = tmp_path / "tree"
    with closing(PackingOverlaySnapshotter(root)) as overlay:
        below = ""
        for number in range(400):
            tree.mkdir(exist_ok=True)
            (tree / f"file-{number}").write_text(str(number))
            unpack(overlay, tree, f"layer {number}", below)
            below = f"layer {number}"
            (tree / f"file-{number}").unlink()
        with mounted_temporarily(overlay.prepare("c", below, {})) as merged:
            assert len(list(merged.iterdir())) == 400
            assert (merged / "file-7").read_text() == "7"
        # As containerd's Go client mounts them: from the directory that all have in common.
        (mount,) = overlay.view("v", below, {})
        assert len(mount.options[-1].replace(f"{root}/layers/", "")) < 4096


# ---- restarts


def test_after_a_crash_the_mounts_are_taken_over(root, tree):
    crashed = opened(root)
    unpack(crashed, tree)
    mounts = crashed.prepare("c", "base", {})
    unpack(crashed, tree, "unused", key="b")
    crashed.view("v", "unused", {})
    crashed.remove("v")
    device = (root / "layers" / "1").stat().st_dev
    crashed._records.close()  # and no more
    with closing(opened(root)) as overlay:
        assert (root / "layers" / "1").stat().st_dev == device
        assert overlay.mounts("c") == mounts
        overlay.cleanup()
        assert mounted_layers(root) == {"1"}


def test_after_a_reboot_the_layers_are_mounted_again(root, tree):
    before = opened(root)
    unpack(before, tree)
    mounts = before.prepare("c", "base", {})
    apply(before, tree, "d")
    before.mounts("d")
    before._records.close()
    for path in mounts_below(root):
        umount2(str(path), MNT_DETACH)  # the mount points stay, as they do when the power goes
    with closing(opened(root)), mounted_temporarily(mounts) as merged:
        assert (merged / "directory" / "file").read_text() == "packed"
        assert mounted_layers(root) == {"1", "3"}


def test_a_stop_keeps_the_mounts_that_a_container_runs_on(root, tree):
    overlay = opened(root)
    unpack(overlay, tree)
    unpack(overlay, tree, "other", key="b")
    overlay.view("v", "other", {})
    with mounted_temporarily(overlay.prepare("c", "base", {})) as merged:
        device = (root / "layers" / "1").stat().st_dev
        overlay.close()
        assert mounted_layers(root) == {"1"}
        overlay = opened(root)
        assert (root / "layers" / "1").stat().st_dev == device
        assert (merged / "directory" / "file").read_text() == "packed"
    overlay.close()
    assert mounted_layers(root) == set()


def test_an_overlay_outlives_the_mounts_of_its_layers(overlay, root, tree):
    unpack(overlay, tree)
    with mounted_temporarily(overlay.prepare("c", "base", {})) as merged:
        overlay._layers.hide_all(but=set())
        assert mounted_layers(root) == set()
        assert (merged / "directory" / "file").read_text() == "packed"


def test_a_layer_that_cannot_be_mounted_costs_its_own_snapshots_only(root, tree):
    with closing(opened(root)) as overlay:
        unpack(overlay, tree)
        unpack(overlay, tree, "other", key="b")
        overlay.prepare("c", "base", {})
    (root / "snapshots" / "1" / "layer.erofs").write_bytes(bytes(8192))
    with closing(opened(root)) as overlay:
        with pytest.raises(DataLoss, match=r"1/layer\.erofs' is damaged"):
            overlay.mounts("c")
        with pytest.raises(DataLoss, match=r"1/layer\.erofs' is damaged"):
            overlay.prepare("d", "base", {})
        overlay.prepare("d", "other", {})
        overlay.remove("c")
        overlay.remove("base")


_SCRIPT = """
import sys
from pathlib import Path
from tests.integration.snapshotters.test_overlay_layers import apply, opened
overlay = opened(Path(sys.argv[1]))
apply(overlay, Path(sys.argv[2]))
overlay.commit("base", "a", {})
overlay.prepare("c", "base", {})
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("layer.begun", {"a": Kind.ACTIVE}),
        ("layer.alone", {"a": Kind.ACTIVE}),
        ("layer.named", {"a": Kind.ACTIVE}),
        ("layer.mountpoint", {"base": Kind.COMMITTED}),
    ],
)
def test_a_crash_leaves_a_layer_that_is_committed_or_not(root, tree, point, left):
    environment = {**os.environ, failpoints.VARIABLE: f"{point}=panic"}
    command = [sys.executable, "-c", _SCRIPT, root, tree]
    died = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, check=False)
    assert died.returncode == -9
    with closing(opened(root)) as overlay:
        assert {info.name: info.kind for info in overlay.list()} == left
        overlay.cleanup()
        assert {path.name for path in (root / "layers").iterdir()} == mounted_layers(root)
        if "a" in left:
            with mounted_temporarily(overlay.mounts("a")) as merged:
                assert (merged / "directory" / "file").read_text() == "packed"
            overlay.commit("base", "a", {})
        assert [path.name for path in (root / "snapshots" / "1").iterdir()] == ["layer.erofs"]
        with mounted_temporarily(overlay.prepare("c", "base", {})) as merged:
            assert (merged / "directory" / "file").read_text() == "packed"


def test_a_commit_that_fails_gives_the_layer_back(overlay, tree, monkeypatch):
    monkeypatch.setattr(failpoints, "_points", failpoints.parse("layer.named=1*error(no)->off"))
    apply(overlay, tree)
    with pytest.raises(Exception, match="no"):
        overlay.commit("base", "a", {})
    with mounted_temporarily(overlay.mounts("a")) as merged:
        assert (merged / "directory" / "file").read_text() == "packed"
    overlay.commit("base", "a", {})
    with mounted_temporarily(overlay.view("v", "base", {})) as merged:
        assert (merged / "directory" / "file").read_text() == "packed"
