import io
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimed.diff import erofs, erofs_reader
from runtimed.diff import erofs_format as fmt
from runtimed.diff.erofs import MustExtract
from runtimed.diff.erofs_lower import Found, LowerTree
from runtimed.errors import DataLoss, InvalidArgument
from tests.images import tars


@pytest.fixture
def image(tmp_path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fd
    os.close(fd)


def write(image: int, *members: bytes, lower: LowerTree | None = None) -> erofs.Written:
    return erofs.write(io.BytesIO(tars.tar(*members)), image, lower)


def tree(image: int) -> dict[bytes, erofs_reader.Inode]:
    """Return the inode of each path in *image*, which is checked on the way."""
    erofs_reader.check(image)
    read = erofs_reader.Image(image)
    found = {b".": read.root}
    pending = [(b"", read.root)]
    while pending:
        path, directory = pending.pop()
        for name, nid, _ in read.entries(directory):
            if name not in (b".", b".."):
                found[path + name] = inode = read.inode(nid)
                if stat.S_ISDIR(inode.mode):
                    pending.append((path + name + b"/", inode))
    return found


def contents(image: int, inode: erofs_reader.Inode) -> bytes:
    return b"".join(erofs_reader.Image(image).contents(inode))


def test_what_is_written_can_be_read(image):
    written = write(
        image,
        tars.directory(b"d", mode=0o1770, uid=1, gid=2, mtime=3),
        tars.pax({b"mtime": b"-1.5", b"SCHILY.xattr.user.x": b"value"}) + tars.file(b"d/f", b"data" * 300, mode=0o4751),
        tars.hard_link(b"h", b"d/f"),
        tars.symlink(b"s", b"target", uid=9),
        tars.pax({b"linkpath": b"t" * 449}) + tars.symlink(b"long", b""),
        tars.header(b"c", kind=b"3", device=(4095, (1 << 20) - 1)),
        tars.header(b"p", kind=b"6"),
        tars.file(b"empty"),
    )
    found = tree(image)
    read = erofs_reader.Image(image)

    d, f, s, c = (found[name] for name in (b"d", b"d/f", b"s", b"c"))
    assert (oct(d.mode), d.uid, d.gid, d.mtime, d.nlink) == ("0o41770", 1, 2, 3 * 10**9, 2)
    assert (oct(f.mode), f.size, f.mtime, f.nlink, f.xattrs) == (
        "0o104751",
        1200,
        -1_500_000_000,
        2,
        {b"user.x": b"value"},
    )
    assert contents(image, f) == b"data" * 300
    assert found[b"h"] == f
    assert (oct(s.mode), s.uid, read.link(s), read.link(found[b"long"])) == ("0o120777", 9, b"target", b"t" * 449)
    assert (stat.S_IFMT(c.mode), c.rdev) == (stat.S_IFCHR, (4095, (1 << 20) - 1))
    assert stat.S_ISFIFO(found[b"p"].mode)
    assert (found[b"empty"].size, found[b"empty"].data) == (0, ())
    assert (oct(found[b"."].mode), found[b"."].nlink) == ("0o40755", 3)
    assert written == erofs.Written(size=os.fstat(image).st_size, tar_size=8704, entries=8, inodes=len(found) - 1)


def test_the_tar_is_kept_as_it_came_with_what_follows_its_end(image):
    archive = tars.tar(tars.file(b"f", b"x")) + b"padding" * 100
    written = erofs.write(io.BytesIO(archive), image)
    kept = erofs_reader.Image(image).tar()
    assert b"".join(iter(lambda: kept.read(1000), b"")) == archive
    assert written.tar_size == len(archive)


def test_a_file_is_read_from_the_tar_itself(image):
    write(image, tars.file(b"f", b"found me"))
    [(offset, _)] = tree(image)[b"f"].data
    assert (offset, os.pread(image, 8, offset)) == (fmt.HEADER_SIZE + 512, b"found me")


def test_a_sparse_file_is_expanded_behind_the_tar(image):
    records = [(b"GNU.sparse.size", b"5000"), (b"GNU.sparse.map", b"10,3,4000,4")]
    write(image, tars.pax(records) + tars.file(b"f", b"abcdefg"))
    assert contents(image, tree(image)[b"f"]) == bytes(10) + b"abc" + bytes(3987) + b"defg" + bytes(996)


@pytest.mark.parametrize("count", [*range(1, 60), 1000])
def test_directories_of_any_size_are_sorted(image, count):
    names = {b"%x" % (number * 40503 % 65536) * (number % 9 + 1) for number in range(count)} | {b"-", b"A", b"\xff"}
    write(image, *(tars.file(b"d/" + name) for name in names))
    read = erofs_reader.Image(image)
    assert [name for name, _, _ in read.entries(tree(image)[b"d"])] == sorted({*names, b".", b".."})


def test_the_root_is_within_reach_of_its_16_bits_whatever_the_layer_holds(image):
    write(image, *(tars.symlink(b"a%d" % number, b"t" * 90) for number in range(20_000)))
    assert erofs_reader.Image(image).super.root_nid == 2


def test_a_truncated_tar_is_refused_and_its_image_is_none(image):
    archive = tars.tar(tars.file(b"f", b"x" * 2000))
    with pytest.raises(InvalidArgument, match="truncated"):
        erofs.write(io.BytesIO(archive[:1500]), image)
    with pytest.raises(DataLoss, match="never finished"):
        erofs_reader.check(image)


@pytest.mark.parametrize("many", [1, 300])
def test_attributes_too_large_for_an_inode_are_for_extraction(image, many):
    members = [(b"SCHILY.xattr.user.%d" % number, bytes(65536 if many == 1 else 900)) for number in range(many)]
    archive = tars.tar(tars.pax(members) + tars.file(b"f", b"data"))
    with pytest.raises(MustExtract, match="attribute") as refused:
        erofs.write(io.BytesIO(archive), image)
    assert erofs_reader.Tar(image, refused.value.tar_size).read(len(archive) + 1) == archive


_IN_LITTLE_MEMORY = """
import gc, os, resource
from runtimed.diff import erofs
from tests.bench.erofs import members

class Stream:
    parts = members(200_000)
    def read(self, size):
        return next(self.parts, b"")

gc.disable()
resource.setrlimit(resource.RLIMIT_DATA, (160 << 20, 160 << 20))
print(erofs.write(Stream(), os.memfd_create("image")).entries)
"""


@pytest.mark.slow
def test_a_layer_of_many_entries_takes_little_memory():
    """A fifth of a million in a sixth of what a worker is allowed; the image itself is not counted."""
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("200000\n", "")


# -- what lies below


@pytest.fixture
def below(tmp_path) -> Iterator[LowerTree]:
    root = tmp_path / "below"
    (root / "d/sub").mkdir(parents=True)
    (root / "d").chmod(0o2711)
    (root / "d/f").write_text("below")
    os.utime(root / "d", ns=(0, 77))
    (root / "out").symlink_to("/etc")
    (root / "up").symlink_to("../../d")
    os.mkfifo(root / "fifo")
    with LowerTree(root) as lower:
        yield lower


def test_a_missing_parent_is_as_it_is_below(image, below):
    write(image, tars.file(b"d/new"), lower=below)
    found = tree(image)[b"d"]
    assert (oct(found.mode), found.mtime) == ("0o42711", 77)


def test_links_below_lead_nowhere_but_to_the_tree(image, below):
    write(image, tars.file(b"out/passwd", b"mine"), tars.file(b"up/new"), lower=below)
    assert tree(image).keys() == {b".", b"etc", b"etc/passwd", b"d", b"d/new"}


def test_a_hard_link_to_below_brings_a_copy(image, below):
    write(image, tars.hard_link(b"h", b"d/f"), lower=below)
    found = tree(image)
    assert contents(image, found[b"h"]) == b"below"
    assert found[b"h"] == found[b"d/f"]


def test_nothing_below_is_asked_for_before_the_tar_is_read():
    """So that the layers below may still be in the making until then."""
    asked = []

    class Lower:
        def find(self, path: bytes) -> Found | None:
            asked.append(path)
            return None

        def names(self, path: bytes) -> list[bytes]:
            raise AssertionError(path)

        def open(self, path: bytes) -> int:
            raise AssertionError(path)

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert not asked
            return super().read(size)

    fd = os.memfd_create("image")
    try:
        erofs.write(Stream(tars.tar(tars.directory(b"d"), tars.file(b"d/.wh.f"), tars.opaque(b"d"))), fd, Lower())
    finally:
        os.close(fd)
    assert asked == [b""]  # without a root below there is nothing more to ask


@pytest.mark.parametrize("path", [b"no", b"d/f/x", b"out/passwd", b"up/sub", b"d/no/x"])
def test_what_is_not_below_is_not_found(below, path):
    assert below.find(path) is None


def test_what_is_below_is_described_as_it_is(below):
    assert below.find(b"out").link == b"/etc"
    assert below.find(b"d").is_directory
    assert stat.S_ISFIFO(below.find(b"fifo").status.st_mode)
    assert sorted(below.names(b"")) == [b"d", b"fifo", b"out", b"up"]


# -- damage


@pytest.fixture
def small(image: int) -> int:
    """An image with a bit of everything."""
    write(
        image,
        tars.pax({b"SCHILY.xattr.user.x": b"value"}) + tars.directory(b"d"),
        *(tars.file(b"d/file%d" % number, b"data") for number in range(40)),
        tars.hard_link(b"h", b"d/file3"),
        tars.symlink(b"s", b"target"),
        tars.pax({b"linkpath": b"t" * 600}) + tars.symlink(b"long", b""),
    )
    return image


def test_every_byte_of_superblock_header_and_index_is_checked(small):
    whole = os.pread(small, os.fstat(small).st_size, 0)
    extent = erofs_reader.Image(small).extent
    used = [*range(1024, 1024 + 128), *range(2048, 2048 + 52), *range(extent.start, extent.start + extent.size, 37)]
    for at in used:
        os.pwrite(small, bytes([whole[at] ^ 0x40]), at)
        with pytest.raises(DataLoss):
            erofs_reader.check(small)
        os.pwrite(small, whole[at : at + 1], at)
    erofs_reader.check(small)


@pytest.mark.parametrize("size", [0, 1100, 3000, 40_000])
def test_an_image_that_is_cut_off_is_found(small, size):
    os.ftruncate(small, size)
    with pytest.raises(DataLoss, match="cut off"):
        erofs_reader.check(small)


def test_an_image_that_was_never_finished_is_found(small):
    os.pwrite(small, bytes(512), fmt.SUPER_OFFSET)
    with pytest.raises(DataLoss, match="never finished"):
        erofs_reader.check(small)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_damage_that_has_the_right_checksum_is_found_or_harmless(data):
    """Whatever a reader meets, it says so and ends."""
    fd = os.memfd_create("image")
    try:
        write(
            fd,
            tars.pax({b"SCHILY.xattr.user.x": b"value"}) + tars.directory(b"d"),
            *(tars.file(b"d/file%d" % number, b"data") for number in range(40)),
            tars.symlink(b"s", b"target"),
        )
        extent = erofs_reader.Image(fd).extent
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, extent.size - 1))
            os.pwrite(fd, data.draw(st.binary(min_size=1, max_size=8)), extent.start + at)
        crc = zlib.crc32(os.pread(fd, extent.size, extent.start))
        os.pwrite(fd, fmt.pack_extent(replace(extent, crc=crc)), fmt.OWN_OFFSET)
        with suppress(DataLoss):
            tree(fd)
    finally:
        os.close(fd)
