"""Streams of real containers: FIFOs, files, terminals."""

import asyncio
import contextlib
import os
import stat
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import InvalidArgument, RuntimedError
from tests.integration.shim.conftest import fds_of, proc

pytestmark = pytest.mark.root


class Reader:
    """A client's end of an output FIFO."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.text = b""
        self.ended = asyncio.Event()
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.fd, self._read)

    def _read(self):
        data = os.read(self.fd, 65536)
        if not data:
            self.ended.set()
            self.close()
        self.text += data
        self._changed.set()

    async def until(self, wanted):
        async with asyncio.timeout(10):
            while wanted not in self.text:
                self._changed.clear()
                await self._changed.wait()

    async def rest(self):
        async with asyncio.timeout(10):
            await self.ended.wait()
        return self.text

    def close(self):
        if self.fd >= 0:
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
async def reader(fifo):
    """Make an output FIFO and read from it."""
    readers = []

    def make(name):
        path = fifo(name)
        readers.append(Reader(path))
        return str(path), readers[-1]

    yield make
    for reader in readers:
        reader.close()


@contextlib.contextmanager
def opened_for_writing(path):
    """A client's end of an input FIFO; it does not wait for the shim's."""
    holder = os.open(path, os.O_RDWR)
    fd = os.open(path, os.O_WRONLY)
    os.close(holder)
    try:
        yield fd
    finally:
        os.close(fd)


async def close_io(shim, exec_id=""):
    await shim.CloseIO(pb.CloseIORequest(id="t1", exec_id=exec_id, stdin=True))


async def test_output_goes_to_the_clients_fifos(shim, bundle, reader):
    out_path, out = reader("out")
    err_path, err = reader("err")
    await shim.run("t1", bundle("echo out; echo err >&2"), stdout=out_path, stderr=err_path)
    assert await out.rest() == b"out\n"
    assert await err.rest() == b"err\n"


async def test_output_without_a_path_is_dropped(shim, bundle):
    await shim.run("t1", bundle("echo out; echo err >&2; exec true"))
    assert (await shim.wait("t1")).exit_status == 0


async def test_input_reaches_the_process_until_closeio(shim, bundle, fifo, reader):
    stdin = fifo("in")
    path, out = reader("out")
    await shim.run("t1", bundle("cat; echo end"), stdin=str(stdin), stdout=path)
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)  # there is a reader, or this fails
    os.write(fd, b"one\n")
    await out.until(b"one\n")
    os.close(fd)
    # A client that detaches is not the end: another may attach.
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"two\n")
    await out.until(b"two\n")
    os.close(fd)
    await close_io(shim)
    assert await out.rest() == b"one\ntwo\nend\n"


async def test_the_input_has_no_reader_before_start(shim, bundle, fifo):
    stdin = fifo("in")
    await shim.create("t1", bundle("cat"), stdin=str(stdin))
    with pytest.raises(OSError, match="No such device"):
        os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    await shim.Start(pb.StartRequest(id="t1"))
    os.close(os.open(stdin, os.O_WRONLY | os.O_NONBLOCK))


async def test_closeio_before_start_is_the_end_of_input(shim, bundle, fifo):
    await shim.create("t1", bundle("cat; exit 6"), stdin=str(fifo("in")))
    await close_io(shim)
    await shim.Start(pb.StartRequest(id="t1"))
    assert (await shim.wait("t1")).exit_status == 6


async def test_what_was_written_before_closeio_arrives_whole(shim, bundle, fifo, reader):
    stdin = fifo("in")
    path, out = reader("out")
    data = os.urandom(1 << 20)
    await shim.run("t1", bundle("cat"), stdin=str(stdin), stdout=path)

    def write():
        with stdin.open("wb") as file:
            file.write(data)

    await asyncio.to_thread(write)
    await close_io(shim)
    assert await out.rest() == data


async def test_input_of_a_process_that_does_not_read_waits(shim, bundle, fifo, reader):
    """And costs the shim no time: once the pipe and the FIFO are full it only waits."""
    stdin = fifo("in")
    path, out = reader("out")
    await shim.run("t1", bundle("read line; exec cat >/dev/null"), stdin=str(stdin), stdout=path)
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < 1 << 20:
            written += os.write(fd, b"x" * 4096)
    assert written < 1 << 20
    before = cpu_ticks(shim.worker)
    await shim.exec("t1", "e1", "sleep 0.3")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    assert cpu_ticks(shim.worker) - before <= 5  # of 10 ms
    os.close(fd)


def cpu_ticks(pid):
    fields = proc(pid, "stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_a_client_that_detaches_does_not_end_the_container(shim, bundle, reader, fifo):
    path, first = reader("out")
    go = fifo("go")
    await shim.run("t1", bundle("echo one; read line; echo two; exit 8"), stdin=str(go), stdout=path)
    await first.until(b"one\n")
    first.close()
    fd = os.open(go, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"\n")
    os.close(fd)
    assert (await shim.wait("t1")).exit_status == 8  # not 141, SIGPIPE
    second = Reader(path)
    await second.until(b"two\n")
    second.close()


async def test_output_is_appended_to_a_file(shim, bundle, tmp_path):
    output = tmp_path / "log"
    output.write_text("before\n")
    await shim.run("t1", bundle("echo out; echo err >&2"), stdout=f"file://{output}", stderr=f"file://{output}")
    await shim.wait("t1")
    assert output.read_text() == "before\nout\nerr\n"


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"stdout": "/no/such/fifo"}, "stdout '/no/such/fifo': No such file or directory; the client makes the FIFO"),
        ({"stdin": "/no/such/fifo"}, "stdin '/no/such/fifo': No such file"),
        ({"stdin": "/dev/null"}, "stdin '/dev/null' is not a FIFO"),
        ({"stderr": "/"}, "stderr '/'"),
        ({"stdout": "relative"}, "must be absolute"),
        ({"stdin": "binary:///bin/log?id=1"}, "scheme 'binary' is not supported, use a FIFO$"),
        ({"stdout": "http:///bin/log?id=1"}, "scheme 'http' is not supported, use a FIFO, file://"),
        ({"stdout": "binary:///no/log?id=1"}, "stdout 'binary:///no/log.id=1': /no/log: No such file"),
    ],
)
async def test_a_stream_that_cannot_be_opened_fails_the_create(shim, bundle, streams, message):
    for terminal in (False, True):
        if terminal and "stderr" in streams:
            continue
        with pytest.raises(InvalidArgument, match=message):
            await shim.create("t1", bundle(terminal=terminal), terminal=terminal, **streams)


async def test_a_process_without_root_can_reopen_its_output(shim, bundle, reader):
    path, out = reader("out")
    script = "echo again >/proc/self/fd/1; id -u"
    await shim.run("t1", bundle(script, user={"uid": 1000, "gid": 1000}), stdout=path)
    assert await out.rest() == b"again\n1000\n"


async def test_streams_get_the_owner_of_the_options(shim, bundle, reader, options):
    path, out = reader("out")
    await shim.create("t1", bundle("exit 0"), stdout=path, options=options(io_uid=1234, io_gid=4321))
    assert os.fstat(out.fd).st_gid == 4321  # the user is the process's own afterwards: runc sees to that


async def test_the_shim_keeps_no_stream_of_a_deleted_process(shim, bundle, reader, fifo):
    await shim.run("t0", bundle("exec sleep 60"))  # the connection for events is open by then
    await shim.events.of("/tasks/start")
    before = fds_of(shim.worker)
    path, out = reader("out")
    await shim.run("t1", bundle("exec sleep 60"), stdin=str(fifo("in")), stdout=path, stderr=str(fifo("err")))
    tty_path, tty = reader("tty")
    await shim.exec("t1", "e1", "exit 0", terminal=True, stdin=str(fifo("tty-in")), stdout=tty_path)
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.delete("t1")
    assert fds_of(shim.worker) == before


# Terminals


async def test_a_terminal_carries_both_ways(shim, bundle, fifo, reader):
    stdin = fifo("in")
    path, out = reader("out")
    script = "tty; stty size; read line; echo got $line; exit 9"
    await shim.create("t1", bundle(script, terminal=True), terminal=True, stdin=str(stdin), stdout=path)
    await shim.ResizePty(pb.ResizePtyRequest(id="t1", width=120, height=40))
    await shim.Start(pb.StartRequest(id="t1"))
    await out.until(b"40 120\r\n")
    assert out.text.startswith(b"/dev/pts/0\r\n")
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"word\n")
    os.close(fd)
    text = await out.rest()
    assert text.endswith(b"word\r\ngot word\r\n")  # its echo, and what the program says
    assert (await shim.wait("t1")).exit_status == 9
    with pytest.raises(RuntimedError, match="cannot resize a stopped container"):
        await shim.ResizePty(pb.ResizePtyRequest(id="t1", width=1, height=1))


async def test_a_resize_reaches_the_process(shim, bundle, fifo, reader):
    path, out = reader("out")
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do read line; done"
    stdin = str(fifo("in"))
    await shim.run("t1", bundle(script, terminal=True), terminal=True, stdin=stdin, stdout=path)
    await out.until(b"up\r\n")
    await shim.ResizePty(pb.ResizePtyRequest(id="t1", width=77, height=33))
    await out.until(b"33 77\r\n")


async def test_an_exec_has_a_terminal_of_its_own(shim, bundle, fifo, reader):
    await shim.run("t1", bundle("exec sleep 60"))
    path, out = reader("out")
    await shim.exec("t1", "e1", "read line; echo got $line", terminal=True, stdin=str(fifo("in")), stdout=path)
    await shim.ResizePty(pb.ResizePtyRequest(id="t1", exec_id="e1", width=5, height=5))
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    with opened_for_writing(fifo("unused")), (Path(path).parent / "in").open("wb", buffering=0) as stdin:
        stdin.write(b"word\n")
    assert (await out.rest()).endswith(b"got word\r\n")


async def test_a_terminal_without_streams_runs(shim, bundle):
    await shim.run("t1", bundle("tty; exit 2", terminal=True), terminal=True)
    assert (await shim.wait("t1")).exit_status == 2


async def test_a_terminal_can_write_to_a_file(shim, bundle, tmp_path):
    output = tmp_path / "out"
    await shim.run("t1", bundle("echo hello", terminal=True), terminal=True, stdout=f"file://{output}")
    await shim.wait("t1")
    await shim.delete("t1")
    assert output.read_text() == "hello\n"


async def test_a_slow_client_slows_a_terminal_down_and_loses_nothing(shim, bundle, fifo):
    path = fifo("out")
    holder = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    await shim.run("t1", bundle("seq 40000; exit 4", terminal=True), terminal=True, stdout=str(path))
    await shim.state("t1")  # it is stuck by now, or will be
    os.set_blocking(holder, True)

    def read():
        with os.fdopen(holder, "rb") as file:
            return file.read()

    lines = (await asyncio.to_thread(read)).split(b"\r\n")
    assert lines == [str(number).encode() for number in range(1, 40001)] + [b""]
    assert (await shim.wait("t1")).exit_status == 4


async def test_a_deleted_terminal_does_not_wait_long_for_a_client_that_does_not_read(shim, bundle, fifo):
    path = fifo("out")
    await shim.run("t1", bundle("seq 40000", terminal=True), terminal=True, stdout=str(path))
    await shim.kill("t1")
    await shim.wait("t1")
    async with asyncio.timeout(5):
        await shim.delete("t1")


async def test_a_long_path_of_a_bundle_does_not_matter_to_a_terminal(shim, bundle, tmp_path):
    path = bundle("exit 3", terminal=True, name="/".join(["x" * 100] * 3))
    await shim.run("t1", path, terminal=True)
    assert (await shim.wait("t1")).exit_status == 3
    assert not any(stat.S_ISSOCK(entry.lstat().st_mode) for entry in path.iterdir())
