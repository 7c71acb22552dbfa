"""A file system that is really full: a small tmpfs that holds content store and database."""

import itertools
import subprocess
from contextlib import contextmanager, suppress

import pytest

from runtimed.content.local import LocalStore
from runtimed.errors import ResourceExhausted
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci import digest

pytestmark = pytest.mark.root

SIZE = 16 << 20


@pytest.fixture
def small_disk(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", root], check=True)
    yield root
    subprocess.run(["umount", root], check=True)


@pytest.fixture
def content(small_disk):
    database = Database(small_disk / "metadata.db")
    yield Content(database, LocalStore(small_disk / "content"))
    database.close()


def write_until_full(ingest):
    with pytest.raises(ResourceExhausted, match="No space left"):
        write_for_ever(ingest, 300_000)
    return ingest.offset


def write_for_ever(file, size):
    while True:
        file.write(b"x" * size)


@contextmanager
def full(disk):
    """Take every byte that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        write_for_ever(file, 4096)
    yield
    ballast.unlink()


def test_an_ingest_that_fills_the_disk_stays_whole_and_can_be_aborted(content):
    with content.begin("ns", "ref") as ingest:
        written = write_until_full(ingest)
        assert ingest.data_path.stat().st_size == written
        assert ingest.digest() == digest.of(b"x" * written)
    assert content.status("ns", "ref").offset == written
    content.abort("ns", "ref")
    with content.begin("ns", "other") as ingest:
        ingest.write(b"x" * 1_000_000)
        ingest.commit()


def test_an_ingest_goes_on_when_there_is_space_again(content, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (SIZE // 2))
    with content.begin("ns", "ref") as ingest:
        written = write_until_full(ingest)
        ballast.unlink()
        ingest.write(b"y" * 300_000)
        info = ingest.commit(written + 300_000, digest.of(b"x" * written + b"y" * 300_000))
    assert content.read("ns", info.digest) == b"x" * written + b"y" * 300_000


def test_with_no_byte_free_blobs_can_still_be_deleted(content, small_disk):
    with content.begin("ns", "ref") as ingest:
        ingest.write(b"x" * 3_000_000)
        info = ingest.commit()
    with full(small_disk):
        content.delete("ns", info.digest)
        assert content.list("ns") == []
        with content.begin("ns", "ref") as ingest:
            ingest.write(b"x" * 2_000_000)


def test_with_no_byte_free_everything_can_still_be_deleted(content, small_disk):
    for number in range(500):
        content.begin("ns", f"ref-{number}").close()
    with full(small_disk):
        for number in range(500):
            content.abort("ns", f"ref-{number}")
        assert content.statuses("ns") == []


def test_with_no_byte_free_the_daemon_starts_and_deletes(small_disk):
    database = Database(small_disk / "metadata.db")
    content = Content(database, LocalStore(small_disk / "content"))
    with content.begin("ns", "ref") as ingest:
        ingest.write(b"hello")
        info = ingest.commit()
    database.close()
    with full(small_disk):
        database = Database(small_disk / "metadata.db")
        content = Content(database, LocalStore(small_disk / "content"))
        content.reconcile()
        content.delete("ns", info.digest)
        database.close()


def begin_for_ever(content):
    for number in itertools.count():
        content.begin("ns", f"ref-{number}").close()


def test_what_cannot_begin_on_a_full_disk_can_later(content, small_disk):
    with full(small_disk), pytest.raises(ResourceExhausted):
        begin_for_ever(content)
    with content.begin("ns", "ref") as ingest:
        ingest.write(b"hello")
        ingest.commit(5)
    content.reconcile()
    assert content.read("ns", digest.of(b"hello")) == b"hello"
