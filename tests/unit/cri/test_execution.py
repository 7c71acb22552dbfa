"""A further process in a container, and what it writes, with tasks that are made up."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import execution, pipes
from runtimed.cri.exec_sync import Room, Stream
from runtimed.cri.execution import Execution
from runtimed.cri.streams import Reader
from runtimed.errors import NotFound, ResourceExhausted


class Tasks:
    def __init__(self):
        self.killed = False

    async def exec(self, *_):
        pass

    async def start(self, *_):
        pass

    async def kill(self, *_, all):
        self.killed = True

    async def wait(self, *_):
        await asyncio.Event().wait()

    async def delete_exec(self, *_):
        raise NotFound("it has not ended")


@pytest.fixture
def core(tmp_path):
    return SimpleNamespace(directory=tmp_path, tasks=Tasks(), spawn=asyncio.ensure_future)


@pytest.fixture
def container():
    running = {"state": pb.CONTAINER_RUNNING, "pid": os.getpid()}
    return SimpleNamespace(id="c", process={"env": ["A=1"], "consoleSize": {}}, **running)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_process_that_cannot_be_killed_leaves_no_descriptors(core, container, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(execution, "_ENDED_WITHIN_S", 0.1)
    before = descriptors()
    one = Execution(core, container)
    await one.start(["x"], ("stdin", "stdout"))
    assert descriptors() == before + 2
    async with asyncio.timeout(20):
        await one.end()
    assert core.tasks.killed
    assert "a process that was killed does not end" in caplog.text
    assert descriptors() == before
    assert not list(tmp_path.glob("exec/*"))


async def test_a_shim_that_does_not_answer_keeps_nobody_waiting(core, container, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_WAITED_FOR_S", 0.1)
    answers = asyncio.Event()

    async def hang(*_):
        await answers.wait()
        raise NotFound("the container has gone")

    before = descriptors()
    ending = []

    def spawn(coroutine):
        ending.append(asyncio.ensure_future(coroutine))
        return ending[-1]

    core.spawn = spawn
    core.tasks.exec, core.tasks.wait = hang, hang
    one = Execution(core, container)
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await one.start(["x"], ("stdout",))
        await one.end()
        assert not ending[-1].done()  # it is somebody's still
        answers.set()
        await asyncio.wait(ending)
    assert core.tasks.killed
    assert descriptors() == before
    assert not list(tmp_path.glob("exec/*"))


async def test_one_that_did_not_start_leaves_nothing(core, container, tmp_path):
    async def refuse(*_):
        raise NotFound("no such program")

    before = descriptors()
    core.tasks.start, core.tasks.kill, core.tasks.wait = refuse, lambda *_, all: refuse(), refuse
    one = Execution(core, container)
    with pytest.raises(NotFound, match="no such program"):
        await one.start(["x"], ("stdout",))
    await one.end()
    assert descriptors() == before
    assert not list(tmp_path.glob("exec/*"))


def test_fifos_that_cannot_all_be_made_are_closed(tmp_path, monkeypatch):
    made = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: made(path if path.name == "stdin" else "/proc/nobody", *rest))
    before = descriptors()
    with pytest.raises(NotFound):
        pipes.make(tmp_path / "x", ("stdin", "stdout"))
    assert descriptors() == before


@pytest.fixture
def fifo(tmp_path):
    fds = pipes.make(tmp_path / "exec", ("stdout",))
    writer = os.open(tmp_path / "exec/stdout", os.O_WRONLY | os.O_NONBLOCK)
    yield fds["stdout"], writer
    os.close(writer)
    os.close(fds["stdout"])


async def test_who_goes_on_writing_does_not_hold_up_the_answer(fifo, monkeypatch):
    fd, writer = fifo
    os.write(writer, b"x" * 65536)
    read = os.read

    def read_and_fill(fd, size):
        data = read(fd, size)
        os.write(writer, b"y" * len(data))  # a writer as fast as the reader
        if (calls := calls_left.pop()) == 0:
            raise ResourceExhausted("reads without end")
        calls_left.append(calls - 1)
        return data

    calls_left = [100]
    stream = Stream(fd, Room(1 << 20))
    monkeypatch.setattr(os, "read", read_and_fill)
    assert stream.take() == b"x" * 65536
    stream.stop()


class Client:
    """Takes output when it is let."""

    def __init__(self):
        self.got = b""
        self.has_some, self.takes = asyncio.Event(), asyncio.Event()

    async def write(self, data):
        for start in range(0, len(data), 32768):
            self.got += data[start : start + 32768]
            self.has_some.set()
            await self.takes.wait()


async def test_output_that_a_client_takes_slowly_comes_once(fifo):
    """The command ends while the client is half-way through a piece."""
    fd, writer = fifo
    client = Client()
    reader = Reader(fd, client.write)
    copying = asyncio.create_task(reader.copy())
    first, rest = os.urandom(65536), os.urandom(1000)
    os.write(writer, first)
    async with asyncio.timeout(20):
        await client.has_some.wait()
        os.write(writer, rest)
        reader.end()
        os.write(writer, b"of a process in the background")
        client.takes.set()
        await copying
    assert client.got == first + rest


async def test_a_reader_that_waits_learns_of_the_end(fifo):
    fd, writer = fifo
    client = Client()
    client.takes.set()
    reader = Reader(fd, client.write)
    copying = asyncio.create_task(reader.copy())
    async with asyncio.timeout(20):
        os.write(writer, b"some")
        await client.has_some.wait()
        reader.end()
        await copying
    assert client.got == b"some"
