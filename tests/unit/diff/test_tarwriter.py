import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimed.diff.tar import Entry, Kind, TarReader
from runtimed.diff.tarwriter import TarWriter

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))
IDS = st.integers(0, 2**32 - 2)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda key: b"=" not in key and b"\0" not in key), st.binary(max_size=300)
)


@st.composite
def entries(draw):
    kind = draw(st.sampled_from(Kind))
    data = draw(st.binary(max_size=2000)) if kind is Kind.FILE else b""
    is_link = kind in (Kind.SYMLINK, Kind.HARD_LINK)
    is_device = kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    entry = Entry(
        name=draw(NAMES),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(IDS),
        gid=draw(IDS),
        size=len(data),
        mtime=draw(st.integers(-(2**31), 2**33)) * 10**9,
        link=draw(NAMES) if is_link else b"",
        major=draw(st.integers(0, 4095)) if is_device else 0,
        minor=draw(st.integers(0, 2**20 - 1)) if is_device else 0,
        xattrs=draw(XATTRS),
    )
    return entry, data


def written(pairs):
    out = io.BytesIO()
    tar = TarWriter(out.write)
    for entry, data in pairs:
        tar.add(entry)
        tar.data(data)
    tar.close()
    return out.getvalue()


@given(st.lists(entries(), max_size=8))
def test_what_is_written_is_read(pairs):
    archive = io.BytesIO(written(pairs))
    reader = TarReader(archive.read)
    found = []
    for entry in reader:
        found.append((entry, b"".join(bytes(piece) for _, piece in reader.contents())))
    for (entry, data), (expected, wanted) in zip(found, pairs, strict=True):
        assert data == wanted
        assert dict(entry.xattrs) == dict(expected.xattrs)
        entry.xattrs = expected.xattrs = {}
        assert entry == expected


def test_pythons_own_reader_agrees():
    long = "d/" * 80 + "ä"
    entry = Entry(
        name=long.encode(), kind=Kind.FILE, mode=0o4755, uid=3_000_000, gid=5, size=3, mtime=7 * 10**9, link=b"",
        xattrs={b"user.x": b"\0\xff"},
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(written([(entry, b"abc")]))) as tar:
        [member] = tar.getmembers()
        assert (member.name, member.uid, member.gid, member.mode, member.mtime) == (long, 3_000_000, 5, 0o4755, 7)
        file = tar.extractfile(member)
        assert file is not None
        assert file.read() == b"abc"


def test_a_file_of_many_gigabytes_has_its_size_in_a_pax_header():
    out = io.BytesIO()
    tar = TarWriter(out.write)
    tar.add(Entry(name=b"big", kind=Kind.FILE, mode=0, uid=0, gid=0, size=2**40, mtime=0, link=b""))
    with pytest.raises(AssertionError, match="1099511627776 bytes of an entry are missing"):
        tar.close()
    assert next(iter(TarReader(io.BytesIO(out.getvalue()).read))).size == 2**40
