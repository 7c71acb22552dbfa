"""Plugins over real sockets and processes, towards a runtime that is a list; and what no honest plugin would send."""

import asyncio
import os
import re
import signal
import socket
import stat
import struct
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtimed.api import nri_pb2 as pb
from runtimed.config import Nri
from runtimed.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
)
from runtimed.nri import calls
from runtimed.nri.plugin import Plugin, run
from runtimed.nri.plugins import Plugins

REPO = Path(__file__).parents[3]


class Runtime:
    """What the plugins are told of, and what they ask for."""

    def __init__(self):
        self.pods, self.containers = [], []
        self.updates, self.evictions = [], []

    async def existing(self):
        return list(self.pods), list(self.containers)

    async def update_containers(self, updates):
        self.updates += updates
        return [one for one in updates if one.container_id == "gone"]

    async def evict(self, evictions):
        self.evictions += evictions


class Watching(Plugin):
    """Sees containers made, does what a test sets, and says when it is there."""

    def __init__(self, answer=None):
        self.answer = answer
        self.is_there = asyncio.Event()
        self.asked = []

    async def synchronize(self, pods, containers):
        self.there = [one.id for one in pods], [one.id for one in containers]
        self.is_there.set()

    async def create_container(self, pod, container):
        self.asked.append(container.id)
        return await self.answer(container) if self.answer else None


@pytest.fixture
def runtime():
    return Runtime()


@pytest.fixture
def node(tmp_path, runtime):
    @asynccontextmanager
    async def node(**settings):
        values = {"registration_timeout_ms": 5000, "request_timeout_ms": 5000, **settings}
        paths = {"socket": tmp_path / "s", "plugin_path": tmp_path / "plugins", "config_path": tmp_path / "conf.d"}
        plugins = Plugins(Nri(enabled=True, **paths, **values), runtime, "test", "1")
        await plugins.start()
        try:
            yield plugins
        finally:
            await plugins.close()

    return node


@asynccontextmanager
async def connected(plugins, plugin, index="10", name="x"):
    running = asyncio.create_task(run(plugin, name=name, index=index, path=plugins._settings.socket))
    coming = asyncio.create_task(plugin.is_there.wait())
    try:
        await asyncio.wait([running, coming], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        async with plugins._asking:  # it has been taken in
            pass
        yield running
    finally:
        coming.cancel()
        running.cancel()
        await asyncio.wait([running, coming])


def creating(id="c"):
    return pb.CreateContainerRequest(pod=pb.PodSandbox(id="p"), container=pb.Container(id=id))


async def test_plugins_are_asked_in_the_order_of_their_indices_and_see_what_others_did(node):
    async def first(container):
        return pb.ContainerAdjustment(env=[pb.KeyValue(key="A", value="1")])

    async def second(container):
        assert container.env == ["A=1"]
        return pb.ContainerAdjustment(env=[pb.KeyValue(key="B", value="2")])

    async with node() as plugins:
        late, early = Watching(second), Watching(first)
        async with connected(plugins, late, "20"), connected(plugins, early, "10"):
            adjusting = await plugins.create(creating())
            assert [one.key for one in adjusting.result.env] == ["A", "B"]
            await plugins.tell(calls.RUN_POD, pb.RunPodSandboxRequest())  # which nobody wants to hear


async def test_a_plugin_asks_for_updates_and_evictions(node, runtime):
    async with node() as plugins:
        plugin = Watching()
        async with connected(plugins, plugin):
            failed = await plugin.update_containers([pb.ContainerUpdate(container_id=id) for id in ("c", "gone")])
            assert [one.container_id for one in failed] == ["gone"]
            with pytest.raises(InvalidArgument, match="NRI plugin 10-x, update: container_id is empty"):
                await plugin.update_containers([pb.ContainerUpdate()])
    assert [one.container_id for one in runtime.updates] == ["c", "gone"]
    with pytest.raises(FailedPrecondition, match="not connected"):
        await plugin.update_containers([])


async def test_many_containers_come_in_pieces(node, runtime):
    runtime.pods = [pb.PodSandbox(id=f"p{number}") for number in range(3)]
    runtime.containers = [pb.Container(id=f"c{number}", args=["x" * 1_000_000]) for number in range(9)]
    async with node() as plugins:
        plugin = Watching()
        async with connected(plugins, plugin):
            assert plugin.there == ([f"p{number}" for number in range(3)], [f"c{number}" for number in range(9)])


async def test_nothing_is_made_while_a_plugin_comes(node, runtime):
    """A plugin waits for what is being made, and is told of it; what begins later waits for the plugin."""
    async with node() as plugins:
        plugin = Watching()
        async with plugins.making():
            running = asyncio.create_task(run(plugin, name="x", index="10", path=plugins._settings.socket))
            while not plugins._gate._waiting:  # noqa: ASYNC110  nothing tells that somebody waits
                await asyncio.sleep(0)
            later = asyncio.create_task(make(plugins, runtime, "later"))
            await asyncio.sleep(0)
            assert not plugin.is_there.is_set()
            runtime.containers.append(pb.Container(id="made"))
        await later
        assert plugin.there == ([], ["made"])
        assert plugin.asked == ["later"]
        running.cancel()
        await asyncio.wait([running])


async def make(plugins, runtime, id):
    async with plugins.making():
        await plugins.create(creating(id))
        runtime.containers.append(pb.Container(id=id))


async def never(container):
    await asyncio.Event().wait()


async def test_without_an_answer_by_each_policy(node):
    async with node(on_timeout="open", request_timeout_ms=100) as plugins:
        plugin = Watching(never)
        async with connected(plugins, plugin) as running:
            await plugins.create(creating())
            await asyncio.wait([running])  # it has been disconnected
            assert plugins.is_idle
    for policy, times in (("closed", 1), ("retry", 2)):
        async with node(on_timeout=policy, request_timeout_ms=100) as plugins:
            plugin = Watching(never)
            async with connected(plugins, plugin):
                with pytest.raises(Unavailable, match="NRI plugin 10-x: CreateContainer: .*within 0.1 s"):
                    await plugins.create(creating())
                assert plugin.asked == ["c"] * times
                plugin.answer = None
                await plugins.create(creating())  # it has stayed


async def test_what_a_plugin_raises_is_told_with_its_name(node):
    async def objecting(container):
        raise PermissionDenied("never on a Sunday")

    async with node() as plugins, connected(plugins, Watching(objecting)):
        with pytest.raises(PermissionDenied, match="NRI plugin 10-x: CreateContainer: .*never on a Sunday"):
            await plugins.create(creating())


async def test_an_answer_that_is_too_long_is_an_error_and_the_connection_stays(node):
    async def long(container):
        return pb.ContainerAdjustment(annotations={"k": "x" * (5 << 20)})

    async with node() as plugins:
        plugin = Watching(long)
        async with connected(plugins, plugin):
            with pytest.raises(ResourceExhausted, match="NRI plugin 10-x"):
                await plugins.create(creating())
            plugin.answer = None
            await plugins.create(creating())


async def test_a_plugin_without_a_method_is_none(node):
    class Nothing(Watching):
        create_container = Plugin.create_container

    async with node() as plugins:
        await asyncio.wait_for(run(Nothing(), name="x", index="10", path=plugins._settings.socket), 10)
        assert plugins.is_idle


@pytest.mark.parametrize(("index", "name"), [("1", "x"), ("ab", "x"), ("10", ""), ("10", "a/b"), ("10", "x" * 129)])
async def test_a_plugin_must_have_a_name_and_an_index(node, index, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nothing"])
    async with node() as plugins:
        with pytest.raises(RuntimedError, match=r"NRI plugin (index|name)|closed"):
            await run(Watching(), name=name, index=index, path=plugins._settings.socket)


async def test_who_does_not_register_is_disconnected(node):
    async with node(registration_timeout_ms=100) as plugins:
        reader, writer = await asyncio.open_unix_connection(plugins._settings.socket)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


@pytest.mark.parametrize(
    "trash",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 100,
        struct.pack(">II", 2, 0xFFFFFFFF),
        struct.pack(">II", 2, 10) + struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0) + b"x" * 100,
        struct.pack(">II", 2, 13) + struct.pack(">IIBB", 3, 1, 1, 0) + b"\xff\xff\xff",
        struct.pack(">II", 1, 12) + struct.pack(">IIBB", 2, 77, 2, 0) + b"\xff\xff",
        bytes(range(256)) * 4096,
    ],
)
async def test_trash_does_no_harm(node, trash):
    async with node(registration_timeout_ms=300) as plugins:
        honest = Watching()
        async with connected(plugins, honest):
            reader, writer = await asyncio.open_unix_connection(plugins._settings.socket)
            writer.write(trash)
            await plugins.create(creating())
            assert honest.asked == ["c"]
            writer.close()


async def test_who_connects_at_the_very_end_is_let_go(node, tmp_path):
    async with node(registration_timeout_ms=100_000) as plugins, asyncio.timeout(20):
        serve = plugins._connected

        def cancelled_at_once(*streams):
            serve(*streams)
            for task in plugins._tasks:
                task.cancel()  # before it has begun

        plugins._listener._connected = cancelled_at_once
        assert await what_is_read(tmp_path / "s") == b""
        plugins._listener._connected = serve
        plugins._is_closing = True  # as if close() had come between its connection and this
        assert await what_is_read(tmp_path / "s") == b""


async def what_is_read(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(path))
        return await asyncio.get_running_loop().sock_recv(sock, 1)


async def test_the_socket_is_roots_and_goes_with_the_daemon(node, tmp_path, runtime):
    path = tmp_path / "s"
    async with node() as plugins:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        other = Plugins(plugins._settings, runtime, "other", "1")
        with pytest.raises(FailedPrecondition, match=re.escape(f"nri.socket: socket {path}: another program listens")):
            await other.start()
        await other.close()
        assert path.exists()
        left = os.open(path, os.O_PATH)  # its inode is not used again
    assert not path.exists()
    os.close(left)
    async with node(external_connections=False):
        assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with node() as plugins, connected(plugins, Watching()):  # in the place of one that has died
        pass


def program(directory, name, text):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


async def test_the_example_of_the_documentation_runs(node, tmp_path):
    found = re.search(r"```python\n(.*?)```", (REPO / "docs/nri.md").read_text(), re.S)
    assert found is not None
    example = found.group(1)
    assert example.startswith("#!/usr/bin/env python3\n")
    program(tmp_path / "plugins", "10-batch", example.replace("/usr/bin/env python3", sys.executable, 1))
    program(tmp_path / "plugins", "batch", "#!/bin/sh\nexit 1\n")  # no index: not launched
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/batch.conf").write_text("77")
    (tmp_path / "plugins/20-readme").write_text("not executable")
    async with node(registration_timeout_ms=20_000) as plugins:
        request = creating()
        request.pod.labels["kind"] = "batch"
        adjust = (await plugins.create(request)).result
        assert adjust.linux.resources.cpu.shares.value == 77
        assert [(one.key, one.value) for one in adjust.env] == [("CPU_SHARES", "77")]
        assert not (await plugins.create(creating())).result.ByteSize()
        await plugins.stop(pb.StopContainerRequest())


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), ValueError("unforeseen")])
async def test_a_plugin_that_cannot_be_launched_does_not_hold_up_the_start(node, tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    program(tmp_path / "plugins", "10-x", "#!/bin/sh\n")
    if isinstance(failure, OSError):
        monkeypatch.setattr(socket, "socketpair", fail)
    else:
        monkeypatch.setattr("runtimed.nri.plugins.launch", fail)
    async with asyncio.timeout(20), node(on_timeout="closed") as plugins:
        with pytest.raises(Unavailable, match=f"10-x is not running.*{failure.args[-1]}"):
            await plugins.create(creating())


async def test_a_plugin_ignores_no_signals(node, tmp_path):
    program(tmp_path / "plugins", "10-x", f"#!/bin/sh\ngrep SigIgn /proc/self/status > {tmp_path}/ignored\n")
    async with node():
        pass
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)  # which this process does


async def test_a_program_that_is_no_plugin_holds_nothing_up(node, tmp_path):
    program(tmp_path / "plugins", "10-ends", "#!/bin/sh\nexit 1\n")
    program(tmp_path / "plugins", "20-sleeps", "#!/bin/sh\nsleep 1000\n")
    program(tmp_path / "plugins", "30-none", "#!/no/such/interpreter\n")
    async with node(registration_timeout_ms=300, on_timeout="open") as plugins:
        await plugins.create(creating())
    async with node(registration_timeout_ms=300, on_timeout="closed") as plugins:
        with pytest.raises(Unavailable, match="NRI plugin 10-ends is not running, and nri.on_timeout does not allow"):
            await plugins.create(creating())
        await plugins.tell(calls.STOP_POD, pb.StopPodSandboxRequest())  # what ends, ends
