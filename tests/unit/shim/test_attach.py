"""Clients attached to a log: what comes on their FIFOs, and what becomes of those that do not read."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from shim import attach, loop, poller
from tests.unit.shim.loops import on_loop
from tests.unit.shim.test_crilog import Log, joined

END = (0, b"")


class Client:
    """The daemon's end of a FIFO."""

    def __init__(self, path, room=1 << 20):
        self.path = path
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, room)
        self.data = b""
        self.has_ended = False

    def read(self):
        """Take what is there."""
        try:
            while data := os.read(self.fd, 1 << 16):
                self.data += data
            self.has_ended = True
        except BlockingIOError:
            pass

    @property
    def pieces(self):
        """All whole pieces: stream and bytes."""
        self.read()
        found, at = [], 0
        while at + 5 <= len(self.data):
            size = int.from_bytes(self.data[at + 1 : at + 5], "big")
            found.append((self.data[at], self.data[at + 5 : at + 5 + size]))
            at += 5 + size
        return found

    def bytes_of(self, stream):
        return b"".join(data for number, data in self.pieces if number == stream)

    async def until(self, condition):
        """Read whenever something comes, until *condition* holds."""
        changed = loop.Event()
        poller.add_reader(self.fd, changed.set)
        try:
            while True:
                self.read()
                if condition(self):
                    return
                changed.clear()
                await changed.wait()
        finally:
            poller.remove_reader(self.fd)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def attached(log, path, **options):
    client = Client(path, **options)
    try:
        log.log.attach(str(path))
        yield client
    finally:
        client.close()


def is_open_for_writing(path):
    """Whether the shim, which is this process here, has the FIFO."""
    for entry in Path("/proc/self/fd").iterdir():
        if os.path.realpath(entry) == str(path):
            mode = fcntl.fcntl(int(entry.name), fcntl.F_GETFL) & os.O_ACCMODE
            if mode == os.O_WRONLY:
                return True
    return False


@on_loop
async def test_everybody_gets_what_is_written_from_then_on_and_the_end(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"before\n")
        with attached(log, tmp_path / "a") as one:
            await log.put(b"out")
            await log.put(b"err\n", "stderr")
            with attached(log, tmp_path / "b") as two:
                await log.put(b" and more\n")
                await log.end()
                assert one.pieces == [(1, b"out"), (2, b"err\n"), (1, b" and more\n"), END]
                assert two.pieces == [(1, b" and more\n"), END]
                assert one.has_ended
        assert joined(log.lines) == "before\nout and more\n"
        with attached(log, tmp_path / "c") as late:  # the process goes on, with no stream any more
            assert late.pieces == [END]


@on_loop
async def test_a_log_without_a_file_is_for_clients_alone(tmp_path):
    async with Log("") as log:
        await log.put(b"lost\n")
        with attached(log, tmp_path / "a") as client:
            await log.put(b"seen\n")
            assert client.pieces == [(1, b"seen\n")]


@on_loop
async def test_who_leaves_is_forgotten_at_once(tmp_path):
    async with Log(tmp_path / "log") as log:
        with attached(log, tmp_path / "a"), attached(log, tmp_path / "b") as other:
            pass
        while is_open_for_writing(tmp_path / "a"):
            await loop.sleep(0)
        assert not is_open_for_writing(tmp_path / "b")
        assert other.fd < 0
        await log.put(b"x\n")
        assert joined(log.lines) == "x\n"


@on_loop
async def test_who_does_not_read_is_dropped_and_the_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(attach, "_PATIENCE_S", 0.05)
    async with Log(tmp_path / "log") as log:
        with attached(log, tmp_path / "a", room=4096) as silent, attached(log, tmp_path / "b") as other:
            log.write(b"x" * 9999 + b"\n")
            await other.until(lambda client: len(client.bytes_of(1)) == 10000)
            log.write(b"next\n")
            await other.until(lambda client: b"next" in client.bytes_of(1))
            assert not is_open_for_writing(silent.path)
            silent.read()
            assert silent.has_ended
            assert 0 < len(silent.data) < 10000  # and no end
            await log.end()
            assert other.pieces[-1] == END
        assert joined(log.lines) == "x" * 9999 + "\nnext\n"


@on_loop
async def test_who_reads_slowly_gets_everything(tmp_path):
    text = b"".join(b"%d\n" % number for number in range(20000))
    async with Log(tmp_path / "log") as log:
        with attached(log, tmp_path / "a", room=4096) as slow:

            async def write():
                for start in range(0, len(text), 3000):
                    log.write(text[start : start + 3000])
                    await loop.sleep(0)
                await log.end()

            writing = loop.spawn(write())
            await slow.until(lambda client: client.has_ended)
            await writing
            assert slow.bytes_of(1) == text
            assert slow.pieces[-1] == END
        assert joined(log.lines).encode() == text


@on_loop
async def test_while_somebody_is_behind_the_process_is_not_read_from(tmp_path):
    async with Log(tmp_path / "log", streams=("stdout",)) as log:
        with attached(log, tmp_path / "a", room=4096) as slow:
            log.write(b"x" * 8000 + b"\n")
            while not log.lines:
                await loop.sleep(0)
            log.write(b"next\n")
            for _ in range(20):
                await loop.sleep(0)
            assert joined(log.lines) == "x" * 8000 + "\n"
            await slow.until(lambda client: b"next" in client.bytes_of(1))
        assert joined(log.lines) == "x" * 8000 + "\nnext\n"


@on_loop
async def test_what_the_process_wrote_last_waits_for_who_is_behind(tmp_path):
    async with Log(tmp_path / "log") as log:
        with attached(log, tmp_path / "a", room=4096) as slow:
            log.write(b"x" * 60000)
            log.log.settle()
            ending = loop.spawn(log.end())
            await slow.until(lambda client: client.has_ended)
            await ending
            assert slow.pieces[-1] == END
            assert slow.bytes_of(1) == b"x" * 60000


@pytest.mark.parametrize("kind", ["nothing", "file", "fifo", "link"])
@on_loop
async def test_what_is_no_fifo_of_a_reader_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "file":
        path.touch()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "log")
    async with Log(tmp_path / "log") as log:
        with pytest.raises(RuntimedError) as failed:
            log.log.attach(str(path))
        assert isinstance(failed.value, {"nothing": NotFound, "file": InvalidArgument}.get(kind, RuntimedError))
        await log.put(b"x\n")
        assert joined(log.lines) == "x\n"
