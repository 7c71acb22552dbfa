import io
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimed.diff.apply import apply
from runtimed.diff.changes import compare, compare_layer
from runtimed.diff.files import NotALayer
from runtimed.diff.stacks import read_only
from runtimed.diff.tar import Kind, TarReader
from runtimed.errors import Aborted, InvalidArgument
from runtimed.mounts import Mount, mounted_temporarily

pytestmark = pytest.mark.root

SECOND = 10**9


def layer_of(lower: Path | None, upper: Path, epoch: int | None = None) -> bytes:
    out = io.BytesIO()
    compare(lower, upper, out.write, epoch)
    return out.getvalue()


def entries(layer: bytes) -> dict[str, Any]:
    found = {}
    for entry in TarReader(io.BytesIO(layer).read):
        found[entry.name.decode()] = entry
    return found


def names(layer: bytes) -> list[str]:
    return list(entries(layer))


@pytest.fixture
def trees(tmp_path):
    """Two directories that hold the same."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for root in (lower, upper):
        (root / "d/e").mkdir(parents=True)
        for name in ("f", "d/g", "d/e/h"):
            (root / name).write_text(name)
            os.utime(root / name, (100, 100))
        (root / "l").symlink_to("f")
        os.utime(root / "l", (100, 100), follow_symlinks=False)
    return lower, upper


def test_the_same_trees_make_an_empty_layer(trees):
    assert names(layer_of(*trees)) == []


def test_a_change_brings_the_directories_on_the_way_to_it(trees):
    lower, upper = trees
    (upper / "d/e/h").write_text("other")
    assert names(layer_of(lower, upper)) == ["d/", "d/e/", "d/e/h"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "f").unlink(), [".wh.f"]),
        (lambda root: shutil.rmtree(root / "d"), [".wh.d"]),
        (lambda root: (root / "d/g").unlink(), ["d/", "d/.wh.g"]),
        (lambda root: (root / "new").mkdir(), ["new/"]),
        (lambda root: (root / "f").chmod(0o600), ["f"]),
        (lambda root: (root / "d").chmod(0o700), ["d/"]),
        (lambda root: os.chown(root / "l", 1, 1, follow_symlinks=False), ["l"]),
        (lambda root: os.utime(root / "f", (100, 101)), ["f"]),
        (lambda root: os.utime(root / "d", (100, 101)), []),
        (lambda root: os.setxattr(root / "f", "user.x", b"1"), ["f"]),
        (lambda root: os.setxattr(root / "d", "user.x", b"1"), ["d/"]),
        (lambda root: os.setxattr(root / "f", "trusted.overlay.origin", b"1"), []),
        (lambda root: os.setxattr(root / "f", "trusted.x", b"1"), []),
        (lambda root: os.mkfifo(root / "p"), ["p"]),
        (lambda root: os.mknod(root / "s", stat.S_IFSOCK | 0o600), []),
    ],
)
def test_what_has_changed_is_in_the_layer(trees, change, expected):
    change(trees[1])
    assert names(layer_of(*trees)) == expected


def test_contents_count_where_times_are_whole_seconds(trees):
    lower, upper = trees
    (upper / "f").write_text("F")
    os.utime(upper / "f", (100, 100))
    (upper / "l").unlink()
    (upper / "l").symlink_to("g")
    os.utime(upper / "l", (100, 100), follow_symlinks=False)
    assert names(layer_of(lower, upper)) == ["f", "l"]
    for root in trees:
        os.utime(root / "f", ns=(1, 100 * SECOND + 1))
    assert names(layer_of(lower, upper)) == ["l"]


def test_a_directory_for_a_file_and_a_file_for_a_directory(trees):
    lower, upper = trees
    (upper / "f").unlink()
    (upper / "f").mkdir()
    shutil.rmtree(upper / "d")
    (upper / "d").write_text("now a file")
    assert names(layer_of(lower, upper)) == ["d", "f/"]


def test_a_tree_over_nothing_is_whole(trees):
    assert names(layer_of(None, trees[1])) == ["d/", "d/e/", "d/e/h", "d/g", "f", "l"]


def test_capabilities_are_kept(trees):
    lower, upper = trees
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(upper / "f", "security.capability", value)
    assert dict(entries(layer_of(lower, upper))["f"].xattrs) == {b"security.capability": value}


def test_no_time_is_later_than_the_epoch(trees):
    lower, upper = trees
    (upper / "old").touch()
    os.utime(upper / "old", (50, 50))
    (upper / "new").touch()
    (upper / "f").unlink()
    found = entries(layer_of(lower, upper, epoch=1000))
    assert {name: entry.mtime // SECOND for name, entry in found.items()} == {".wh.f": 1000, "new": 1000, "old": 50}


def test_hard_links_are_links_in_the_layer(trees):
    lower, upper = trees
    (upper / "d/two").hardlink_to(upper / "f")  # f itself has not changed, but must share the inode
    found = entries(layer_of(lower, upper))
    assert [(name, entry.kind, entry.link) for name, entry in found.items()] == [
        ("d/", Kind.DIRECTORY, b""),
        ("d/two", Kind.FILE, b""),
        ("f", Kind.HARD_LINK, b"d/two"),
    ]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda root: (root / ".wh.f").touch(), "such a name is a whiteout"),
        (lambda root: os.mknod(root / "x", stat.S_IFCHR | 0o600, 0), "device 0:0"),
    ],
)
def test_what_a_layer_cannot_express_is_refused(trees, spoil, why):
    spoil(trees[1])
    with pytest.raises(InvalidArgument, match=why):
        layer_of(*trees)


def test_a_tree_that_is_too_deep_for_a_layer_is_refused(trees):
    lower, upper = trees
    here = os.open(upper, os.O_RDONLY)
    try:
        for _ in range(600):
            os.mkdir("x", dir_fd=here)
            below = os.open("x", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    with pytest.raises(InvalidArgument, match="nested more than 512 deep"):
        layer_of(lower, upper)


def test_a_file_that_shrinks_while_it_is_read_is_told(trees):
    lower, upper = trees
    (upper / "z").write_bytes(bytes(1 << 20))

    def write(data: bytes | memoryview) -> None:
        if len(data) > 1000:
            os.truncate(upper / "z", 1000)

    with pytest.raises(Aborted, match="'z' became shorter"):
        compare(lower, upper, write, None)


# -- whatever is done to a tree

PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
TIMES = st.sampled_from([0, 100 * SECOND, 100 * SECOND + 5, 200 * SECOND])
STEPS = st.one_of(
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("write"), PATHS, st.sampled_from([b"", b"one", b"two", b"three"]), TIMES),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from(["a", "b", "nowhere"]), TIMES),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755, 0o4711])),
    st.tuples(st.just("xattr"), PATHS, st.sampled_from([b"1", b"2"])),
    st.tuples(st.just("fifo"), PATHS),
    st.tuples(st.just("touch"), PATHS, TIMES),
)


def do(root: Path, steps: list[tuple[Any, ...]]) -> None:
    """Do what can be done of *steps* below *root*."""
    for step in steps:
        path = root / step[1]
        try:
            match step:
                case "mkdir", _:
                    path.mkdir()
                case "write", _, data, time:
                    if not path.is_symlink() and (path.is_file() or not path.exists()):  # a FIFO would wait
                        path.write_bytes(data)
                        os.utime(path, ns=(time, time))
                case "symlink", _, target, time:
                    path.symlink_to(target)
                    os.utime(path, ns=(time, time), follow_symlinks=False)
                case "link", _, target:
                    os.link(root / target, path, follow_symlinks=False)
                case "remove", _:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                case "rename", _, target:
                    path.rename(root / target)
                case "chmod", _, mode:
                    if not path.is_symlink():
                        path.chmod(mode)
                case "xattr", _, value:
                    os.setxattr(path, "user.x", value, follow_symlinks=False)
                case "fifo", _:
                    os.mkfifo(path)
                case "touch", _, time:
                    os.utime(path, ns=(time, time), follow_symlinks=False)
        except OSError:
            continue


def described(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return what a layer can say of each entry: times in seconds, none of directories; which names are one file."""
    inodes: dict[int, list[str]] = {}
    found: dict[str, tuple[Any, ...]] = {}
    for directory, directories, files in os.walk(root):
        for name in sorted(directories + files):
            path = Path(directory, name)
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            what = path.readlink() if kind == stat.S_IFLNK else path.read_bytes() if kind == stat.S_IFREG else None
            has_xattrs = kind in (stat.S_IFREG, stat.S_IFDIR)
            xattrs = [key for key in os.listxattr(path, follow_symlinks=False) if key.startswith("user.")]
            links: list[str] = []
            if kind != stat.S_IFDIR:
                links = inodes.setdefault(status.st_ino, [])
                links.append(str(path.relative_to(root)))
            found[str(path.relative_to(root))] = (
                oct(status.st_mode),
                None if kind == stat.S_IFDIR else status.st_mtime_ns // SECOND,
                what,
                {key: os.getxattr(path, key, follow_symlinks=False) for key in xattrs} if has_xattrs else {},
                links,
            )
    return {name: (*rest, sorted(links)) for name, (*rest, links) in found.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=12), st.lists(STEPS, max_size=12))
def test_a_layer_applied_again_makes_the_same_tree(before, after):
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        lower, upper, work, copy = (base / name for name in ("lower", "upper", "work", "copy"))
        for one in (lower, upper, work):
            one.mkdir()
        do(lower, before)
        options = ("index=off", f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
        overlay = Mount("overlay", "overlay", options=options)
        with mounted_temporarily([overlay]) as root:
            do(root, after)
        with mounted_temporarily(read_only([overlay])) as root:
            layer = layer_of(lower, root)
            wanted = described(root)
        subprocess.run(["cp", "-a", lower, copy], check=True)
        apply(io.BytesIO(layer), copy)
        assert described(copy) == wanted

        out = io.BytesIO()
        try:
            compare_layer(lower, upper, out.write, None)
        except NotALayer:
            return
        assert names(out.getvalue()) == names(layer)
        assert out.getvalue() == layer
