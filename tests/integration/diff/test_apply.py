import io
import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtimed.diff.apply import apply
from runtimed.errors import InvalidArgument, ResourceExhausted, RuntimedError
from runtimed.mounts import Mount, mounted_temporarily
from runtimed.oci import digest
from tests.images import tars

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def outside(tmp_path):
    """A directory beside the root that no layer may touch; checked at the end."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    before = listing(outside), (outside / "secret").stat(), outside.stat()
    yield outside
    assert (listing(outside), (outside / "secret").stat(), outside.stat()) == before
    assert (outside / "secret").read_text() == "secret"


def apply_members(root: Path, *members: bytes) -> None:
    archive = tars.tar(*members)
    applied = apply(io.BytesIO(archive), root)
    assert (applied.diff_id, applied.size) == (digest.of(archive), len(archive))


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def described(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything about each entry below *root* that a layer can say."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        what: object = None
        if path.is_symlink():
            what = path.readlink()
        elif path.is_file():
            what = path.read_bytes()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(root))] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            status.st_nlink if path.is_file() else 0,
            what,
            xattrs,
        )
    return found


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    deep = root / ("d" * 90) / ("e" * 90) / ("f" * 90)
    deep.mkdir(parents=True)
    (deep / ("g" * 200)).write_bytes(b"deep" * 1000)
    (root / "setuid").write_bytes(os.urandom(300_000))
    os.chown(root / "setuid", 1000, 100)
    (root / "setuid").chmod(0o6751)
    os.link(root / "setuid", root / "hard")
    (root / "link").symlink_to("../" * 30 + "t" * 50)
    os.lchown(root / "link", 5, 6)
    (root / "umlaut-ä-\udcff").write_text("name")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    os.chown(root / "sticky", 7, 8)
    (root / "sealed").mkdir()
    (root / "sealed/file").touch()
    (root / "sealed").chmod(0)
    os.setxattr(root / "sticky", "user.dir", b"d")
    os.setxattr(root / "hard", "user.bytes", bytes(range(256)))
    os.setxattr(root / "hard", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    with (root / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"island")
        file.truncate(1 << 24)
    os.utime(root / "sealed", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "link", ns=(0, 987_654_321), follow_symlinks=False)
    return root


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax"],
        ["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"],
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=1.0"],
    ],
    ids=" ".join,
)
def test_a_tree_comes_out_as_gnu_tar_extracts_it(tree, root, tmp_path, options):
    archive = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", tree, *options, "-cf", archive, "."], check=True)
    reference = tmp_path / "reference"
    reference.mkdir()
    extract = [option for option in options if "xattrs" in option or "acls" in option]
    subprocess.run(["tar", "-C", reference, "-p", "--numeric-owner", *extract, "-xf", archive], check=True)

    with archive.open("rb") as layer:
        applied = apply(layer, root)

    expected = described(reference)
    assert described(root) == expected
    if "--xattrs" in options:
        assert expected["setuid"][-1].keys() == {"user.bytes", "security.capability"}
    assert applied.size == archive.stat().st_size
    assert applied.diff_id == digest.of(archive.read_bytes())
    if "--sparse" in options:
        assert (root / "holes").stat().st_blocks < 1000


def test_acls_come_from_their_attributes(root):
    acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff")
    member = tars.pax({b"SCHILY.xattr.system.posix_acl_access": acl}) + tars.file(b"f", mode=0o644)
    apply_members(root, member)
    assert os.getxattr(root / "f", "system.posix_acl_access") == acl


@pytest.mark.parametrize("name", ["trusted.overlay.opaque", "user.overlay.redirect", "security.selinux", "trusted.x"])
def test_attributes_that_speak_to_the_host_are_dropped(root, name):
    members = [tars.pax({b"SCHILY.xattr." + name.encode(): b"y", b"SCHILY.xattr.user.kept": b"k"})]
    apply_members(root, *members, tars.directory(b"d"), *members, tars.file(b"f"))
    for path in (root / "d", root / "f"):
        assert os.listxattr(path) == ["user.kept"]


def test_directories_get_their_times_when_everything_is_in_them(root):
    apply_members(
        root, tars.directory(b"a", mtime=11), tars.directory(b"a/b", mtime=12), tars.file(b"a/b/f"), tars.file(b"a/f")
    )
    assert ((root / "a").stat().st_mtime, (root / "a/b").stat().st_mtime) == (11, 12)


def test_missing_parents_are_made_for_root(root):
    os.umask(os.umask(0o077) and 0o022)
    apply_members(root, tars.file(b"a/b/c", uid=5))
    status = (root / "a/b").stat()
    assert (oct(status.st_mode & 0o7777), status.st_uid, status.st_gid) == ("0o755", 0, 0)


def test_the_root_directory_keeps_its_own_metadata(root):
    before = root.stat().st_mode
    apply_members(root, tars.directory(b"./", mode=0o777, uid=5), tars.directory(b"/", mode=0o777), tars.file(b".."))
    assert (root.stat().st_mode, root.stat().st_uid) == (before, 0)


@pytest.mark.parametrize("name", [b"/f", b"../f", b"../../../../../../f", b"a/../../f", b"./f", b"//f", b"/../f"])
def test_names_that_point_outside_stay_inside(root, outside, name):
    apply_members(root, tars.file(name, b"inside"))
    assert listing(root) == ["f"]


# -- entries that take the place of others


DIRECTORY = [tars.directory(b"x"), tars.file(b"x/below"), tars.directory(b"x/d"), tars.file(b"x/d/below")]


@pytest.mark.parametrize("before", [DIRECTORY, [tars.file(b"x", b"old")], [tars.symlink(b"x", b"/")]])
@pytest.mark.parametrize(
    ("after", "check"),
    [
        (tars.file(b"x", b"new"), lambda path: path.read_text() == "new" and not path.is_symlink()),
        (tars.symlink(b"x", b"t"), lambda path: str(path.readlink()) == "t"),
        (tars.hard_link(b"x", b"other"), lambda path: path.samefile(path.parent / "other")),
        (tars.header(b"x", kind=b"6"), Path.is_fifo),
        (tars.directory(b"x"), lambda path: path.is_dir() and not path.is_symlink()),
    ],
)
@pytest.mark.parametrize("same_layer", [True, False])
def test_an_entry_takes_the_place_of_another(root, before, after, check, same_layer):
    before = [tars.file(b"other", b"other"), *before]
    if same_layer:
        apply_members(root, *before, after)
    else:
        apply_members(root, *before)
        apply_members(root, after)
    assert check(root / "x")


def test_a_directory_that_comes_again_keeps_its_contents_and_gets_the_metadata(root):
    apply_members(root, tars.directory(b"d", mode=0o700), tars.file(b"d/f"))
    apply_members(root, tars.directory(b"d", mode=0o711, uid=9, mtime=5))
    status = (root / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o711, 9, 5)
    assert (root / "d/f").exists()


def test_a_replaced_directory_is_not_written_into_any_more(root):
    apply_members(
        root,
        *DIRECTORY,
        tars.file(b"x", b"a file now"),
        tars.directory(b"x"),
        tars.file(b"x/d/again"),
    )
    assert listing(root) == ["x", "x/d", "x/d/again"]


def test_a_directory_that_went_with_its_parent_leaves_no_time_behind(root):
    before = tars.directory(b"a/b", mtime=11)
    apply_members(root, before, tars.file(b"a"), tars.directory(b"a"), tars.file(b"a/b/f"))
    assert (root / "a/b").stat().st_mtime > 11


def test_a_replaced_link_leads_to_its_new_target(root):
    apply_members(
        root,
        tars.directory(b"a"),
        tars.directory(b"b"),
        tars.symlink(b"to", b"a"),
        tars.file(b"to/1"),
        tars.symlink(b"to", b"b"),
        tars.file(b"to/2"),
    )
    assert listing(root) == ["a", "a/1", "b", "b/2", "to"]


def test_a_file_is_no_parent(root):
    with pytest.raises(InvalidArgument, match=r"'f/below' \(file\): Not a directory"):
        apply_members(root, tars.file(b"f"), tars.file(b"f/below"))


# -- links


@pytest.mark.parametrize("target", ["{outside}", "../outside", "x/../../outside", "/proc/self/root{outside}"])
@pytest.mark.parametrize("same_layer", [True, False])
def test_writing_through_a_link_stays_inside(root, outside, target, same_layer):
    link = tars.symlink(b"link", target.format(outside=outside).encode())
    members = [
        tars.file(b"link/secret", b"overwritten", mode=0o777, uid=1, mtime=1),
        tars.directory(b"link/dir", mode=0o777),
        tars.file(b"link/.wh.secret2"),
        tars.opaque(b"link"),
        tars.symlink(b"link/l", b"x"),
    ]
    if same_layer:
        apply_members(root, link, *members)
    else:
        apply_members(root, link)
        apply_members(root, *members)


def test_metadata_does_not_go_through_a_link(root, outside):
    link = tars.symlink(b"link", os.fsencode(outside / "secret"), uid=99, mtime=77, mode=0o777)
    xattr = tars.pax({b"SCHILY.xattr.user.x": b"y"})
    apply_members(root, link, xattr + link, tars.directory(b"d"), xattr + tars.symlink(b"d", os.fsencode(outside)))
    assert (root / "link").lstat().st_uid == 99


def test_hard_links_share_one_file_also_with_a_lower_layer(root):
    apply_members(root, tars.file(b"low", b"x"))
    apply_members(
        root,
        tars.hard_link(b"a/high", b"./low"),
        tars.hard_link(b"again", b"/a/high"),
        tars.hard_link(b"again", b"low"),
    )
    assert (root / "low").stat().st_nlink == 3


def test_a_hard_link_to_a_symbolic_link_is_to_the_link(root, outside):
    apply_members(root, tars.symlink(b"s", os.fsencode(outside / "secret")), tars.hard_link(b"h", b"s"))
    assert (root / "h").is_symlink()


def test_a_hard_link_to_itself_is_there_already(root):
    apply_members(root, tars.file(b"f", b"kept"), tars.hard_link(b"f", b"f"))
    assert (root / "f").read_text() == "kept"


@pytest.mark.parametrize("target", ["{outside}/secret", "../outside/secret", "link/secret", "missing", "f/x"])
def test_a_hard_link_to_outside_or_nowhere_is_refused(root, outside, target):
    target = target.format(outside=outside)
    with pytest.raises(InvalidArgument, match=re.escape(f"b'h' (hard link) to {target.encode()!r}: ")):
        apply_members(
            root,
            tars.symlink(b"link", os.fsencode(outside)),
            tars.file(b"f"),
            tars.hard_link(b"h", target.encode()),
        )
    assert not (root / "h").exists()


@pytest.mark.parametrize("target", [b"d", b"/", b"."])
def test_a_hard_link_to_a_directory_is_refused(root, target):
    with pytest.raises(InvalidArgument, match="directory"):
        apply_members(root, tars.directory(b"d"), tars.hard_link(b"h", target))


def test_the_target_of_a_hard_link_may_go_with_what_it_replaces(root):
    with pytest.raises(InvalidArgument, match="b'd/f': No such file"):
        apply_members(root, tars.file(b"d/f"), tars.hard_link(b"d", b"d/f"))


# -- devices


def test_overlayfs_own_whiteout_is_not_a_device_that_a_layer_may_bring(root):
    with pytest.raises(InvalidArgument, match="0:0"):
        apply_members(root, tars.header(b"x", kind=b"3"))


def test_a_device_gets_its_owner_and_mode(root):
    apply_members(root, tars.header(b"null", kind=b"3", device=(1, 3), mode=0o4666, uid=4, gid=5, mtime=6))
    status = (root / "null").stat()
    assert (status.st_rdev, status.st_uid, status.st_gid, status.st_mtime) == (os.makedev(1, 3), 4, 5, 6)
    assert stat.S_IMODE(status.st_mode) == 0o4666


# -- whiteouts


LOWER = [
    tars.directory(b"d"),
    tars.file(b"d/old"),
    tars.directory(b"d/sub"),
    tars.file(b"d/sub/old"),
    tars.file(b"f"),
]


def test_a_whiteout_removes_a_file_or_a_tree(root):
    apply_members(root, *LOWER)
    apply_members(root, tars.whiteout(b"d", b"sub"), tars.file(b".wh.f"), tars.whiteout(b"d", b"missing"))
    assert listing(root) == ["d", "d/old"]


NEW = [tars.directory(b"d"), tars.file(b"d/new"), tars.directory(b"d/sub"), tars.file(b"d/sub/new")]


@pytest.mark.parametrize(
    "members", [[tars.opaque(b"d"), *NEW], [*NEW, tars.opaque(b"d")], [*NEW[1:3], tars.opaque(b"d"), NEW[3]]]
)
def test_an_opaque_directory_keeps_what_its_own_layer_brings(root, members):
    apply_members(root, *LOWER)
    apply_members(root, *members)
    assert listing(root) == ["d", "d/new", "d/sub", "d/sub/new", "f"]


def test_an_opaque_directory_keeps_what_has_no_entry_for_its_parents(root):
    apply_members(root, *LOWER)
    apply_members(root, tars.file(b"d/sub/new"), tars.symlink(b"to", b"d"), tars.file(b"to/new"), tars.opaque(b"d"))
    assert listing(root) == ["d", "d/new", "d/sub", "d/sub/new", "f", "to"]


def test_a_whiteout_hides_the_layers_below_and_not_its_own(root):
    apply_members(root, *LOWER)
    apply_members(root, *NEW, tars.file(b"f", b"new"), tars.file(b".wh.f"), tars.whiteout(b"d", b"sub"))
    assert listing(root) == ["d", "d/new", "d/old", "d/sub", "d/sub/new", "f"]
    assert (root / "f").read_text() == "new"


def test_an_opaque_directory_may_keep_more_directories_than_there_are_descriptors(root):
    apply_members(root, *(tars.file(b"d/%d/old" % number) for number in range(1500)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        apply_members(root, *(tars.directory(b"d/%d" % number) for number in range(1500)), tars.opaque(b"d"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(listing(root)) == 1501


def test_an_opaque_root_empties_the_root_and_nothing_more(root, outside):
    apply_members(root, *LOWER, tars.symlink(b"out", os.fsencode(outside)))
    apply_members(root, tars.file(b"./.wh..wh..opq"), tars.file(b"new"))
    assert listing(root) == ["new"]


@pytest.mark.parametrize(
    "name", [b".wh.", b".wh..", b".wh...", b"d/.wh.", b"d/.wh..", b"d/.wh...", b".wh.d/x", b"a/.wh.b/c"]
)
def test_hostile_whiteouts_are_refused(root, outside, name):
    apply_members(root, *LOWER)
    with pytest.raises(InvalidArgument, match="whiteout"):
        apply_members(root, tars.file(name))
    assert len(listing(root)) == 5


def test_what_aufs_left_in_old_layers_is_ignored(root):
    apply_members(root, tars.directory(b".wh..wh.plnk"), tars.file(b".wh..wh.plnk/12.34"), tars.file(b".wh..wh.aufs"))
    assert listing(root) == []


def test_whiteouts_reach_through_an_overlay_mount(tmp_path):
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    apply_members(tmp_path / "lower", *LOWER)
    options = (f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    with mounted_temporarily([Mount("overlay", "overlay", options=options)]) as root:
        apply_members(root, *NEW, tars.opaque(b"d"), tars.file(b".wh.f"), tars.hard_link(b"h", b"d/new"))
        assert listing(root) == ["d", "d/new", "d/sub", "d/sub/new", "h"]
    assert len(listing(tmp_path / "lower")) == 5


# -- limits of the host


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB and 64 inodes."""
    root = tmp_path / "small"
    root.mkdir()
    with mounted_temporarily([Mount("tmpfs", "tmpfs", options=("size=1m", "nr_inodes=64"))]) as root:
        yield root


def test_a_full_disk_is_named(small_disk):
    with pytest.raises(ResourceExhausted, match=r"'big' \(file\): No space left on device; free space"):
        apply_members(small_disk, tars.file(b"big", bytes(2 << 20)))


def test_a_disk_without_inodes_is_named(small_disk):
    with pytest.raises(ResourceExhausted, match="inodes"):
        apply_members(small_disk, *(tars.file(b"f%d" % number) for number in range(100)))


def test_a_name_too_long_for_the_file_system_is_refused(root):
    with pytest.raises(InvalidArgument, match="File name too long"):
        apply_members(root, tars.pax({b"path": b"n" * 300}), tars.file(b"f"))


def test_a_file_larger_than_any_file_system_holds_is_refused(root):
    archive = tars.tar(
        tars.pax([(b"GNU.sparse.size", b"%d" % (2**62)), (b"GNU.sparse.map", b"0,1")]), tars.file(b"f", b"x")
    )
    with pytest.raises(InvalidArgument, match="too large"):
        apply(io.BytesIO(archive), root)


def test_directories_are_made_to_a_depth_that_others_can_handle(root):
    apply_members(root, tars.pax({b"path": b"d/" * 512 + b"f"}), tars.file(b"f", b"deep"))
    down = tars.pax({b"path": b"s/" + b"d/" * 300}), tars.directory(b"d")
    for members in (
        [tars.pax({b"path": b"d/" * 513 + b"f"}), tars.file(b"f")],
        [tars.pax({b"linkpath": b"d/" * 300}), tars.symlink(b"s", b""), *down],
    ):
        with pytest.raises(InvalidArgument, match="512 deep"):
            apply_members(root, *members)
    apply_members(root, tars.file(b"d"))
    assert listing(root) == ["d", "s"]


SWAPPER = """
import ctypes, os, sys
root, outside = sys.argv[1:]
os.chdir(root)
renameat2 = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while True:
    for make in (lambda: os.symlink(outside, "x"), lambda: os.makedirs("d/e")):
        try:
            make()
        except OSError:
            pass
    renameat2(-100, b"x", -100, b"d/e", 2)  # RENAME_EXCHANGE
"""


def test_nothing_escapes_while_somebody_swaps_directories_for_links(root, outside):
    """S4 of the list of abuses: a parent is exchanged for a link out between any check and use that there might be."""
    members = [
        tars.directory(b"d/e", mode=0o777, uid=1, mtime=1),
        tars.file(b"d/e/secret", b"overwritten", mode=0o777, uid=1),
        tars.file(b"d/e/sub/new"),
        tars.symlink(b"d/e/link", b"secret", uid=1),
        tars.file(b"d/e/file") + tars.hard_link(b"d/e/hard", b"d/e/file"),
        tars.hard_link(b"d/e/hard", b"d/e/secret"),
        tars.header(b"d/e/fifo", kind=b"6", mode=0o777, uid=1),
        tars.file(b"d/e/.wh.secret"),
        tars.opaque(b"d/e"),
        tars.file(b"d/.wh.e"),
    ]
    outcomes = {"whole": 0, "refused": 0}
    with subprocess.Popen([sys.executable, "-c", SWAPPER, root, outside], stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        try:
            for member in members * 150:
                try:
                    apply_members(root, member)
                    outcomes["whole"] += 1
                except RuntimedError:
                    outcomes["refused"] += 1
        finally:
            swapper.kill()
    assert min(outcomes.values()) > 0, outcomes  # or the swapping came too seldom to show anything
