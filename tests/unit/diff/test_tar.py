import contextlib
import io
import os
import subprocess
import tarfile
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtimed.diff.tar import Entry, Kind, TarReader
from runtimed.errors import InvalidArgument
from tests.images import tars


def entries(archive: bytes, *, chunk: int | None = None) -> list[tuple[Entry, bytes]]:
    """Return each entry with its contents, holes filled in; at most *chunk* bytes come at a time."""
    stream = io.BytesIO(archive)
    reader = TarReader(lambda size: stream.read(min(size, chunk or size)))
    found = []
    for entry in reader:
        data = bytearray(entry.size if entry.kind is Kind.FILE else 0)
        for offset, view in reader.contents():
            data[offset : offset + len(view)] = view
        found.append((entry, bytes(data)))
    return found


@pytest.mark.parametrize("chunk", [1 << 18, 511, 100])
def test_the_position_is_where_the_data_of_an_entry_begins(chunk):
    segments = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9"), (b"GNU.sparse.minor", b"0")]
    archive = tars.tar(
        tars.directory(b"d"),
        tars.file(b"a", b"a" * 700),
        tars.pax({b"path": b"b" * 300}) + tars.file(b"b", b"bb"),
        tars.file(b"empty"),
        tars.pax(segments) + tars.file(b"sparse", tars.padded(b"1\n3\n4\n") + b"sprs"),
        tars.file(b"c", b"c"),
    )
    stream = io.BytesIO(archive)
    reader = TarReader(lambda size: stream.read(min(size, chunk)))
    found = {entry.name[:1]: archive[reader.position :][:4] for entry in reader if entry.size}
    assert found == {b"a": b"aaaa", b"b": b"bb\0\0", b"s": b"sprs", b"c": b"c\0\0\0"}


def only(archive: bytes) -> Entry:
    [(entry, _)] = entries(archive)
    return entry


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    deep = root / ("d" * 90) / ("e" * 90) / ("f" * 90)
    deep.mkdir(parents=True)
    (deep / ("g" * 200)).write_bytes(b"deep" * 1000)
    (root / "empty").touch()
    (root / "block").write_bytes(b"x" * 512)
    (root / "run").write_bytes(os.urandom(150_000))
    (root / "run").chmod(0o4751)
    os.utime(root / "run", ns=(1, 1_234_567_890_123_456_789))
    os.link(root / "run", root / "ran")
    (root / "link").symlink_to("t" * 150)
    (root / "umlaut-ä-\udcff").write_text("name")
    os.mkfifo(root / "fifo")
    with (root / "holes").open("wb") as file:
        for offset in (1 << 17, 3 << 17, 7 << 17, 9 << 17, 11 << 17, 13 << 17):
            file.seek(offset)
            file.write(os.urandom(5000))
        file.truncate(2 << 20)
    return root


@pytest.mark.parametrize("chunk", [None, 511, 70_000])
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax"],
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=1.0"],
        ["--format=ustar", "--exclude=[dl]*"],
        ["--format=v7", "--exclude=[dl]*", "--exclude=fifo"],
    ],
    ids=" ".join,
)
def test_what_tar_writes_is_read(tree, options, chunk):
    archive = subprocess.run(
        ["tar", "-C", tree, "--sort=name", *options, "-c", "."], stdout=subprocess.PIPE, check=True
    ).stdout
    first_names: dict[int, bytes] = {}
    for entry, data in entries(archive, chunk=chunk):
        path = tree / os.fsdecode(entry.name)
        status = path.lstat()
        if entry.kind is Kind.HARD_LINK:
            assert first_names[status.st_ino] == entry.link
            continue
        first_names[status.st_ino] = entry.name
        assert entry.mode == status.st_mode & 0o7777
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        scale = 1 if "--format=pax" in options else 10**9
        assert entry.mtime // scale == status.st_mtime_ns // scale
        if entry.kind is Kind.SYMLINK:
            assert os.fsdecode(entry.link) == str(path.readlink())
        if entry.kind is Kind.FILE:
            assert data == path.read_bytes()
    assert len(first_names) >= 4


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(format):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        info = tarfile.TarInfo("dir/" + "n" * 80 + "/file")
        info.size, info.uid, info.mode = 5, 1000, 0o640
        archive.addfile(info, io.BytesIO(b"hello"))
        device = tarfile.TarInfo("null")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(device)
    (first, data), (second, _) = entries(stream.getvalue())
    assert (first.name, data, first.uid) == (b"dir/" + b"n" * 80 + b"/file", b"hello", 1000)
    assert (second.kind, second.major, second.minor) == (Kind.CHARACTER_DEVICE, 1, 3)


def test_a_pax_size_decides_where_the_next_header_is():
    hidden = tars.file(b"hidden", b"x")
    archive = tars.tar(tars.pax({b"size": b"%d" % len(hidden)}), tars.header(b"outer", size=0) + hidden)
    assert [(entry.name, entry.size) for entry, _ in entries(archive)] == [(b"outer", len(hidden))]


def test_only_files_have_data():
    archive = tars.tar(tars.header(b"dir", kind=b"5", size=512), tars.symlink(b"link", b"x", size=10**6))
    assert [entry.name for entry, _ in entries(archive)] == [b"dir", b"link"]


@pytest.mark.parametrize("value", [b"0644", b" 644 \0", b"\0\x000644\0", b"644\0junk", tars.base256(0o644, 8)])
def test_numbers_come_in_many_spellings(value):
    assert only(tars.tar(tars.file(b"f", mode=value))).mode == 0o644


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1", 10**9),
        (b"1.5", 1_500_000_000),
        (b"1.000000001999", 1_000_000_001),
        (b"-1.25", -1_250_000_000),
        (b"1.", 10**9),
        (b"99999999999999999999", 0),
    ],
)
def test_pax_times_have_nanoseconds(text, expected):
    assert only(tars.tar(tars.pax({b"mtime": text}), tars.file(b"f"))).mtime == expected


def test_an_old_time_may_be_negative():
    assert only(tars.tar(tars.file(b"f", mtime=tars.base256(-5)))).mtime == -5 * 10**9


def test_global_headers_hold_until_they_are_replaced():
    archive = tars.tar(
        tars.pax({b"uid": b"5", b"comment": b"ignored"}, kind=b"g"),
        tars.file(b"a"),
        tars.pax({b"uid": b"6"}),
        tars.file(b"b"),
        tars.pax({b"uid": b"7"}, kind=b"g"),
        tars.file(b"c"),
    )
    assert [entry.uid for entry, _ in entries(archive)] == [5, 6, 7]


def test_extended_attributes_of_star_precede_those_of_libarchive():
    records = {
        b"LIBARCHIVE.xattr.user.a%20b": b"eA",
        b"LIBARCHIVE.xattr.user.c": b"eA==",
        b"SCHILY.xattr.user.c": b"with\0nul",
        b"SCHILY.xattr.user.empty": b"",
    }
    found = only(tars.tar(tars.pax(records), tars.file(b"f"))).xattrs
    assert found == {b"user.a b": b"x", b"user.c": b"with\0nul", b"user.empty": b""}


def test_long_names_of_gnu_and_the_prefix_of_ustar():
    archive = tars.tar(
        tars.long_name(b"n" * 300),
        tars.long_name(b"l" * 300, kind=b"K"),
        tars.symlink(b"short", b"short", magic=tars.GNU),
        tars.file(b"name", prefix=b"some/where"),
        tars.file(b"name", prefix=b"0123", magic=tars.GNU),  # in GNU's headers other things are there
    )
    (first, _), (second, _), (third, _) = entries(archive)
    assert (first.name, first.link) == (b"n" * 300, b"l" * 300)
    assert (second.name, third.name) == (b"some/where/name", b"name")


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10240), tars.END + b"anything"])
def test_an_archive_may_end_in_these_ways(end):
    assert only(tars.file(b"f", b"data") + end).name == b"f"


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tars.file(b"f", b"x" * 600)[:-1], "truncated"),
        (tars.file(b"f", b"x" * 600)[:700], "truncated"),
        (tars.file(b"f")[:100], "truncated"),
        (tars.pax({b"path": b"x"}), "ends after a metadata header"),
        (tars.pax({b"path": b"x"}) + tars.END, "ends after a metadata header"),
        (tars.file(b"f") + bytes(512) + tars.file(b"g"), "zero block in the middle"),
        (tars.file(b"f", checksum=b"000000\0 "), "checksum"),
        (b"not a tar archive at all".ljust(1024), "not a tar archive"),
        (b"\x1f\x8b" + os.urandom(2000), "not a"),
        (tars.file(b"f", kind=b"Z"), "unknown type"),
        (tars.header(b"f", size=tars.base256(-1)), "impossible size"),
        (tars.header(b"f", size=tars.base256(2**63)), "impossible size"),
        (tars.header(b"f", size=b"-0000000001"), "not a number"),
        (tars.header(b"f", size=b"0x1"), "not a number"),
        (tars.header(b"f", size=b"1_0"), "not a number"),
        (tars.header(b"f", size=b"00000000008"), "not a number"),
        (tars.file(b"f", uid=tars.base256(-1, 8)), "impossible owner"),
        (tars.file(b"f", gid=tars.base256(2**32 - 1, 8)), "impossible owner"),
        (tars.pax({b"uid": b"4294967295"}) + tars.file(b"f"), "impossible owner"),
        (tars.pax({b"uid": b"-1"}) + tars.file(b"f"), "not a number"),
        (tars.pax({b"size": b"9" * 30}) + tars.file(b"f"), "not a number"),
        (tars.pax({b"size": b"9" * 19}) + tars.file(b"f"), "impossible size"),
        (tars.pax({b"mtime": b"now"}) + tars.file(b"f"), "not a number"),
        (tars.pax({b"path": b"a\0b"}) + tars.file(b"f"), "NUL"),
        (tars.pax({b"linkpath": b"a\0b"}) + tars.symlink(b"f", b""), "NUL"),
        (tars.pax({b"path": b"n/" * 3000}) + tars.file(b"f"), "more than 4095"),
        (tars.file(b""), "empty"),
        (tars.long_name(b"n" * 5000) + tars.file(b"f"), "more than 4095"),
        (tars.pax({b"path": b"x"}, kind=b"g") + tars.file(b"f"), "for every entry"),
        (tars.header(b"x", kind=b"x", size=1 << 30), "more than 1048576"),
        (tars.header(b"L", kind=b"L", size=tars.base256(-512)), "metadata header of -512"),
        (tars.pax({b"uid": b"1"}) * 40 + tars.file(b"f"), "in a row"),
        (tars.file(b"x", b"5 a=b", kind=b"x") + tars.file(b"f"), "malformed"),
        (tars.file(b"x", b"99 a=b\n", kind=b"x") + tars.file(b"f"), "malformed"),
        (tars.file(b"x", b"0 a=b\n", kind=b"x") + tars.file(b"f"), "malformed"),
        (tars.file(b"x", b"-7 a=b\n", kind=b"x") + tars.file(b"f"), "malformed"),
        (tars.file(b"x", b"6 a-b\n", kind=b"x") + tars.file(b"f"), "no key"),
        (tars.file(b"x", b"5 =b\n", kind=b"x") + tars.file(b"f"), "no key"),
        (tars.pax({b"LIBARCHIVE.xattr.user.a": b"!!"}) + tars.file(b"f"), "base64"),
    ],
)
def test_what_is_wrong_is_refused(archive, message):
    with pytest.raises(InvalidArgument, match=message):
        entries(archive if message == "truncated" else archive + tars.END)


def sparse_member(records: list[tuple[bytes, bytes]], data: bytes) -> bytes:
    return tars.tar(tars.pax(records), tars.file(b"f", data))


SIZE = (b"GNU.sparse.size", b"1000")
V1 = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1000")]


@pytest.mark.parametrize(
    "archive",
    [
        sparse_member([SIZE, (b"GNU.sparse.map", b"0,5,3,5")], b"x" * 10),  # overlaps
        sparse_member([SIZE, (b"GNU.sparse.map", b"5,5,0,5")], b"x" * 10),  # backwards
        sparse_member([SIZE, (b"GNU.sparse.map", b"998,5")], b"x" * 5),  # past the end
        sparse_member([SIZE, (b"GNU.sparse.map", b"0,5")], b"x" * 10),  # does not add up
        sparse_member([SIZE, (b"GNU.sparse.map", b"0")], b""),
        sparse_member([SIZE, (b"GNU.sparse.map", b"0,-5")], b""),
        sparse_member([(b"GNU.sparse.map", b"0,5")], b"x" * 5),  # no size
        sparse_member([(b"GNU.sparse.size", b"9" * 19), (b"GNU.sparse.map", b"0,5")], b"x" * 5),
        sparse_member(V1, b""),
        sparse_member(V1, bytes(512)),
        sparse_member(V1, tars.padded(b"9999999999\n")),
        sparse_member(V1, tars.padded(b"3\n0\n1\n")),
        sparse_member(V1, tars.padded(b"1\n0\n600\n")),
        tars.tar(tars.header(b"f", kind=b"S", magic=tars.GNU, patch={482: b"\1"})) + b"\1" * 512,
    ],
)
def test_a_lying_sparse_map_is_refused(archive):
    with pytest.raises(InvalidArgument):
        entries(archive)


def test_an_endless_sparse_header_is_refused():
    continued = (b"%011o\0" % 1) * 42
    block = continued + b"\1" + bytes(7)
    start = tars.header(b"f", kind=b"S", magic=tars.GNU, patch={482: b"\1"})
    stream = io.BytesIO(start + block * 10_000)
    with pytest.raises(InvalidArgument, match="segments"):
        list(TarReader(stream.read))


SAMPLE = b"".join(
    [
        tars.pax({b"path": b"a/b", b"mtime": b"1.5", b"SCHILY.xattr.user.x": b"y"}),
        tars.file(b"f", b"some data"),
        tars.long_name(b"n" * 120),
        tars.file(b"n", b"more"),
        tars.pax(V1),
        tars.file(b"f", tars.padded(b"1\n10\n5\n") + b"xxxxx"),
        tars.symlink(b"l", b"t"),
        tars.END,
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=12)), max_size=6),
    fix=st.booleans(),
    chunk=st.sampled_from([1 << 20, 512, 100]),
)
@example(changes=[], fix=False, chunk=512)
def test_a_damaged_archive_is_read_or_refused(changes, fix, chunk):
    archive = bytearray(SAMPLE)
    for offset, data in changes:
        archive[offset : offset + len(data)] = data
    if fix:  # make the checksums right again, or hardly anything gets past them
        for at in range(0, len(archive) - 511, 512):
            if archive[at + 257 : at + 262] == b"ustar":
                archive[at + 148 : at + 156] = b" " * 8
                archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + 512])
    stream = io.BytesIO(bytes(archive))
    reader = TarReader(lambda size: stream.read(min(size, chunk)))
    try:
        for _ in reader:
            for _ in reader.contents():
                pass
    except InvalidArgument:
        pass


@given(data=st.binary(max_size=3000))
def test_noise_is_refused_or_empty(data):
    stream = io.BytesIO(data)
    with contextlib.suppress(InvalidArgument):
        list(TarReader(partial(stream.read)))
