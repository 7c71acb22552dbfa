"""A layer as an EROFS file against the same layer extracted: the trees are equal, or both ways refuse alike."""

import io
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimed.diff import erofs, erofs_reader
from runtimed.diff.erofs import MustExtract
from runtimed.diff.erofs_lower import LowerTree
from runtimed.errors import InvalidArgument, RuntimedError
from runtimed.mounts import Mount, mounted_temporarily
from tests.images import tars
from tests.images.compare import differences
from tests.images.stacks import Extracted, Indexed, write

pytestmark = pytest.mark.root

Layer = Sequence[bytes]


ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff")


class Both:
    """Layers over each other, extracted and indexed, in *directory*; compared after each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = ExitStack()
        self._now = time.time_ns() - 10**9

    def __enter__(self) -> Self:
        self.extracted = self._held.enter_context(Extracted(self._directory / "extracted"))
        self.indexed = self._held.enter_context(Indexed(self._directory / "indexed"))
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def add(self, members: Layer, *, words: bool = True) -> RuntimedError | MustExtract | None:
        """Add a layer; return what both refused it with, in the same *words*, or what kept it from being indexed."""
        archive = tars.tar(*members)
        try:
            image = self.indexed.add(archive)
        except MustExtract as exc:
            self.extracted.add(archive)  # the layer is not at fault
            return exc
        except RuntimedError as exc:
            with pytest.raises(type(exc), match=f"^{re.escape(str(exc))}$" if words else None):
                self.extracted.add(archive)
            return exc
        self.extracted.add(archive)
        with opened(image) as fd:
            erofs_reader.check(fd)
        assert differences(self.extracted.view(), self.indexed.view(), now=self._now) == []
        return None

    def accepted(self, members: Layer) -> Layer:
        """Return those *members* that make a layer."""
        kept: list[bytes] = []
        for member in members:
            trial = self._directory / "trial"
            with suppress(InvalidArgument):
                self.indexed.write(tars.tar(*kept, member), trial)
                kept.append(member)
            trial.unlink()
        return kept


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def assert_equal(directory: Path, *layers: Layer) -> RuntimedError | MustExtract | None:
    """Stack *layers* both ways; return what both refused one with, with which it ends."""
    with Both(directory) as both:
        for members in layers:
            if (refusal := both.add(members)) is not None:
                return refusal
    return None


EVERYTHING = [
    tars.directory(b"./"),
    tars.directory(b"./d", mode=0o3751, uid=7, gid=8, mtime=99),
    tars.pax({b"SCHILY.xattr.user.a": b"1", b"SCHILY.xattr.user.b": b"", b"mtime": b"-5.25"})
    + tars.directory(b"./d/x", mtime=3),
    tars.pax({b"mtime": b"1234567890.123456789"})
    + tars.file(b"./d/file", b"data" * 1000, mode=0o4755, uid=1000, gid=100),
    tars.file(b"./d/empty", mtime=8),
    tars.file(b"./d/block", b"b" * 512),
    tars.file(b"./d/more", b"c" * 513),
    tars.hard_link(b"./d/x/hard", b"./d/file"),
    tars.hard_link(b"./hard", b"d/x/hard"),
    tars.symlink(b"./link", b"d/file", uid=3, mtime=77),
    tars.pax({b"linkpath": b"../" * 120 + b"t"}) + tars.symlink(b"./long-inline", b""),
    tars.pax({b"linkpath": b"t" * 4095}) + tars.symlink(b"./long-link", b""),
    tars.hard_link(b"./link2", b"./link"),
    tars.header(b"./fifo", kind=b"6", mode=0o640, mtime=5),
    tars.header(b"./null", kind=b"3", device=(1, 3), mode=0o666, uid=4),
    tars.header(b"./disk", kind=b"4", device=(259, 70_000), mode=0o660),
    tars.pax({b"path": b"deep/" * 100 + b"n" * 255}) + tars.file(b"n", b"deep"),
    tars.pax({b"SCHILY.xattr.security.capability": bytes.fromhex("0100000200200000000000000000000000000000")})
    + tars.file(b"./ping", b"p"),
    tars.pax({b"SCHILY.xattr.user.large": bytes(range(256)) * 11, b"SCHILY.xattr.trusted.overlay.opaque": b"y"})
    + tars.file(b"./attributes", b"a"),
    tars.pax({b"uid": b"4294967294", b"gid": b"65536"}) + tars.file(b"./owner", b"o"),
    tars.file("./umlaut-ä".encode() + b"\xff", b"name"),
]


def test_everything_that_a_layer_can_say(tmp_path):
    assert assert_equal(tmp_path, EVERYTHING) is None


def test_a_layer_over_another_says_the_same_once_more(tmp_path):
    assert assert_equal(tmp_path, EVERYTHING, EVERYTHING, [tars.opaque(b"."), *EVERYTHING[3:6]]) is None


def test_a_directory_of_ten_thousand_entries(tmp_path):
    members = [tars.file(b"d/%x" % (number * 7919), b"%d" % number) for number in range(9_990)]
    members += [tars.file(b"d/" + bytes([65 + length % 26]) * length) for length in range(50, 60)]
    assert assert_equal(tmp_path, members) is None


def test_directories_of_every_size_about_a_block(tmp_path):
    members = [tars.file(b"%d/%s" % (count, b"%02d" % n * 4)) for count in range(16, 32) for n in range(count)]
    members += [tars.pax({b"path": b"%d/%s" % (n, b"n" * n)}) + tars.file(b"f") for n in range(200, 256)]
    assert assert_equal(tmp_path, members) is None


def test_directories_as_deep_as_they_may_be(tmp_path):
    deepest = b"d/" * 512
    members = [
        tars.pax({b"path": deepest}) + tars.directory(b"d"),
        tars.pax({b"path": deepest + b"f"}) + tars.file(b"f"),
    ]
    assert assert_equal(tmp_path, members, members) is None


def sparse(name: bytes, size: int, segments: Sequence[tuple[int, bytes]]) -> bytes:
    numbers = b",".join(b"%d,%d" % (offset, len(data)) for offset, data in segments)
    records = {b"GNU.sparse.size": b"%d" % size, b"GNU.sparse.map": numbers, b"GNU.sparse.name": name}
    return tars.pax(records) + tars.file(b"s", b"".join(data for _, data in segments))


@pytest.mark.parametrize("size", [(4 << 30) + 777, 5000])
def test_a_sparse_file_has_its_holes_and_takes_no_room_for_them(tmp_path, size):
    island = os.urandom(3000)
    members = [sparse(b"holes", size, [(1000, island), (size - 300, b"end" * 100)]), tars.file(b"after", b"a")]
    with Indexed(tmp_path) as indexed:
        image = indexed.add(tars.tar(*members))
        status = image.stat()
        assert status.st_blocks * 512 < 100_000
        found = indexed.view() / "holes"
        assert found.stat().st_size == size
        with found.open("rb") as file:
            assert file.read(4000) == bytes(1000) + island
            file.seek(size - 301)
            assert file.read() == b"\0" + b"end" * 100
        assert (indexed.view() / "after").read_bytes() == b"a"


def test_a_file_larger_than_an_image_can_hold_is_for_extraction_to_judge(tmp_path):
    with Indexed(tmp_path) as indexed, pytest.raises(MustExtract, match="two terabytes"):
        indexed.add(tars.tar(sparse(b"f", 2**62, [(0, b"x")])))


def test_an_acl_is_for_extraction(tmp_path):
    layer = [tars.pax({b"SCHILY.xattr.system.posix_acl_access": ACL}) + tars.file(b"f", mode=0o644)]
    assert isinstance(assert_equal(tmp_path, layer), MustExtract)


def test_the_same_layer_gives_the_same_bytes(tmp_path):
    archive = tars.tar(*EVERYTHING)
    images = []
    for name in ("one", "other"):
        with Indexed(tmp_path / name) as indexed:
            images.append(indexed.add(archive).read_bytes())
    assert images[0] == images[1]


def test_a_copy_of_a_file_below_has_its_holes(tmp_path):
    with Indexed(tmp_path) as indexed:
        indexed.add(tars.tar(sparse(b"holes", 1 << 30, [(1 << 29, b"island")])))
        image = indexed.add(tars.tar(tars.hard_link(b"h", b"holes")))
        assert image.stat().st_blocks * 512 < 2 << 20
        with (indexed.view() / "h").open("rb") as file:
            file.seek((1 << 29) - 1)
            assert file.read(8) == b"\0island\0"


def test_what_was_not_finished_does_not_mount(tmp_path):
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    try:
        erofs.receive(io.BytesIO(tars.tar(*EVERYTHING)), fd)
    finally:
        os.close(fd)
    with (
        pytest.raises(InvalidArgument, match="mount erofs"),
        mounted_temporarily([Mount("erofs", str(tmp_path / "image"), options=("ro",))]),
    ):
        pass


def test_a_damaged_superblock_does_not_mount(tmp_path):
    image = tmp_path / "image"
    write(tars.tar(*EVERYTHING), image)
    with image.open("r+b") as file:
        file.seek(1024 + 36)
        file.write(b"\xff")
    with (
        pytest.raises(RuntimedError, match="mount erofs"),
        mounted_temporarily([Mount("erofs", str(image), options=("ro",))]),
    ):
        pass


# -- layers over each other


LOWER = [
    tars.pax({b"SCHILY.xattr.user.below": b"1"}) + tars.directory(b"d", mode=0o711, uid=5, gid=6, mtime=50),
    tars.file(b"d/old", b"old", mode=0o4711, uid=9, mtime=3),
    tars.directory(b"d/sub"),
    tars.file(b"d/sub/old"),
    tars.symlink(b"to-d", b"/d", mtime=4),
    tars.symlink(b"to-f", b"./d/sub"),
    tars.symlink(b"loop", b"loop"),
    tars.file(b"f", b"below", mtime=6),
    tars.hard_link(b"f2", b"f"),
    tars.header(b"fifo", kind=b"6", mode=0o604),
    tars.header(b"null", kind=b"3", device=(1, 3)),
]
UPPER: dict[str, Layer] = {
    "a missing parent is as it is below": [tars.file(b"d/new")],
    "a parent that is a link below leads on": [tars.file(b"to-d/new"), tars.directory(b"to-d/dir"), tars.file(b"d/x")],
    "a missing parent that is nowhere": [tars.file(b"a/b/c")],
    "attributes of a directory add up": [tars.pax({b"SCHILY.xattr.user.new": b"2"}) + tars.directory(b"d")],
    "whiteouts": [tars.whiteout(b"d", b"sub"), tars.file(b".wh.f"), tars.whiteout(b"d", b"no"), tars.file(b".wh.no")],
    "a whiteout through a link": [tars.whiteout(b"to-d", b"old")],
    "a whiteout in a directory that is gone": [tars.file(b".wh.d"), tars.whiteout(b"d", b"old"), tars.file(b"x/.wh.y")],
    "a directory after its whiteout": [tars.file(b".wh.d"), tars.directory(b"d"), tars.file(b"d/new")],
    "a directory before its whiteout": [tars.directory(b"d/sub"), tars.file(b"d/sub/new"), tars.file(b".wh.d")],
    "a parent after a whiteout": [tars.file(b".wh.d"), tars.file(b"d/sub/new")],
    "opaque": [tars.opaque(b"d"), tars.file(b"d/new")],
    "opaque at the end": [tars.file(b"d/sub/new"), tars.directory(b"d"), tars.opaque(b"d")],
    "opaque through a link": [tars.opaque(b"to-d")],
    "opaque where nothing is below": [tars.directory(b"n"), tars.opaque(b"n"), tars.opaque(b"no")],
    "an opaque root": [tars.file(b"d/sub/new"), tars.file(b".wh..wh..opq"), tars.file(b"f/x"), tars.file(b"to-d/x")],
    "a file for a directory": [tars.file(b"d", b"now"), tars.file(b"f")],
    "a directory for a file": [tars.directory(b"f"), tars.file(b"f/x"), tars.directory(b"null")],
    "a directory for a link": [tars.directory(b"to-d"), tars.file(b"to-d/x"), tars.directory(b"loop")],
    "a file and a directory again": [tars.file(b"d"), tars.directory(b"d"), tars.file(b"d/new")],
    "a hard link to below": [tars.hard_link(b"n/h", b"./d/old"), tars.hard_link(b"n/h2", b"/to-d/old")],
    "a hard link to below, and another": [tars.hard_link(b"h", b"f2"), tars.hard_link(b"h2", b"h")],
    "a hard link to a name of the same file below": [tars.hard_link(b"f", b"f2")],
    "hard links to no files below": [tars.hard_link(b"h", b"to-d"), tars.hard_link(b"p", b"fifo")]
    + [tars.hard_link(b"n", b"null"), tars.hard_link(b"fifo", b"null")],
    "a hard link and a whiteout of its target": [tars.hard_link(b"h", b"d/old"), tars.whiteout(b"d", b"old")],
    "a hard link into an opaque directory": [tars.hard_link(b"d/h", b"d/old"), tars.opaque(b"d")],
    "a hard link's target in an opaque root": [tars.hard_link(b"h", b"f"), tars.opaque(b".")],
    "a replaced target of a hard link": [
        tars.hard_link(b"h", b"f"),
        tars.file(b"f", b"new"),
        tars.hard_link(b"g", b"h"),
    ],
    "a hard link takes its target along": [tars.hard_link(b"d", b"d/old")],
    "a hard link to a directory below": [tars.hard_link(b"h", b"d/sub")],
    "a hard link to what is hidden": [tars.file(b".wh.f"), tars.hard_link(b"h", b"f")],
    "a hard link to nowhere": [tars.hard_link(b"h", b"d/no")],
    "a hard link in the place of a link below to its target": [tars.hard_link(b"to-d", b"to-d/old")],
    "a link below that was followed and is replaced": [
        *(tars.file(b"to-d/new"), tars.directory(b"to-d"), tars.file(b"to-d/x")),
        *(tars.file(b"to-f/new"), tars.file(b".wh.to-f"), tars.file(b"to-f/x")),
    ],
    "a link below that was followed and is a file now": [
        tars.file(b"to-d/new"),
        tars.file(b"to-d"),
        tars.file(b"to-d/x"),
    ],
    "a link below that was followed and is a hard link now": [
        *(tars.file(b"to-d/new"), tars.hard_link(b"to-d", b"f"), tars.file(b"to-d/x"))
    ],
    "a file below is no parent": [tars.file(b"f/x")],
    "a link below leads in circles": [tars.file(b"loop/x")],
}


@pytest.mark.parametrize("layer", UPPER.values(), ids=UPPER.keys())
def test_a_layer_over_others(tmp_path, layer):
    assert_equal(tmp_path, LOWER, layer, [tars.directory(b"d"), tars.file(b"d/last"), tars.file(b"n/last")])


def test_a_whiteout_over_nothing_leaves_no_trace(tmp_path):
    with Indexed(tmp_path) as indexed:
        indexed.add(tars.tar(*LOWER))
        indexed.add(tars.tar(tars.directory(b"n"), tars.whiteout(b"n", b"no"), tars.opaque(b"n"), tars.file(b".wh.no")))
        layer = tmp_path / "1-layer"
        assert [path.name for path in layer.rglob("*")] == ["n"]
        assert os.listxattr(layer / "n") == []


def test_the_lowest_layer_hides_nothing(tmp_path):
    with Indexed(tmp_path) as indexed:
        indexed.add(tars.tar(tars.file(b".wh.a"), tars.directory(b"d"), tars.opaque(b"d"), tars.file(b"d/.wh.b")))
        assert [path.name for path in indexed.view().rglob("*")] == ["d"]
        assert os.listxattr(indexed.view() / "d") == []


def test_a_copy_of_a_directory_below_has_its_acl(tmp_path):
    """Whose layer was extracted; the index of one above it has it all the same."""
    below = tmp_path / "below"
    (below / "d").mkdir(parents=True)
    for kind in ("access", "default"):
        os.setxattr(below / "d", f"system.posix_acl_{kind}", ACL)
    with LowerTree(below) as lower:
        write(tars.tar(tars.file(b"d/new")), tmp_path / "image", lower)
    with mounted_temporarily([Mount("erofs", str(tmp_path / "image"), options=("ro",))]) as root:
        found, there = (root / "d"), (below / "d")
        assert found.stat().st_mode == there.stat().st_mode
        for kind in ("access", "default"):
            assert os.getxattr(found, f"system.posix_acl_{kind}") == ACL


def test_whiteouts_and_marks_are_those_of_overlayfs(tmp_path):
    with Indexed(tmp_path) as indexed:
        indexed.add(tars.tar(*LOWER))
        indexed.add(tars.tar(tars.file(b".wh.f"), tars.opaque(b"d")))
        layer = tmp_path / "1-layer"
        status = (layer / "f").lstat()
        assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0)
        assert os.getxattr(layer / "d", "trusted.overlay.opaque") == b"y"


# -- hostile layers: docs of the list of abuses, S1-S10


HOSTILE: dict[str, Layer] = {
    "S1 a name with a NUL": [tars.pax({b"path": b"a\0b"}) + tars.file(b"f")],
    "S1 an empty name": [tars.file(b"")],
    "S1 a long name": [tars.pax({b"path": b"n" * 256}) + tars.file(b"f")],
    "S1 a long name of a parent": [tars.pax({b"path": b"n" * 256 + b"/f"}) + tars.file(b"f")],
    "S1 a path too long": [tars.pax({b"path": b"n/" * 2048}) + tars.file(b"f")],
    "S3 a hard link to outside": [tars.hard_link(b"h", b"/etc/passwd")],
    "S3 a hard link to outside, upwards": [tars.hard_link(b"h", b"../../../../etc/passwd")],
    "S3 a hard link through a link out": [tars.symlink(b"out", b"/etc"), tars.hard_link(b"h", b"out/passwd")],
    "S3 a hard link to the root": [tars.hard_link(b"h", b"/")],
    "S3 a hard link to a directory": [tars.directory(b"d"), tars.hard_link(b"h", b"d")],
    "S6 overlayfs' own device": [tars.header(b"x", kind=b"3")],
    "S6 a device that no Linux has": [tars.header(b"x", kind=b"3", device=(4096, 0))],
    "S6 a capability that is none": [tars.pax({b"SCHILY.xattr.security.capability": b"no"}) + tars.file(b"f")],
    "S6 an attribute without a name": [tars.pax({b"SCHILY.xattr.user.": b"x"}) + tars.file(b"f")],
    "S6 an attribute with a NUL": [tars.pax({b"LIBARCHIVE.xattr.user.a%00b": b"eA"}) + tars.file(b"f")],
    "S6 a long attribute": [tars.pax({b"SCHILY.xattr.user." + b"n" * 256: b"x"}) + tars.file(b"f")],
    "S6 a large attribute": [tars.pax({b"SCHILY.xattr.user.n": bytes(65537)}) + tars.file(b"f")],
    "S7 a whiteout of nothing": [tars.file(b".wh.")],
    "S7 a whiteout of itself": [tars.file(b"d/.wh..")],
    "S7 a whiteout of its parent": [tars.file(b"d/.wh...")],
    "S7 an entry below a whiteout": [tars.file(b"a/.wh.b/c")],
    "S7 a whiteout of a long name": [
        tars.directory(b"d"),
        tars.pax({b"path": b"d/.wh." + b"n" * 256}) + tars.file(b"f"),
    ],
    "S8 a size that lies": [tars.header(b"f", size=1 << 20)],
    "S8 a negative size": [tars.header(b"f", size=tars.base256(-5))],
    "S8 a sparse map that lies": [
        tars.pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"5,9"}) + tars.file(b"f", b"x")
    ],
    "S8 deep directories": [tars.pax({b"path": b"d/" * 513 + b"f"}) + tars.file(b"f")],
    "S8 a directory too deep": [tars.pax({b"path": b"d/" * 513}) + tars.directory(b"f")],
    "S8 a link to nowhere in particular": [tars.symlink(b"s", b"")],
    "S8 links in circles": [tars.symlink(b"a", b"b"), tars.symlink(b"b", b"a"), tars.file(b"a/f")],
    "a file is no parent": [tars.file(b"f"), tars.file(b"f/x")],
}


@pytest.mark.parametrize("layer", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("lower", [[], [EVERYTHING]], ids=["lowest", "over another"])
def test_hostile_layers_are_refused_with_the_words_of_extraction(tmp_path, lower, layer):
    assert isinstance(assert_equal(tmp_path, *lower, layer), InvalidArgument)


TAMED: dict[str, Layer] = {
    "S1 names that point outside": [tars.file(name) for name in (b"/f", b"../../g", b"a/../../h", b"//i", b"/../j")],
    "S2 a link out and a file through it": [tars.symlink(b"out", b"/etc"), tars.file(b"out/passwd", b"mine")],
    "S2 a link upwards": [tars.symlink(b"out", b"../../../etc"), tars.directory(b"out/x"), tars.file(b"out/x/y")],
    "S5 metadata through a link": [tars.symlink(b"x", b"/etc/passwd", uid=99), tars.directory(b"x", mode=0o777)],
    "S6 attributes of overlayfs": [
        tars.pax({b"SCHILY.xattr.trusted.overlay.redirect": b"/x", b"SCHILY.xattr.user.overlay.opaque": b"y"}) + member
        for member in (tars.directory(b"d"), tars.file(b"d/f"))
    ],
    "S7 metadata of AUFS": [
        tars.directory(b".wh..wh.plnk"),
        tars.file(b".wh..wh.plnk/1.2"),
        tars.file(b".wh..wh.aufs"),
    ],
    "S7 an opaque root": [tars.file(b"gone?"), tars.file(b"/.wh..wh..opq")],
    "S8 the same name again and again": [tars.file(b"f", b"%d" % n) for n in range(100)],
    "S11 directories that programs expect are links": [
        tars.symlink(name, b"/etc") for name in (b"dev", b"proc", b"sys", b"etc")
    ],
}


@pytest.mark.parametrize("layer", TAMED.values(), ids=TAMED.keys())
def test_what_extraction_keeps_inside_an_index_does_too(tmp_path, layer):
    assert assert_equal(tmp_path, layer, layer, EVERYTHING) is None


# -- layers of nobody's making


component = st.sampled_from([b"a", b"b", b"c"])
odd = st.sampled_from([b".", b"..", b"", b".wh.a", b".wh.b", b".wh..wh.plnk", b"n" * 256])
path = st.one_of(
    st.lists(component, min_size=1, max_size=2),
    st.lists(component, min_size=1, max_size=3),
    st.lists(st.one_of(component, component, odd), min_size=1, max_size=4),
).map(b"/".join)
# Few, so that entries meet
target = st.one_of(path, path.map(lambda p: b"/" + p), path.map(lambda p: b"../" + p))
fields = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0]),
        "uid": st.integers(0, 3),
        "gid": st.integers(0, 2**21 - 1),
        "mtime": st.integers(0, 2**31),
    },
)
xattrs = st.dictionaries(
    st.sampled_from([b"SCHILY.xattr.user.x", b"SCHILY.xattr.user.yy", b"SCHILY.xattr.trusted.overlay.opaque"]),
    st.binary(max_size=9),
    max_size=2,
)
data = st.sampled_from([b"", b"x", b"y" * 600])
# What it is and the arguments for it; a failure prints them.
member = st.one_of(
    st.tuples(st.just("file"), path, fields, data, xattrs),
    st.tuples(st.just("directory"), path, fields, st.just(b""), xattrs),
    st.tuples(st.just("directory"), path, fields, st.just(b""), xattrs),
    st.tuples(st.just("symlink"), path, fields, target),
    st.tuples(st.just("hard link"), path, fields, target),
    st.tuples(st.sampled_from(["whiteout", "opaque", "fifo", "device", "sparse"]), path, fields),
)


def made(
    kind: str, name: bytes, fields: dict[str, Any], more: bytes = b"", xattrs: dict[bytes, bytes] | None = None
) -> bytes:
    """Return the member that a strategy describes."""
    before = tars.pax(xattrs or {}) + tars.pax({b"path": name, b"linkpath": more})
    match kind:
        case "file":
            return tars.pax({**(xattrs or {}), b"path": name}) + tars.file(b"f", more, **fields)
        case "directory":
            return tars.pax({**(xattrs or {}), b"path": name}) + tars.directory(b"d", **fields)
        case "symlink":
            return before + tars.symlink(b"s", b"", **fields)
        case "hard link":
            return before + tars.hard_link(b"h", b"", **fields)
        case "whiteout":
            directory, slash, last = name.rpartition(b"/")
            return tars.pax({b"path": directory + slash + b".wh." + last}) + tars.file(b"w", **fields)
        case "opaque":
            return tars.pax({b"path": name + b"/.wh..wh..opq"}) + tars.file(b"w", **fields)
        case "sparse":
            return sparse(name, 3000, [(5, b"island" * 100), (2999, b"!")])
        case "device":
            return tars.pax({b"path": name}) + tars.header(b"d", kind=b"4", device=(7, 300), **fields)
        case _:
            return tars.pax({b"path": name}) + tars.header(b"p", kind=b"6", **fields)


@given(layers=st.lists(st.lists(member, max_size=6), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_layers_are_equal_or_refused_by_both(layers):
    with TemporaryDirectory(prefix="rtd-erofs-") as directory, Both(Path(directory)) as both:
        for layer in layers:
            # Where several entries are at fault, each way may come to another one first.
            if both.add([made(*each) for each in layer], words=False) is not None:
                break


@given(layers=st.lists(st.lists(member, max_size=12), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_of_any_layers_can_be_indexed_is_equal(layers):
    with TemporaryDirectory(prefix="rtd-erofs-") as directory, Both(Path(directory)) as both:
        for layer in layers:
            assert both.add(both.accepted([made(*each) for each in layer])) is None
