"""What every content store promises (:class:`runtimed.content.store.ContentStore`)."""

import hashlib
import json
import threading

import pytest

from runtimed.content.ingest import Writer
from runtimed.content.local import LocalStore
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor

HELLO = b"hello"
HELLO_DIGEST = digests.of(HELLO)


@pytest.fixture(params=[LocalStore], ids=["local"])
def store(request, tmp_path):
    return request.param(tmp_path / "content")


def writer(store, directory="a1"):
    return Writer(store.ingest_path(directory), f"ref-{directory}")


def add(store, data, directory="a1"):
    with writer(store, directory) as opened:
        opened.write(data)
        digest, _ = store.commit(opened, len(data), digests.of(data))
    store.remove_ingest(directory)
    return digest


def content(store, digest):
    with store.open(digest) as file:
        return file.read()


def test_what_was_committed_is_read_by_its_digest(store):
    with writer(store) as opened:
        opened.write(b"hel")
        opened.write(memoryview(b"lo"))
        assert store.commit(opened, 5, HELLO_DIGEST) == (HELLO_DIGEST, 5)
    assert content(store, HELLO_DIGEST) == HELLO
    assert store.size(HELLO_DIGEST) == 5
    assert store.path(HELLO_DIGEST).read_bytes() == HELLO
    assert list(store.digests()) == [HELLO_DIGEST]


def test_nothing_need_be_said_before(store):
    with writer(store) as opened:
        opened.write(HELLO)
        assert store.commit(opened, 0, "") == (HELLO_DIGEST, 5)


def test_an_empty_blob_is_a_blob(store):
    with writer(store) as opened:
        assert store.commit(opened, 0, digests.of(b"")) == (digests.of(b""), 0)
    assert content(store, digests.of(b"")) == b""


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_other_registered_algorithms_are_verified_too(store, algorithm):
    right = f"{algorithm}:{hashlib.new(algorithm, HELLO).hexdigest()}"
    wrong = f"{algorithm}:{hashlib.new(algorithm, b'other').hexdigest()}"
    with writer(store) as opened:
        opened.write(HELLO)
        with pytest.raises(FailedPrecondition):
            store.commit(opened, 5, wrong)
        assert store.commit(opened, 5, right) == (right, 5)
    assert content(store, right) == HELLO


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 32, HELLO_DIGEST.upper()])
def test_a_digest_that_is_not_well_formed_reaches_no_file(store, digest):
    for call in (store.size, store.open, store.path, store.delete):
        with pytest.raises(InvalidArgument):
            call(digest)


def test_a_blob_that_is_not_there(store):
    for call in (store.size, store.open, store.delete):
        with pytest.raises(NotFound, match=HELLO_DIGEST):
            call(HELLO_DIGEST)


@pytest.mark.parametrize(
    ("size", "expected"), [(4, ""), (6, HELLO_DIGEST), (5, digests.of(b"other")), (0, digests.of(b""))]
)
def test_another_size_or_digest_is_refused_and_the_ingest_stays(store, size, expected):
    with writer(store) as opened:
        opened.write(HELLO)
        with pytest.raises(FailedPrecondition, match="ref-a1"):
            store.commit(opened, size, expected)
        assert list(store.digests()) == []
        assert store.commit(opened, 5, HELLO_DIGEST) == (HELLO_DIGEST, 5)


def test_a_blob_cannot_be_changed_through_its_file(store):
    assert store.path(add(store, HELLO)).stat().st_mode & 0o777 == 0o444


def test_an_ingest_is_taken_up_where_it_was_left(store):
    with writer(store) as opened:
        opened.write(b"hel")
    assert store.ingest_size("a1")[0] == 3
    assert store.ingest_size("a1")[1] > 0
    with writer(store) as opened:
        assert opened.offset == 3
        assert opened.digest() == digests.of(b"hel")
        opened.write(b"lo")
        assert opened.digest() == HELLO_DIGEST
        store.commit(opened, 5, HELLO_DIGEST)


@pytest.mark.parametrize("torn", [b"", b"he", b"hel\x00\x00\x00", b"hello, and more than was ever acknowledged"])
def test_what_a_crash_left_is_what_counts(store, torn):
    with writer(store) as opened:
        opened.write(b"hell")
        opened.data_path.write_bytes(torn)
    with writer(store) as opened:
        assert opened.offset == len(torn)
        assert opened.digest() == digests.of(torn)
        if not HELLO.startswith(torn):
            with pytest.raises(FailedPrecondition):
                store.commit(opened, 0, HELLO_DIGEST)
            opened.truncate(0)
        opened.write(HELLO[opened.offset :])
        store.commit(opened, 5, HELLO_DIGEST)
    assert content(store, HELLO_DIGEST) == HELLO


def test_truncating_forgets_the_rest(store):
    with writer(store) as opened:
        opened.write(b"help!")
        opened.truncate(3)
        assert (opened.offset, opened.digest()) == (3, digests.of(b"hel"))
        opened.write(b"lo")
        for offset in (-1, 6):
            with pytest.raises(InvalidArgument):
                opened.truncate(offset)
        store.commit(opened, 5, HELLO_DIGEST)


def test_what_a_worker_appended_and_hashed_is_adopted(store):
    with writer(store) as opened:
        opened.write(b"hel")
        with opened.data_path.open("ab") as file:
            file.write(b"lo")
        with pytest.raises(FailedPrecondition, match="holds 5 bytes, not 6"):
            opened.adopt(6, HELLO_DIGEST)
        opened.adopt(5, HELLO_DIGEST)
        assert (opened.offset, opened.digest()) == (5, HELLO_DIGEST)
        store.commit(opened, 5, HELLO_DIGEST)
    assert content(store, HELLO_DIGEST) == HELLO


def test_writing_goes_on_after_a_worker(store):
    with writer(store) as opened:
        opened.data_path.write_bytes(b"hel")
        opened.adopt(3, digests.of(b"hel"))
        opened.write(b"lo")
        assert opened.digest() == HELLO_DIGEST


def test_committing_again_repairs_a_damaged_blob_and_disturbs_no_reader(store):
    path = store.path(add(store, HELLO))
    path.unlink()
    path.write_bytes(b"hexxo")
    with store.open(HELLO_DIGEST) as reading:
        add(store, HELLO, "b2")
        assert content(store, HELLO_DIGEST) == HELLO
        assert reading.read() == b"hexxo"


def test_a_deleted_blob_stays_readable_for_who_has_it_open(store):
    add(store, HELLO)
    with store.open(HELLO_DIGEST) as file:
        store.delete(HELLO_DIGEST)
        assert file.read() == HELLO
    with pytest.raises(NotFound):
        store.size(HELLO_DIGEST)


def test_an_ingest_that_was_removed_cannot_be_committed(store):
    with writer(store) as opened:
        opened.write(HELLO)
        store.remove_ingest("a1")
        store.remove_ingest("a1")
        with pytest.raises(NotFound, match="aborted"):
            store.commit(opened, 5, HELLO_DIGEST)
    assert list(store.digests()) == []
    assert store.ingest_size("a1") == (0, 0)


def test_an_ingest_that_was_removed_does_not_commit_its_successor(store):
    with writer(store) as opened:
        opened.write(HELLO)
        store.remove_ingest("a1")
        with writer(store) as successor:
            successor.write(b"other")
            with pytest.raises(NotFound):
                store.commit(opened, 5, HELLO_DIGEST)
    assert list(store.digests()) == []


def test_ingests_are_listed(store):
    for directory in ("a1", "b2"):
        writer(store, directory).close()
    assert sorted(store.ingests()) == ["a1", "b2"]


@pytest.mark.parametrize("directory", ["", "..", "a/b", "/etc"])
def test_an_ingest_lies_nowhere_else(store, directory):
    with pytest.raises(InvalidArgument):
        store.ingest_path(directory)
    with pytest.raises(InvalidArgument):
        store.remove_ingest(directory)


def test_of_two_who_commit_the_same_at_once_both_succeed(store):
    data = b"x" * 100_000
    with writer(store, "a1") as one, writer(store, "b2") as two:
        results = []
        threads = [
            threading.Thread(target=lambda opened=opened: results.append(store.commit(opened, len(data), "")))
            for opened in (one, two)
        ]
        for opened in (one, two):
            opened.write(data)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [(digests.of(data), len(data))] * 2
    assert content(store, digests.of(data)) == data


def test_the_store_is_an_oci_layout_from_the_start(store):
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_text())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])


def test_the_index_names_the_images(store):
    image = Descriptor(media_type="m", digest=HELLO_DIGEST, size=5, annotations={"k": "v"})
    store.write_index([image])
    (manifest,) = json.loads((store.root / "index.json").read_text())["manifests"]
    assert manifest == {"mediaType": "m", "digest": HELLO_DIGEST, "size": 5, "annotations": {"k": "v"}}


def test_opening_a_store_again_keeps_everything(store):
    add(store, HELLO)
    store.write_index([Descriptor(media_type="m", digest=HELLO_DIGEST, size=5)])
    writer(store, "b2").close()
    before = (store.root / "index.json").read_bytes()
    again = type(store)(store.root)
    assert (list(again.digests()), list(again.ingests())) == ([HELLO_DIGEST], ["b2"])
    assert (store.root / "index.json").read_bytes() == before


def test_what_is_not_the_stores_is_left_alone(store):
    strange = store.root / "blobs" / "sha256" / "README"
    strange.write_text("x")
    (store.root / "ingest" / "lost+found").mkdir()
    (store.root / "ingest" / "file").write_text("x")
    assert list(store.digests()) == []
    assert list(store.ingests()) == []
