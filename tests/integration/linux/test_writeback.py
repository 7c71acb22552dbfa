import os
from pathlib import Path
from typing import Any

import pytest

from runtimed.linux.writeback import Writeback
from tests.filesystems import loop_file_system

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of 40 MiB that is on disk and in memory."""
    with loop_file_system("ext4", tmp_path_factory.mktemp("writeback") / "disk") as mountpoint:
        path = mountpoint / "file"
        path.write_bytes(os.urandom(40 * MIB))
        yield path


def in_memory(path: Path, position: int) -> bool:
    """Whether the page at *position* could be read without the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def written(path: Path, **options: Any) -> bytes:
    """Have the file written back as one that has just grown; return what was in it."""
    data = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        writeback = Writeback(fd, **options)
        for size in range(0, 41 * MIB, MIB):
            writeback.grown(size)
        writeback.end(40 * MIB)
    finally:
        os.close(fd)
    return data


def test_what_is_kept_stays_in_memory(file):
    written(file)
    assert in_memory(file, 0)


def test_what_is_not_kept_gives_its_memory_back_and_is_the_same(file):
    data = written(file, keep=False)
    assert not in_memory(file, 0)
    assert not in_memory(file, 20 * MIB)
    assert in_memory(file, 40 * MIB - 1)  # what has just been written
    assert file.read_bytes() == data


def test_the_beginning_may_be_kept(file):
    written(file, keep=False, after=10 * MIB)
    assert in_memory(file, 10 * MIB - 1)
    assert not in_memory(file, 10 * MIB)
