import logging
import threading

import pytest

from runtimed.content.local import LocalStore
from runtimed.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from runtimed.metadata import images, leases, namespaces
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.metadata.leases import Lease, Resource
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor

HELLO = b"hello"
DIGEST = digests.of(HELLO)


@pytest.fixture
def root(tmp_path):
    return tmp_path


@pytest.fixture
def content(root):
    database = Database(root / "metadata.db")
    yield Content(database, LocalStore(root / "content"))
    database.close()


@pytest.fixture
def lease(content):
    return content._db.submit(leases.create, "ns", Lease(id="l")).result().id


def add(content, data=HELLO, namespace="ns", ref="ref", **labels):
    with content.begin(namespace, ref) as ingest:
        ingest.write(data)
        return ingest.commit(len(data), digests.of(data), labels)


def held(content, lease):
    with content._db.reading() as tx:
        return leases.resources(tx, "ns", lease)


def files(content):
    root = content.store.root
    return sorted(str(path.relative_to(root)) for part in ("blobs", "ingest") for path in (root / part).rglob("*/*"))


BLOB_FILE = f"blobs/sha256/{DIGEST[7:]}"


def test_what_is_committed_is_visible_in_its_namespace_only(content):
    info = add(content, k="v", empty="")
    assert (info.digest, info.size, info.labels) == (DIGEST, 5, {"k": "v"})
    assert info.created_at == info.updated_at > 0
    assert content.info("ns", DIGEST) == info
    assert content.list("ns") == [info]
    assert content.read("ns", DIGEST) == HELLO
    assert content.path("ns", DIGEST).read_bytes() == HELLO
    assert content.list("other") == []
    for call in (content.info, content.open, content.path, content.read, content.delete):
        with pytest.raises(NotFound, match=DIGEST):
            call("other", DIGEST)
    assert files(content) == [BLOB_FILE]
    assert content.statuses("ns") == []


def test_a_namespace_comes_into_being_with_the_first_ingest(content):
    content.begin("new", "ref").close()
    with content._db.reading() as tx:
        assert [one.name for one in namespaces.list(tx)] == ["new"]


def test_an_ingest_goes_on_where_it_was_left(content):
    with content.begin("ns", "ref", total=5) as ingest:
        assert (ingest.offset, ingest.total) == (0, 5)
        ingest.write(b"hel")
        started = ingest.started_at
    status = content.status("ns", "ref")
    assert (status.ref, status.offset, status.total, status.started_at) == ("ref", 3, 5, started)
    assert status.updated_at >= started
    with content.begin("ns", "ref", expected=DIGEST) as ingest:
        assert (ingest.offset, ingest.total, ingest.started_at) == (3, 5, started)
        ingest.write(b"lo")
        ingest.commit(5, DIGEST)
    assert content.read("ns", DIGEST) == HELLO


def test_one_writer_at_a_time_holds_an_ingest(content):
    with content.begin("ns", "ref"):
        with pytest.raises(Unavailable, match="'ref'"):
            content.begin("ns", "ref")
        content.begin("other", "ref").close()
        content.begin("ns", "ref2").close()
    content.begin("ns", "ref").close()


def test_of_many_who_begin_at_once_one_gets_it(content):
    got, refused = [], []
    ready = threading.Barrier(8)

    def begin():
        ready.wait()
        try:
            got.append(content.begin("ns", "ref"))
        except Unavailable as exc:
            refused.append(exc)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].close()


def test_an_ingest_that_nobody_has_any_more_is_let_go_of(content):
    ingest = content.begin("ns", "ref")
    with pytest.raises(Unavailable):
        content.begin("ns", "ref")
    del ingest
    content.begin("ns", "ref").close()


@pytest.mark.parametrize("arguments", [{"ref": ""}, {"ref": "a\nb"}, {"total": -1}, {"expected": "sha256:x"}])
def test_what_is_no_ingest_is_refused_and_holds_nothing(content, arguments):
    with pytest.raises(InvalidArgument):
        content.begin("ns", **{"ref": "ref"} | arguments)
    content.begin("ns", "ref").close()


def test_another_size_or_digest_is_refused_and_the_bytes_stay(content):
    with content.begin("ns", "ref") as ingest:
        ingest.write(HELLO)
        with pytest.raises(FailedPrecondition):
            ingest.commit(4)
        with pytest.raises(FailedPrecondition):
            ingest.commit(5, digests.of(b"other"))
        with pytest.raises(InvalidArgument):
            ingest.commit(5, DIGEST, {"k": "v" * 5000})
    assert content.status("ns", "ref").offset == 5
    with content.begin("ns", "ref") as ingest:
        ingest.commit(5, DIGEST)


def test_committing_what_is_there_is_already_exists_and_keeps_its_labels(content):
    add(content, k="v")
    with pytest.raises(AlreadyExists, match=DIGEST):
        add(content, ref="again", other="x")
    assert content.info("ns", DIGEST).labels == {"k": "v"}
    assert files(content) == [BLOB_FILE]
    assert content.statuses("ns") == []


def test_expecting_what_is_there_is_already_exists_at_once(content):
    add(content)
    content.begin("ns", "left").close()
    for ref, total in (("ref", 0), ("left", 5), ("ref", 99)):
        with pytest.raises(AlreadyExists, match=DIGEST):
            content.begin("ns", ref, expected=DIGEST, total=total)
    assert content.statuses("ns") == []
    assert files(content) == [BLOB_FILE]


def test_a_blob_of_another_namespace_becomes_visible_when_it_is_expected(content):
    about_the_blob = {"containerd.io/gc.ref.content.l.0": "sha256:x", "containerd.io/uncompressed": "sha256:y"}
    add(content, **about_the_blob, private="x")
    with pytest.raises(AlreadyExists):
        content.begin("other", "ref", total=5, expected=DIGEST)
    assert content.read("other", DIGEST) == HELLO
    assert content.info("other", DIGEST).labels == about_the_blob


def test_a_blob_of_another_namespace_is_not_shared_if_the_size_is_another(content):
    add(content)
    with content.begin("other", "ref", total=6, expected=DIGEST) as ingest:
        ingest.write(HELLO)
        with pytest.raises(FailedPrecondition):
            ingest.commit(6, DIGEST)
    with pytest.raises(NotFound):
        content.info("other", DIGEST)


def test_a_blob_of_another_namespace_can_be_written_again(content):
    add(content)
    assert add(content, namespace="other", k="v").labels == {"k": "v"}


def test_bytes_go_when_no_namespace_sees_them(content):
    add(content)
    add(content, namespace="other")
    content.delete("ns", DIGEST)
    assert content.read("other", DIGEST) == HELLO
    content.delete("other", DIGEST)
    assert files(content) == []
    with pytest.raises(NotFound):
        content.delete("other", DIGEST)


def test_deleting_and_sharing_at_once_leaves_row_and_file_together(content):
    for _ in range(20):
        add(content)
        ready = threading.Barrier(2)

        def delete(ready=ready):
            ready.wait()
            content.delete("ns", DIGEST)

        deleting = threading.Thread(target=delete)
        deleting.start()
        ready.wait()
        try:
            content.begin("other", "ref", expected=DIGEST).close()
        except AlreadyExists:
            assert content.read("other", DIGEST) == HELLO
            deleting.join()
            content.delete("other", DIGEST)
        else:
            deleting.join()
            content.abort("other", "ref")
        assert files(content) == []


def test_labels_are_updated_by_mask(content):
    info = add(content, a="1", b="2")
    changed = content.update("ns", DIGEST, {"a": "3"}, ["labels.a"])
    assert changed.labels == {"a": "3", "b": "2"}
    assert (changed.created_at, changed.size) == (info.created_at, 5)
    assert changed.updated_at > info.updated_at
    assert content.update("ns", DIGEST, {"c": "1"}).labels == {"c": "1"}
    with pytest.raises(InvalidArgument):
        content.update("ns", DIGEST, {}, ["size"])
    with pytest.raises(NotFound):
        content.update("other", DIGEST, {})


def test_blobs_and_ingests_are_filtered(content):
    add(content, **{"containerd.io/uncompressed": "sha256:x"})
    other = add(content, b"other data")
    assert content.list("ns", [f"digest=={other.digest}"]) == [other]
    assert content.list("ns", ["size==10"]) == [other]
    assert [one.digest for one in content.list("ns", ['labels."containerd.io/uncompressed"==sha256:x'])] == [DIGEST]
    for ref in ("layer-1", "config-1"):
        content.begin("ns", ref).close()
    assert [one.ref for one in content.statuses("ns")] == ["config-1", "layer-1"]
    assert [one.ref for one in content.statuses("ns", ["ref~=^layer"])] == ["layer-1"]
    with pytest.raises(InvalidArgument):
        content.list("ns", ["=="])


def test_an_aborted_ingest_is_gone(content):
    with content.begin("ns", "ref") as ingest:
        ingest.write(HELLO)
    content.abort("ns", "ref")
    for call in (content.status, content.abort):
        with pytest.raises(NotFound, match="'ref'"):
            call("ns", "ref")
    assert files(content) == []
    with content.begin("ns", "ref") as ingest:
        assert ingest.offset == 0


def test_an_ingest_that_is_aborted_while_it_is_written_is_not_committed(content):
    with content.begin("ns", "ref") as ingest:
        ingest.write(HELLO)
        content.abort("ns", "ref")
        with pytest.raises(NotFound, match="aborted"):
            ingest.commit(5, DIGEST)
    assert files(content) == []
    assert content.list("ns") == []


def test_a_lease_holds_the_ingest_and_then_the_blob(content, lease):
    with content.begin("ns", "ref", lease=lease) as ingest:
        assert held(content, lease) == [Resource("ingests", "ref")]
        ingest.write(HELLO)
        ingest.commit(5, DIGEST)
    assert held(content, lease) == [Resource("content", DIGEST)]


def test_a_lease_holds_what_was_there_already(content, lease):
    add(content)
    with pytest.raises(AlreadyExists):
        content.begin("ns", "ref", expected=DIGEST, lease=lease)
    assert held(content, lease) == [Resource("content", DIGEST)]


def test_a_lease_that_is_not_there_is_an_error_before_anything_is_made(content):
    with pytest.raises(NotFound, match="lease 'nothing'"):
        content.begin("ns", "ref", lease="nothing")
    assert content.statuses("ns") == []
    content.begin("ns", "ref").close()


def test_a_commit_whose_row_cannot_be_written_gives_the_bytes_back(content, lease):
    with content.begin("ns", "ref", lease=lease) as ingest:
        ingest.write(b"hel")
        content._db.submit(leases.delete, "ns", lease).result()
        with pytest.raises(NotFound, match="lease"):
            ingest.commit(3)
        assert content.status("ns", "ref").offset == 3
        assert [name for name in files(content) if name.startswith("blobs")] == []
    with content.begin("ns", "ref") as ingest:
        ingest.write(b"lo")
        ingest.commit(5, DIGEST)
    assert content.read("ns", DIGEST) == HELLO


def test_a_commit_whose_row_cannot_be_written_leaves_other_namespaces_alone(content, lease):
    add(content, namespace="other")
    with content.begin("ns", "ref", lease=lease) as ingest:
        ingest.write(HELLO)
        content._db.submit(leases.delete, "ns", lease).result()
        with pytest.raises(NotFound, match="lease"):
            ingest.commit(5)
    assert content.read("other", DIGEST) == HELLO
    with pytest.raises(AlreadyExists):
        content.begin("ns", "ref", expected=DIGEST)


def test_a_blob_whose_file_is_lost_or_damaged_is_data_loss_and_can_be_written_again(content):
    for damage in (lambda path: path.unlink(), lambda path: (path.unlink(), path.write_bytes(b"hel"))):
        try:
            add(content)
        except AlreadyExists:
            pytest.fail("not deleted")
        damage(content.store.path(DIGEST))
        for call in (content.open, content.read, content.path):
            with pytest.raises(DataLoss, match="again"):
                call("ns", DIGEST)
        assert not content.is_whole("ns", DIGEST)
        with content.begin("ns", "ref", total=5, expected=DIGEST) as ingest:
            ingest.write(HELLO)
            with pytest.raises(AlreadyExists):
                ingest.commit(5, DIGEST)
        assert content.read("ns", DIGEST) == HELLO
        assert content.is_whole("ns", DIGEST)
        content.delete("ns", DIGEST)


def test_a_blob_that_is_too_large_to_be_read_whole_is_refused(content):
    add(content)
    assert content.read("ns", DIGEST, limit=5) == HELLO
    with pytest.raises(ResourceExhausted, match="larger than the 4"):
        content.read("ns", DIGEST, limit=4)


def restarted(content):
    """A daemon that starts after this one was killed: nothing in memory, the files and rows as they are."""
    return Content(content._db, LocalStore(content.store.root))


def test_after_a_crash_between_rename_and_row_the_blob_need_not_be_sent_again(content):
    with content.begin("ns", "ref", total=5, expected=DIGEST) as ingest:
        ingest.write(HELLO)
        content.store.commit(ingest, 5, DIGEST)
    after = restarted(content)
    for _ in range(2):  # nor does it go at a second restart
        after.reconcile()
    with pytest.raises(NotFound):
        after.info("ns", DIGEST)
    with pytest.raises(AlreadyExists):
        after.begin("ns", "ref", total=5, expected=DIGEST)
    assert after.read("ns", DIGEST) == HELLO
    assert after.statuses("ns") == []


def test_after_a_crash_between_rename_and_row_the_blob_can_be_committed_again(content):
    with content.begin("ns", "ref") as ingest:
        ingest.write(HELLO)
        content.store.commit(ingest, 5, DIGEST)
    after = restarted(content)
    assert add(after).digest == DIGEST
    assert after.read("ns", DIGEST) == HELLO


def test_reconciling_removes_what_nothing_refers_to_and_nothing_else(content, caplog):
    kept = add(content, b"kept")
    lost = add(content, b"lost", ref="lost")
    content.store.path(lost.digest).unlink()
    with content.begin("ns", "resumable") as ingest:
        ingest.write(b"abc")
    content.begin("ns", "no-directory").close()
    content.store.remove_ingest(content._db.submit(directory_of, "no-directory").result())
    with content.begin("ns", "deleted") as ingest:
        ingest.write(b"no row")
    content._db.submit(lambda tx: tx.execute("DELETE FROM ingests WHERE ref = 'deleted'")).result()
    with content.begin("ns", "orphan") as ingest:
        ingest.write(b"orphan")
        content.store.commit(ingest, 0, "")

    after = restarted(content)
    with caplog.at_level(logging.WARNING):
        after.reconcile()
    assert list(after.store.digests()) == [kept.digest]
    assert [one.ref for one in after.statuses("ns")] == ["orphan", "resumable"]
    assert after.status("ns", "resumable").offset == 3
    assert len(list(after.store.ingests())) == 2
    assert "their files are missing" in caplog.text
    assert after.info("ns", lost.digest) == lost


def directory_of(tx, ref):
    return tx.execute("SELECT directory FROM ingests WHERE ref = ?", (ref,)).fetchone()[0]


def test_reconciling_brings_the_index_up_to_date(content):
    blob = add(content)
    image = Image(name="docker.io/library/x:1", target=Descriptor(media_type="m", digest=blob.digest, size=5))
    content._db.submit(images.create, "ns", image).result()
    content.reconcile()
    index = (content.store.root / "index.json").read_text()
    assert '"org.opencontainers.image.ref.name":"docker.io/library/x:1"' in index


def test_deleting_a_namespace_leaves_its_ingests_to_the_next_start(content):
    with content.begin("ns", "ref") as ingest:
        ingest.write(HELLO)
    content._db.submit(namespaces.delete, "ns").result()
    restarted(content).reconcile()
    assert files(content) == []


def test_bytes_are_compared_with_their_digest_where_that_is_asked_for(content, monkeypatch):
    add(content)
    path = content.path("ns", DIGEST)
    verifying = Content(content._db, content.store, verify_on_read=True)
    assert verifying.read("ns", DIGEST) == HELLO
    monkeypatch.setattr("hashlib.new", None)
    assert verifying.read("ns", DIGEST) == HELLO  # the same file need not be compared again
    monkeypatch.undo()
    path.chmod(0o644)
    path.write_bytes(b"HELLO")
    assert content.read("ns", DIGEST) == b"HELLO"
    with pytest.raises(DataLoss, match="other bytes"):
        verifying.read("ns", DIGEST)
    path.write_bytes(HELLO)
    assert verifying.read("ns", DIGEST) == HELLO
