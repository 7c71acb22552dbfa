"""What a client that is attached gets and is told, with a shim that is made up."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import attach
from runtimed.cri.streaming.session import Input, Session
from runtimed.errors import FailedPrecondition, ResourceExhausted

END = bytes(5)


class Core:
    """A container's shim, and the daemon around it."""

    def __init__(self, directory):
        self.directory = directory
        self.tasks = self
        self.fd = -1
        self.error = None
        self.asked = asyncio.Event()
        self.spawned = []

    async def attach(self, namespace, id, path):
        if self.error:
            raise self.error
        self.fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self.asked.set()

    async def close_stdin(self, namespace, id, exec_id):
        pass

    def container_directory(self, id):
        return self.directory / id

    def spawn(self, coroutine):
        self.spawned.append(asyncio.create_task(coroutine))

    def close(self):
        os.close(self.fd)

    def write(self, stream, data):
        os.write(self.fd, bytes([stream]) + len(data).to_bytes(4, "big") + data)


@pytest.fixture
async def core(tmp_path):
    core = Core(tmp_path)
    yield core
    await asyncio.gather(*core.spawned)
    assert not list(tmp_path.glob("exec/*"))


def container(**config):
    return SimpleNamespace(id="c", config=pb.ContainerConfig(**config), is_input_taken=False, ended=asyncio.Event())


class Client(Session):
    def __init__(self, *, stdout=True, stderr=True):
        self.got = []
        self.has_some = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.input = Input()
        super().__init__(self.input, self.writer("out") if stdout else None, self.writer("err") if stderr else None)

    def writer(self, name):
        async def write(data):
            await self.takes.wait()
            self.got.append((name, data))
            self.has_some.set()

        return write


async def test_each_stream_comes_to_its_own_until_the_end(core):
    client = Client()
    attaching = asyncio.create_task(attach.attach(core, container(), client))
    await core.asked.wait()
    core.write(1, b"one")
    core.write(2, b"two")
    core.write(3, b"of a stream there is not")
    core.write(1, b"x" * 100_000)
    os.write(core.fd, END)
    await attaching
    core.close()
    assert client.got == [("out", b"one"), ("err", b"two"), ("out", b"x" * 100_000)]


async def test_what_was_not_asked_for_is_left_out(core):
    client = Client(stdout=False)
    attaching = asyncio.create_task(attach.attach(core, container(), client))
    await core.asked.wait()
    core.write(1, b"one")
    core.write(2, b"two")
    os.write(core.fd, END)
    await attaching
    core.close()
    assert client.got == [("err", b"two")]


@pytest.mark.parametrize("rest", [b"", b"\1", b"\1\0\0\0\x09ab"])
async def test_output_that_ends_before_its_end_is_told(core, rest):
    attaching = asyncio.create_task(attach.attach(core, container(), Client()))
    await core.asked.wait()
    os.write(core.fd, rest)
    core.close()
    with pytest.raises(ResourceExhausted, match="not taken in time"):
        await attaching


async def test_who_does_not_take_the_rest_is_let_go(core, monkeypatch):
    monkeypatch.setattr(attach, "_REST_WITHIN_S", 0.01)
    client = Client()
    client.takes.clear()
    attaching = asyncio.create_task(attach.attach(core, container(), client))
    await core.asked.wait()
    core.write(1, b"one")
    os.write(core.fd, END)
    core.close()
    with pytest.raises(ResourceExhausted, match="not taken in time"):
        await attaching
    assert not client.got


async def test_an_error_of_the_shim_is_the_clients(core):
    core.error = FailedPrecondition("it has ended")
    with pytest.raises(FailedPrecondition, match="it has ended"):
        await attach.attach(core, container(), Client())


async def test_input_for_one_client_does_not_end_with_one_that_gets_no_output(core):
    path = attach.make_input(core.container_directory("c"))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    it = container(stdin=True, stdin_once=True)
    core.error = FailedPrecondition("not now")
    with pytest.raises(FailedPrecondition, match="not now"):
        await attach.attach(core, it, Client())
    assert not it.is_input_taken
    assert not core.spawned
    os.close(reader)


async def test_who_wants_input_alone_stays_until_the_container_ends(core):
    client = Client(stdout=False, stderr=False)
    it = container()
    attaching = asyncio.create_task(attach.attach(core, it, client))
    client.input.feed(b"nobody takes this")
    client.input.end()
    await asyncio.sleep(0)
    assert not attaching.done()
    it.ended.set()
    await attaching


async def test_input_that_is_not_taken_holds_up_its_client_alone(core):
    path = attach.make_input(core.container_directory("c"))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    client = Client()
    attaching = asyncio.create_task(attach.attach(core, container(stdin=True), client))
    await core.asked.wait()
    data = bytes(200_000)
    client.input.feed(data)
    client.input.end()
    core.write(1, b"goes on")
    await client.has_some.wait()
    assert client.got == [("out", b"goes on")]
    got = b""
    while not attaching.done():
        await asyncio.sleep(0)
        try:
            got += os.read(reader, 1 << 16)
        except BlockingIOError:
            continue
    assert got + os.read(reader, 1 << 16) == data
    os.close(reader)
    core.close()
