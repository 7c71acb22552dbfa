import pytest

from runtimed.diff.changeset import check_device, clean, kept_xattrs, placed, walk
from runtimed.diff.tar import Kind
from runtimed.errors import InvalidArgument
from runtimed.oci.whiteout import Whiteout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a", (b"", b"a")),
        (b"a/b/c", (b"a/b", b"c")),
        (b"./a/b", (b"a", b"b")),
        (b"a/b/", (b"a", b"b")),
        (b"/etc/passwd", (b"etc", b"passwd")),
        (b"../../etc/passwd", (b"etc", b"passwd")),
        (b"a/../../b", (b"", b"b")),
        (b"a/./b//c/..", (b"a", b"b")),
        (b"a/..b/.c", (b"a/..b", b".c")),
        (b".hidden", (b"", b".hidden")),
        (b"a\\..\\b", (b"", b"a\\..\\b")),
        (b".", (b"", b"")),
        (b"./", (b"", b"")),
        (b"/", (b"", b"")),
        (b"..", (b"", b"")),
        (b"a/..", (b"", b"")),
        (b"././a", (b"", b"a")),
        (b".//a", (b"", b"a")),
        (b"a//", (b"", b"a")),
    ],
)
def test_names_are_cleaned_to_lie_below_the_root(name, expected):
    assert clean(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"./a/b", (b"a", b"b", None)),
        (b"a/.wh.b", (b"a", b".wh.b", Whiteout(b"b"))),
        (b".wh..wh..opq", (b"", b".wh..wh..opq", Whiteout(b""))),
        (b"a/x.wh.b", (b"a", b"x.wh.b", None)),
        (b"./", None),
        (b".wh..wh.plnk", None),
        (b".wh..wh.plnk/1.2", None),
    ],
)
def test_an_entry_has_its_place(name, expected):
    assert placed(name) == expected


@pytest.mark.parametrize("name", [b".wh.", b"a/.wh..", b"a/.wh.b/c", b".wh.a/.wh.b"])
def test_a_whiteout_that_means_nothing_is_refused(name):
    with pytest.raises(InvalidArgument, match="whiteout"):
        placed(name)


def test_links_are_walked_with_the_root_as_the_end_of_every_way_up():
    links = {b"a/up": b"../../..", b"b": b"/a/c", b"dot": b"./a/."}
    step = lambda done, name: links.get(b"/".join([*done, name]))  # noqa: E731 - it is a table
    assert walk(b"a/up/b/d", step) == [b"a", b"c", b"d"]
    assert walk(b"dot/x/..", step) == [b"a"]


@pytest.mark.parametrize("target", [b"loop", b"./loop/loop", b"/loop"])
def test_links_in_circles_end(target):
    with pytest.raises(OSError, match="Too many levels"):
        walk(b"loop/x", lambda done, name: target if name == b"loop" else None)


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_attributes_for_the_host_are_dropped_and_others_kept():
    kept = {b"user.a": b"", b"security.capability": CAPABILITY, b"system.posix_acl_access": b"checked by the kernel"}
    dropped = {b"trusted.overlay.opaque": b"y", b"user.overlay.redirect": b"/", b"security.selinux": b"t", b"no": b""}
    assert kept_xattrs(b"f", {**dropped, **kept}) == kept


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"user.", b""),
        (b"user.a\0b", b""),
        (b"user." + b"n" * 251, b""),
        (b"user.a", bytes(65537)),
        (b"security.capability", b""),
        (b"security.capability", CAPABILITY[:12]),
        (b"security.capability", b"\0\0\0\1" + CAPABILITY[4:]),
    ],
)
def test_attributes_that_the_kernel_would_refuse_are_refused(key, value):
    with pytest.raises(InvalidArgument, match="layer entry b'f'"):
        kept_xattrs(b"f", {key: value})


@pytest.mark.parametrize("device", [(0, 0), (4096, 0), (0, 1 << 20), (-1, 1)])
def test_impossible_devices_are_refused(device):
    with pytest.raises(InvalidArgument, match="layer entry b'd' is device"):
        check_device(b"d", Kind.CHARACTER_DEVICE, *device)


def test_possible_devices_are_accepted():
    check_device(b"d", Kind.CHARACTER_DEVICE, 4095, (1 << 20) - 1)
    check_device(b"d", Kind.BLOCK_DEVICE, 0, 0)
    check_device(b"d", Kind.FIFO, 0, 0)
