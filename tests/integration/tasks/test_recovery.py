"""What an earlier daemon left, found again: odd, dead, stuck, many; and what subscribers hear of it."""

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed.api.events_pb2 import TaskExit
from runtimed.config import DEFAULT_RUNTIME
from runtimed.errors import AlreadyExists, NotFound, ResourceExhausted
from runtimed.events import EventBus, Subscription
from runtimed.linux.mount import MNT_DETACH, mount, umount2
from runtimed.mounts import mounts_below
from runtimed.tasks.bundle import DIRECTORY
from runtimed.tasks.client import Status
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager
from tests.fakes.tasks import NS, TaskDaemon, gone, signal_shim

pytestmark = pytest.mark.root


async def run(daemon: TaskDaemon, spec, id: str, script: str = "sleep 1000") -> int:
    await daemon.tasks.create(NS, await daemon.container(id, DEFAULT_RUNTIME, **spec(script)))
    pid = await daemon.tasks.start(NS, id, "")
    async with asyncio.timeout(10):
        async for envelope in daemon.told:
            if envelope.topic == "/tasks/start":
                return pid
    raise AssertionError("the start was not told")


async def next_exit(told: Subscription, limit_s: float = 10) -> TaskExit:
    async with asyncio.timeout(limit_s):
        async for envelope in told:
            if envelope.topic == "/tasks/exit":
                return TaskExit.FromString(envelope.event.value)
    raise AssertionError("no exit was told")


async def test_one_stuck_shim_among_many_costs_nobody_else_anything(daemon, spec):
    pids = {f"t{number}": await run(daemon, spec, f"t{number}") for number in range(8)}
    stuck = daemon.shim_pid("t3")
    signal_shim(stuck, signal.SIGSTOP)
    try:
        await daemon.stop()
        async with asyncio.timeout(30):
            await daemon.start()
        async with asyncio.timeout(30):
            states = {state.container_id: (state.pid, state.status) for state in await daemon.tasks.list(NS)}
    finally:
        signal_shim(stuck, signal.SIGCONT)
    wanted = {id: (pid, Status.RUNNING) for id, pid in pids.items()} | {"t3": (0, Status.UNKNOWN)}
    assert states == wanted
    assert (await daemon.tasks.get(NS, "t3")).status is Status.RUNNING  # it goes on where it was


async def test_a_container_whose_cgroup_and_pid_file_look_odd_is_not_taken_for_dead(daemon, spec, cgroup):
    pid = await run(daemon, spec, "t1")
    (daemon.bundle("t1") / "init.pid").write_text("what")
    hierarchy = next(path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir())
    elsewhere = hierarchy / cgroup.strip("/") / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "cgroup.procs").write_text(str(pid))
    try:
        await daemon.restart()
        state = await daemon.tasks.get(NS, "t1")
        assert (state.pid, state.status) == (pid, Status.RUNNING)
        await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=False)
        assert (await daemon.tasks.wait(NS, "t1", "")).status == 137
        await daemon.tasks.delete(NS, "t1")
        await gone(pid)
    finally:
        elsewhere.rmdir()
    assert not daemon.bundle("t1").exists()


async def test_after_a_reboot_the_names_are_free_and_nothing_is_told(daemon, spec):
    for number in range(50):
        await daemon.container(f"t{number}", DEFAULT_RUNTIME, **spec("true"))
        (daemon.root / DIRECTORY / NS / f"t{number}").mkdir(parents=True)
    await daemon.stop()
    shutil.rmtree(daemon.state)
    (daemon.state / "s").mkdir(parents=True)
    await daemon.start()
    assert await daemon.tasks.list(NS) == []
    assert list((daemon.root / DIRECTORY / NS).iterdir()) == []
    await daemon.tasks.create(NS, NewTask(id="t7"))


async def test_many_shims_that_died_with_the_machine_on_do_not_keep_the_daemon_from_serving(daemon, spec, monkeypatch):
    monkeypatch.setattr("runtimed.tasks.loading._ALL_LOADED_WITHIN_S", 0.001)
    live = await run(daemon, spec, "live")
    await daemon.stop()
    for number in range(50):
        bundle = daemon.bundle(f"dead{number}")
        (bundle / "rootfs").mkdir(parents=True)
        for name, content in (("created", ""), ("config.json", json.dumps(spec("true"))), ("options.json", "{}")):
            (bundle / name).write_text(content)
        (bundle / "bootstrap.json").write_text(
            json.dumps({"version": 3, "address": f"unix://{daemon.state}/s/dead{number}", "protocol": "ttrpc"})
        )
    await daemon.start()  # while those are still being cleaned up after
    assert daemon.bundle("dead49").exists()
    assert [state.pid for state in await daemon.tasks.list(NS)] == [live]
    async with asyncio.timeout(100):
        told = {(await next_exit(daemon.told, 60)).id for _ in range(50)}
    assert told == {f"dead{number}" for number in range(50)}
    assert [path.name for path in daemon.bundle("live").parent.iterdir()] == ["live"]


async def test_an_exit_without_a_daemon_reaches_also_who_subscribes_later(daemon, spec):
    pid = await run(daemon, spec, "t1", "trap 'exit 5' TERM; while :; do sleep 0.05; done")
    lost = await run(daemon, spec, "t2")
    shim = daemon.shim_pid("t2")
    await daemon.stop()
    os.kill(pid, signal.SIGTERM)
    await gone(pid)
    os.kill(shim, signal.SIGKILL)
    await gone(shim)
    await daemon.start()
    first = {(event.id, event.exit_status) for event in [await next_exit(daemon.told) for _ in range(2)]}
    assert first == {("t1", 5), ("t2", 137)}
    with daemon.events.subscribe(["topic==/tasks/exit"]) as late:
        assert {(event.id, event.exit_status) for event in [await next_exit(late) for _ in range(2)]} == first
    await gone(lost)
    state = await daemon.tasks.get(NS, "t1")
    assert (state.status, state.exit_status) == (Status.STOPPED, 5)
    assert (await daemon.tasks.delete(NS, "t1")).status == 5


async def test_an_exit_that_an_earlier_daemon_told_is_not_told_again(daemon, spec):
    await run(daemon, spec, "t1", "exit 3")
    told = await next_exit(daemon.told)
    assert (await daemon.tasks.get(NS, "t1")).status is Status.STOPPED
    shim = daemon.shim_pid("t1")
    await daemon.stop()
    os.kill(shim, signal.SIGKILL)
    await gone(shim)
    await daemon.start()
    assert (told.id, told.exit_status) == ("t1", 3)
    assert await daemon.topics("/tasks/delete") == ["/tasks/delete"]
    with pytest.raises(NotFound):
        await daemon.tasks.get(NS, "t1")


async def test_a_mount_on_the_rootfs_of_a_dead_container_is_taken_off_at_the_start(daemon, spec, home):
    await run(daemon, spec, "t1")
    shim = daemon.shim_pid("t1")
    await daemon.stop()
    os.kill(shim, signal.SIGKILL)
    await gone(shim)
    mount("tmpfs", str(daemon.bundle("t1") / "rootfs"), "tmpfs", 0, "")
    await daemon.start()
    assert not daemon.bundle("t1").exists()
    assert mounts_below(home) == []


async def test_a_stuck_shim_whose_queue_is_full_is_not_taken_for_dead(daemon, spec):
    pid = await run(daemon, spec, "t1")
    shim = daemon.shim_pid("t1")
    path = str(next((daemon.state / "s").iterdir()))
    signal_shim(shim, signal.SIGSTOP)
    queued = []
    with suppress(BlockingIOError):
        while True:
            queued.append(socket.socket(socket.AF_UNIX))
            queued[-1].setblocking(False)
            queued[-1].connect(path)
    try:
        await daemon.stop()
        async with asyncio.timeout(30):
            await daemon.start()
        async with asyncio.timeout(30):
            state = await daemon.tasks.get(NS, "t1")
        assert state.status is Status.UNKNOWN
        with pytest.raises(AlreadyExists):
            await daemon.tasks.create(NS, NewTask(id="t1"))
    finally:
        for sock in queued:
            sock.close()
        signal_shim(shim, signal.SIGCONT)
    async with asyncio.timeout(30):
        while (state := await daemon.tasks.get(NS, "t1")).status is Status.UNKNOWN:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the shim's state, which tells nobody
    assert (state.pid, state.status) == (pid, Status.RUNNING)


async def test_a_daemon_that_lacks_descriptors_at_its_start_takes_no_shim_for_dead(daemon, spec, monkeypatch):
    pid = await run(daemon, spec, "t1")
    await daemon.stop()
    with monkeypatch.context() as lacking:
        lacking.setattr("runtimed.rpc.ttrpc.socket.socket", _no_descriptor)
        manager = TaskManager(
            daemon.database,
            EventBus(),
            daemon.launcher,
            daemon.content,
            root=daemon.root,
            state=daemon.state,
            default_runtime="",
        )
        await manager.load()
        assert (await manager.get(NS, "t1")).status is Status.UNKNOWN
        await manager.close()
    await daemon.start()
    state = await daemon.tasks.get(NS, "t1")
    assert (state.pid, state.status) == (pid, Status.RUNNING)


def _no_descriptor(*_: object) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_in_a_full_state_directory_containers_can_still_be_deleted(home, cgroup, spec):
    mounted = home / "state"
    mounted.mkdir()
    mount("tmpfs", str(mounted), "tmpfs", 0, "size=1m,nr_inodes=200")
    try:
        daemon = await TaskDaemon(home).start()
        await run(daemon, spec, "t1")
        await run(daemon, spec, "t2")
        with suppress(OSError):
            for number in range(200):  # first there is no inode left, then no byte
                (mounted / f"filler{number}").touch()
        with suppress(OSError):
            (mounted / "filler0").write_bytes(b"x" * (2 << 20))
        new = await daemon.container("t3", DEFAULT_RUNTIME, **spec("true"))
        with pytest.raises(ResourceExhausted, match="No space left on device"):
            await daemon.tasks.create(NS, new)
        for id in ("t1", "t2"):
            await daemon.tasks.kill(NS, id, "", signal.SIGKILL, all=True)
            assert (await daemon.tasks.wait(NS, id, "")).status == 137
            await daemon.tasks.delete(NS, id)
        assert await daemon.tasks.list(NS) == []
        assert list(daemon.bundle("t1").parent.iterdir()) == []
        await daemon.stop()
    finally:
        umount2(str(mounted), MNT_DETACH)
