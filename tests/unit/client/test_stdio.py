"""FIFOs, and the threads that copy them."""

import asyncio
import os
from pathlib import Path

import pytest

from runtimed.client.stdio import Copier, Fifos, copy_input, copy_output


@pytest.fixture
def fifos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Fifos(stdin=True, stderr=False) as fifos:
        yield fifos
    assert list(tmp_path.iterdir()) == []


def test_fifos_are_private_and_open_without_a_peer(fifos, tmp_path):
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert fifos.path("stdout") == f"{directory}/stdout"
    assert fifos.path("stderr") == ""
    assert "stderr" not in fifos


def test_what_a_killed_rctl_left_is_removed_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    abandoned = tmp_path / "rctl-dead"
    abandoned.mkdir()
    os.mkfifo(abandoned / "stdout")
    os.utime(abandoned, (0, 0))
    foreign = tmp_path / "rctl-file"
    foreign.write_text("not ours")
    with Fifos(stdin=False, stderr=True) as used:
        os.utime(Path(used.path("stdout")).parent, (0, 0))
        with Fifos(stdin=False, stderr=True):
            assert Path(used.path("stderr")).exists()
    assert list(tmp_path.iterdir()) == [foreign]


async def test_output_is_copied_until_the_writers_have_gone(fifos):
    data = os.urandom(3 << 20)
    read, write = os.pipe()
    shim = os.open(fifos.path("stdout"), os.O_WRONLY)
    copier = Copier(copy_output, fifos.fd("stdout"), write)
    received = asyncio.create_task(asyncio.to_thread(_read_all, read))
    await asyncio.to_thread(_write_all, shim, data)
    os.close(shim)
    await copier.close()
    os.close(write)
    assert await received == data
    os.close(read)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
async def test_output_goes_to_files_also_appended(fifos, tmp_path_factory, flags):
    path = tmp_path_factory.mktemp("out") / "file"
    path.write_bytes(b"")
    sink = os.open(path, flags)
    shim = os.open(fifos.path("stdout"), os.O_WRONLY)
    copier = Copier(copy_output, fifos.fd("stdout"), sink)
    os.write(shim, b"text")
    os.close(shim)
    await copier.close()
    os.close(sink)
    assert path.read_bytes() == b"text"


async def test_a_stream_that_a_leftover_holds_open_ends_when_silent(fifos):
    read, write = os.pipe()
    shim = os.open(fifos.path("stdout"), os.O_WRONLY)
    copier = Copier(copy_output, fifos.fd("stdout"), write)
    os.write(shim, b"last")
    await copier.close()  # the writer is still there
    assert os.read(read, 10) == b"last"
    for fd in (shim, read, write):
        os.close(fd)


async def test_a_stream_that_nobody_ever_opened_can_be_closed_at_once(fifos):
    read, write = os.pipe()
    copier = Copier(copy_output, fifos.fd("stdout"), write)
    copier.stop(at_once=True)
    async with asyncio.timeout(0.5):
        await copier.close()
    os.close(read)
    os.close(write)


async def test_a_reader_that_has_gone_is_told_of(fifos):
    read, write = os.pipe()
    os.close(read)
    shim = os.open(fifos.path("stdout"), os.O_WRONLY)
    copier = Copier(copy_output, fifos.fd("stdout"), write)
    os.write(shim, b"unread")
    await asyncio.wait([copier.finished], timeout=10)
    assert isinstance(copier.finished.exception(), BrokenPipeError)
    await copier.close()
    os.close(shim)
    os.close(write)


async def test_input_written_before_the_shim_opens_is_kept(fifos):
    read, write = os.pipe()
    os.write(write, b"early")
    os.close(write)
    copier = Copier(copy_input, read, fifos.fd("stdin"))
    await asyncio.wait([copier.finished], timeout=10)
    await copier.close()
    shim = os.open(fifos.path("stdin"), os.O_RDONLY | os.O_NONBLOCK)
    fifos.close("stdin")
    assert os.read(shim, 100) == b"early"
    assert os.read(shim, 100) == b""
    os.close(shim)
    os.close(read)


async def test_input_that_is_not_read_does_not_hold_the_end(fifos):
    read, write = os.pipe()
    source = Copier(copy_input, read, fifos.fd("stdin"))
    feeding = asyncio.create_task(asyncio.to_thread(_write_all, write, b"x" * (2 << 20)))
    done, _ = await asyncio.wait([feeding], timeout=0.2)
    assert not done  # the FIFO is full
    await source.close()
    while not feeding.done():
        os.read(read, 1 << 20)
        await asyncio.wait([feeding], timeout=0.01)
    os.close(read)
    os.close(write)


def _read_all(fd):
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def _write_all(fd, data):
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
