import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, NotFound
from runtimed.linux import fstab
from runtimed.linux.overlayfs import mount_relative
from runtimed.mounts import (
    Mount,
    mount_all,
    mounted,
    mounted_temporarily,
    mounts_below,
    mounts_of,
    unmount,
    unmount_all,
)

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path) -> Iterator[Path]:
    directory = tmp_path / "root with a blank"
    directory.mkdir()
    yield directory
    assert mounts_below(tmp_path) == []


def layers(directory: Path, count: int) -> list[str]:
    made = []
    for number in range(count):
        layer = directory / f"a directory with a long name {number}"
        layer.mkdir()
        (layer / f"file-{number}").touch()
        made.append(str(layer))
    return made


def flags_of(path: Path) -> int:
    return os.statvfs(path).f_flag


def test_a_file_system_is_mounted_with_flags_and_its_own_options(root):
    with mounted([Mount("tmpfs", "tmpfs", options=("nosuid", "nodev", "noexec", "mode=1770", "size=64k"))], root):
        assert stat.S_IMODE(root.stat().st_mode) == 0o1770
        wanted = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        assert flags_of(root) & wanted == wanted
        (root / "file").touch()
    assert list(root.iterdir()) == []


def test_a_bind_mount_is_read_only_and_leaves_its_source_writable(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with mounted([Mount("bind", str(source), options=("rbind", "ro", "nosuid"))], root):
        with pytest.raises(OSError, match="Read-only"):
            (root / "file").touch()
        assert flags_of(root) & os.ST_NOSUID
        (source / "file").touch()
        assert (root / "file").exists()


def test_a_bind_mount_keeps_the_flags_of_its_source(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with (
        mounted([Mount("tmpfs", "tmpfs", options=("nosuid", "nodev"))], source),
        mounted([Mount("bind", str(source), options=("bind", "ro"))], root),
    ):
        wanted = os.ST_NOSUID | os.ST_NODEV | os.ST_RDONLY
        assert flags_of(root) & wanted == wanted


def test_a_file_can_be_mounted_on_a_file(root, tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver")
    (root / "target").touch()
    mount = Mount("bind", str(tmp_path / "resolv.conf"), target="target", options=("bind", "ro"))
    with mounted([mount], root):
        assert (root / "target").read_text() == "nameserver"


def propagation_of(path: Path) -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(path).replace(" ", "\\040"):
            return " ".join(fields[6 : fields.index("-")])
    raise AssertionError(f"{path} is not mounted")


@pytest.mark.parametrize("type", ["bind", "tmpfs"])
def test_propagation_is_what_was_asked_for(root, tmp_path, type):
    (tmp_path / "source").mkdir()
    options = ("rbind",) if type == "bind" else ()
    for propagation, shown in [("rshared", "shared:"), ("rprivate", ""), ("runbindable", "unbindable")]:
        with mounted([Mount(type, str(tmp_path / "source"), options=(*options, propagation))], root):
            assert propagation_of(root).rstrip("0123456789") == shown


def test_mounts_are_made_in_order_and_below_each_other(root, tmp_path):
    rootfs = tmp_path / "rootfs"
    (rootfs / "proc").mkdir(parents=True)
    (rootfs / "run" / "secrets").mkdir(parents=True)
    mounts = [
        Mount("bind", str(rootfs), options=("rbind",)),
        Mount("proc", "proc", target="/proc"),
        Mount("tmpfs", "tmpfs", target="run/secrets/", options=("size=64k",)),
    ]
    with mounted(mounts, root):
        assert (root / "proc" / "self").exists()
        assert mounts_below(root) == [root, root / "proc", root / "run" / "secrets"]


def test_a_link_in_the_mounted_tree_does_not_lead_a_mount_outside(root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs" / "proc").symlink_to(tmp_path / "outside")
    mounts = [Mount("bind", str(tmp_path / "rootfs"), options=("rbind",)), Mount("proc", "proc", target="proc")]
    with pytest.raises(InvalidArgument, match="symbolic link"):
        mount_all(mounts, root)
    assert list((tmp_path / "outside").iterdir()) == []


def test_of_mounts_that_fail_none_is_left(root):
    with pytest.raises(InvalidArgument, match="no file system type 'nonesuch'"):
        mount_all([Mount("tmpfs", "tmpfs"), Mount("nonesuch", "none")], root)
    with pytest.raises(NotFound, match="/nowhere"):
        mount_all([Mount("tmpfs", "tmpfs"), Mount("bind", "/nowhere", options=("bind",))], root)


@pytest.mark.parametrize("count", [2, 300, 500])
def test_an_overlay_has_up_to_five_hundred_layers(root, tmp_path, count):
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    options = (
        f"workdir={tmp_path}/work",
        f"upperdir={tmp_path}/upper",
        f"lowerdir={':'.join(layers(tmp_path, count))}",
    )
    with mounted([Mount("overlay", "overlay", options=options)], root):
        assert len(list(root.iterdir())) == count
        (root / "new").touch()
    assert (tmp_path / "upper" / "new").exists()


def test_a_deep_overlay_without_an_upperdir_is_read_only_and_has_its_flags(root, tmp_path):
    options = ("ro", "nodev", "noatime", f"lowerdir={':'.join(layers(tmp_path, 150))}")
    with mounted([Mount("overlay", "overlay", options=options)], root):
        wanted = os.ST_RDONLY | os.ST_NODEV | os.ST_NOATIME
        assert flags_of(root) & wanted == wanted
        assert len(list(root.iterdir())) == 150


def test_relative_paths_do_where_the_kernel_cannot_append_layers(root, tmp_path):
    short = tmp_path / ("a long name " * 10)
    short.mkdir()
    for number in range(60):
        (short / str(number)).mkdir()
        (short / str(number) / f"file-{number}").touch()
    lowers = [f"{short}/{number}" for number in range(60)]
    here = Path.cwd()
    fd = os.open(root, os.O_PATH)
    try:
        mount_relative("overlay", fd, fstab.parse([f"lowerdir={':'.join(lowers)}", "ro"]))
        assert len(list(root.iterdir())) == 60
        assert Path.cwd() == here
    finally:
        os.close(fd)
        unmount_all(root)


def test_everything_at_a_path_comes_off(root):
    for _ in range(3):
        Mount("tmpfs", "tmpfs").attach(root)
    (root / "inner").mkdir()
    Mount("tmpfs", "tmpfs").attach(root / "inner")
    assert unmount_all(root) == []
    assert mounts_below(root) == []
    assert unmount_all(root) == []
    assert unmount_all(root / "missing") == []


def test_a_busy_mount_is_detached_and_that_is_told(root):
    Mount("tmpfs", "tmpfs").attach(root)
    with (root / "file").open("w") as file:
        device = os.fstat(file.fileno()).st_dev
        assert unmount_all(root) == [f"{os.major(device)}:{os.minor(device)}"]
        file.write("still there")
    assert mounts_below(root) == []


def test_unmounting_does_not_follow_a_link(root):
    (root / "real").mkdir()
    (root / "link").symlink_to(root / "real")
    with mounted([Mount("tmpfs", "tmpfs")], root / "real"):
        assert unmount_all(root / "link") == []
        with pytest.raises(OSError, match="Invalid") as caught:
            unmount(root / "link")
        assert caught.value.errno == errno.EINVAL
        assert mounts_below(root) == [root / "real"]


def test_a_temporary_mount_point_goes_with_the_mount(tmp_path):
    with mounted_temporarily([Mount("tmpfs", "tmpfs")], tmp_path) as root:
        assert root.parent == tmp_path
        (root / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_it_is_known_where_a_directory_is_mounted(root, tmp_path):
    for name in ("bound/inner", "boundary", "lower", "up/per", "work"):
        (tmp_path / "some where" / name).mkdir(parents=True)
    here = tmp_path / "some where"
    overlay = tuple(
        f"{key}={here}/{name}" for key, name in [("lowerdir", "lower"), ("upperdir", "up/per"), ("workdir", "work")]
    )
    for one in ("one", "two"):
        (root / one).mkdir()
    with (
        mounted([Mount("bind", str(here / "bound" / "inner"), options=("bind",))], root / "one"),
        mounted([Mount("overlay", "overlay", options=overlay)], root / "two"),
    ):
        assert mounts_of(here / "bound") == mounts_of(here / "bound" / "inner") == [root / "one"]
        assert mounts_of(here / "up") == [root / "two"]
        assert mounts_of(here / "boundary") == mounts_of(here / "lower") == mounts_of(root / "one") == []
    assert mounts_of(here) == []


@pytest.mark.parametrize("name", ["two lines\r\n", "\x1c\x85\u2028", "back\\slash\ttab", "upperdir=x"])
def test_a_mount_point_of_any_name_is_found(root, name):
    where, other = root / name, root / f"{name}2"
    for path in (where, other, root / "up", root / "work"):
        path.mkdir()
    data = (f"lowerdir={root}", f"upperdir={root / 'up'}", f"workdir={root / 'work'}")
    with mounted([Mount("tmpfs", "tmpfs")], other), mounted([Mount("overlay", "overlay", options=data)], where):
        assert mounts_below(where) == mounts_of(root / "up") == [where]
        assert mounts_of(where) == []
        assert mounts_below(root) == [other, where]


def test_a_directory_on_another_mount_is_found_too(root, tmp_path):
    (tmp_path / "target").mkdir()
    with mounted([Mount("tmpfs", "tmpfs")], root):
        (root / "a" / "b").mkdir(parents=True)
        with mounted([Mount("bind", str(root / "a"), options=("bind",))], tmp_path / "target"):
            assert mounts_of(root / "a") == [tmp_path / "target"]
            assert mounts_of(root / "a" / "b") == []
