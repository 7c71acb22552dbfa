import gzip
import threading

import pytest

from runtimed.oci import digest
from runtimed.workers.arriving import Arriving
from tests.images import tars

OCI = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR = tars.tar(tars.file(b"f", bytes(1 << 20)))
BLOB = gzip.compress(TAR, 1)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [1, 100, len(BLOB)])
def test_however_the_bytes_come_they_are_received(tmp_path, size):
    with Arriving(tmp_path, OCI) as arriving:
        for begin in range(0, len(BLOB), size):
            arriving.feed(memoryview(BLOB)[begin : begin + size])
        received = arriving.finish()
    assert received is not None
    file, applied = received
    file.close()
    assert (applied.diff_id, applied.size) == (digest.of(TAR), len(TAR))


def test_what_was_fed_before_a_restart_does_not_count(tmp_path):
    with Arriving(tmp_path, OCI) as arriving:
        arriving.feed(BLOB[:700])
        arriving.restart()
        arriving.feed(BLOB)
        received = arriving.finish()
    assert received is not None
    file, applied = received
    file.close()
    assert applied.diff_id == digest.of(TAR)


@pytest.mark.parametrize("blob", [b"", b"\x1f", BLOB[:-1], b"trash" * 5_000_000])
def test_what_is_no_layer_is_not_received(tmp_path, blob):
    with Arriving(tmp_path, OCI) as arriving:
        for begin in range(0, len(blob), 1 << 20):
            arriving.feed(blob[begin : begin + (1 << 20)])
        assert arriving.finish() is None


def test_who_gives_up_leaves_nothing(tmp_path):
    with Arriving(tmp_path, OCI) as arriving:
        arriving.feed(BLOB[:700])
    assert list(tmp_path.iterdir()) == []
