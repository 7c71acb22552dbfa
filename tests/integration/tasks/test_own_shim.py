"""The task manager with our own shim, runc, and the warm parent between them."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed.config import DEFAULT_RUNTIME
from runtimed.errors import NotFound, RuntimedError
from runtimed.metadata.containers import Opaque
from runtimed.mounts import Mount
from runtimed.tasks.client import Status, Stdio
from runtimed.tasks.making import NewTask
from tests.fakes.tasks import NS, SPEC_TYPE, gone, process
from tests.processes import children

pytestmark = pytest.mark.root


async def worker_of(shim: int) -> int:
    """Return the process that works for the shim, when there is one."""
    async with asyncio.timeout(10):
        while True:
            for pid in children(shim):
                with suppress(FileNotFoundError, ProcessLookupError):
                    if Path(f"/proc/{pid}/comm").read_text() == "runtimed-shim\n":  # noqa: ASYNC240 - no disk
                        return pid
            await asyncio.sleep(0.01)


async def test_a_container_runs_to_its_exit_status(daemon, spec, home):
    (home / "out").touch()
    await daemon.container("t1", DEFAULT_RUNTIME, **spec("echo hello; exit 7"))
    new = NewTask(id="t1", stdio=Stdio(stdout=f"file://{home}/out"))
    pid = await daemon.tasks.create(NS, new)
    assert await daemon.tasks.start(NS, "t1", "") == pid
    assert (await daemon.tasks.wait(NS, "t1", "")).status == 7
    assert (home / "out").read_text() == "hello\n"
    assert (await daemon.tasks.delete(NS, "t1")).status == 7
    assert await daemon.topics("/tasks/delete") == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert not daemon.bundle("t1").exists()
    assert list((home / "state/s").iterdir()) == []
    assert (home / "state/runc").is_dir()


async def test_a_further_process_runs_beside_it(daemon, spec):
    await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    described = Opaque(SPEC_TYPE.replace("Spec", "Process"), json.dumps(process("exit 3")).encode())
    await daemon.tasks.exec(NS, "t1", "e1", Stdio(), described)
    await daemon.tasks.start(NS, "t1", "e1")
    assert (await daemon.tasks.wait(NS, "t1", "e1")).status == 3
    assert (await daemon.tasks.delete_exec(NS, "t1", "e1")).status == 3
    assert (await daemon.tasks.get(NS, "t1")).status is Status.RUNNING


async def test_a_program_that_is_not_in_the_image_is_named_and_leaves_nothing(daemon, spec):
    broken = spec("")
    broken["process"] = {**process(""), "args": ["/no/such/program"]}
    new = await daemon.container("t1", DEFAULT_RUNTIME, **broken)
    with pytest.raises(RuntimedError, match="^failed to create shim task: .*/no/such/program.*no such file"):
        await daemon.tasks.create(NS, new)
    assert not daemon.bundle("t1").exists()
    assert await daemon.tasks.list(NS) == []


async def test_a_running_container_survives_its_daemon(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    await daemon.restart()
    state = await daemon.tasks.get(NS, "t1")
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=False)
    assert (await daemon.tasks.wait(NS, "t1", "")).status == 137


async def test_a_container_that_ends_without_a_daemon_has_its_status_and_event(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    await daemon.topics("/tasks/start")
    await daemon.stop()
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await daemon.start()
    assert await daemon.topics("/tasks/exit") == ["/tasks/exit"]
    state = await daemon.tasks.get(NS, "t1")
    assert (state.status, state.exit_status) == (Status.STOPPED, 137)


async def test_the_container_of_a_shim_that_dies_is_killed_and_told(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    await daemon.topics("/tasks/start")
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    assert await daemon.topics("/tasks/delete") == ["/tasks/exit", "/tasks/delete"]
    await gone(pid)
    with pytest.raises(NotFound):
        await daemon.tasks.get(NS, "t1")
    assert not daemon.bundle("t1").exists()
    assert list((daemon.state / "runc" / NS).iterdir()) == []


async def test_the_container_of_a_shim_whose_worker_dies_is_killed_and_told(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    await daemon.topics("/tasks/start")
    shim = daemon.shim_pid("t1")
    os.kill(await worker_of(shim), signal.SIGKILL)
    assert await daemon.topics("/tasks/delete") == ["/tasks/exit", "/tasks/delete"]
    await gone(shim)
    await gone(pid)
    assert not daemon.bundle("t1").exists()


async def test_a_shim_at_rest_is_found_again_and_tells_what_happens(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    shim = daemon.shim_pid("t1")
    await gone(await worker_of(shim))
    await daemon.stop()
    await gone(await worker_of(shim))  # it was woken because its daemon had left
    await daemon.start()
    assert (await daemon.tasks.get(NS, "t1")).status is Status.RUNNING
    await gone(await worker_of(shim))
    os.kill(pid, signal.SIGKILL)
    assert await daemon.topics("/tasks/exit") == ["/tasks/exit"]
    assert (await daemon.tasks.delete(NS, "t1")).status == 137
    await gone(shim)


async def test_a_shim_at_rest_that_is_stopped_holds_up_its_own_task_only(daemon, spec):
    for id in ("t1", "t2"):
        await daemon.tasks.create(NS, await daemon.container(id, DEFAULT_RUNTIME, **spec("sleep 1000")))
        await daemon.tasks.start(NS, id, "")
    shim = daemon.shim_pid("t1")
    await gone(await worker_of(shim))
    os.kill(shim, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            await daemon.restart()
            assert (await daemon.tasks.get(NS, "t2")).status is Status.RUNNING
    finally:
        os.kill(shim, signal.SIGCONT)
    await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=False)
    assert (await daemon.tasks.wait(NS, "t1", "")).status == 137


async def test_of_a_shim_whose_keeper_alone_is_stopped_a_task_is_ended_by_force(daemon, spec):
    """Its worker still answers, and is not told how the container has ended."""
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    shim = daemon.shim_pid("t1")
    waiting = asyncio.create_task(daemon.tasks.wait(NS, "t1", ""))
    await worker_of(shim)
    os.kill(shim, signal.SIGSTOP)
    async with asyncio.timeout(30):
        await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=False)
        assert (await waiting).status == 137
        await gone(shim)
        await gone(pid)
    assert await daemon.topics("/tasks/delete") == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert not daemon.bundle("t1").exists()


class Memory:
    """A cgroup with little memory, of version 1 or 2."""

    def __init__(self, name: str) -> None:
        v1 = Path("/sys/fs/cgroup/memory")
        is_v1 = v1.is_dir()
        self._path = (v1 if is_v1 else Path("/sys/fs/cgroup")) / name
        self._path.mkdir()
        (self._path / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(256 << 10))
        self._counters = self._path / ("memory.oom_control" if is_v1 else "memory.events")

    def take(self, *pids: int) -> None:
        for pid in pids:
            (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        return int(dict(line.split() for line in self._counters.read_text().splitlines())["oom_kill"])

    def close(self) -> None:
        self._path.rmdir()


@pytest.fixture
def memory(cgroup):
    memory = Memory(f"{cgroup.strip('/')}-shim")
    yield memory
    memory.close()


async def test_the_container_of_a_shim_that_runs_out_of_memory_is_killed_and_told(daemon, spec, memory):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    shim = daemon.shim_pid("t1")
    worker = await worker_of(shim)
    memory.take(shim, worker)
    described = Opaque(SPEC_TYPE.replace("Spec", "Process"), json.dumps(process("exit 3")).encode())

    async def use_memory() -> None:  # of what it shares with its parent, for which it is not charged
        await daemon.tasks.exec(NS, "t1", "e1", Stdio(), described)
        await daemon.tasks.start(NS, "t1", "e1")

    with pytest.raises(RuntimedError):
        await use_memory()
    async with asyncio.timeout(30):
        await gone(shim)
        await gone(pid)
        await gone(worker)
    assert memory.kills > 0
    assert (await daemon.topics("/tasks/delete"))[-2:] == ["/tasks/exit", "/tasks/delete"]
    assert not daemon.bundle("t1").exists()


async def test_the_root_of_a_container_is_unmounted_and_kept_when_its_shim_dies(daemon, spec, rootfs):
    described = spec("sleep 1000") | {"root": {"path": "rootfs"}}
    await daemon.container("t1", DEFAULT_RUNTIME, **described)
    new = NewTask(id="t1", rootfs=[Mount("bind", str(rootfs), options=("rbind", "rw"))])
    await daemon.tasks.create(NS, new)
    assert (daemon.bundle("t1") / "rootfs/bin/busybox").exists()
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    await daemon.topics("/tasks/delete")
    assert not daemon.bundle("t1").exists()
    assert (rootfs / "bin/busybox").exists()


async def test_a_shim_that_dies_without_a_daemon_is_cleaned_up_after(daemon, spec):
    pid = await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    await daemon.tasks.start(NS, "t1", "")
    await daemon.topics("/tasks/start")
    await daemon.stop()
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    await daemon.start()
    assert await daemon.topics("/tasks/delete") == ["/tasks/exit", "/tasks/delete"]
    await gone(pid)
    assert not daemon.bundle("t1").exists()


async def test_many_tasks_at_once_each_get_their_own_shim(daemon, spec):
    ids = [f"t{number}" for number in range(6)]
    news = [await daemon.container(id, DEFAULT_RUNTIME, **spec("sleep 1000")) for id in ids]
    pids = await asyncio.gather(*(daemon.tasks.create(NS, new) for new in news))
    assert len(set(pids)) == len(ids)
    assert len({daemon.shim_pid(id) for id in ids}) == len(ids)
    for id, pid in zip(ids, pids, strict=True):
        assert (await daemon.tasks.get(NS, id)).pid == pid


def nursery_pid() -> int:
    """Return the pid of the warm parent, a child of this process."""
    for pid in children():
        if b"shim.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("there is no warm parent")


async def test_when_the_warm_parent_dies_its_shims_live_and_another_takes_its_place(daemon, spec):
    await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
    first = nursery_pid()
    os.kill(first, signal.SIGKILL)
    await gone(first)
    assert (await daemon.tasks.get(NS, "t1")).status is Status.CREATED
    await daemon.tasks.create(NS, await daemon.container("t2", DEFAULT_RUNTIME, **spec("sleep 1000")))
    assert nursery_pid() != first


async def test_a_warm_parent_that_hangs_is_done_without(daemon, spec, monkeypatch):
    monkeypatch.setattr("runtimed.tasks.nursery._ANSWER_WITHIN_S", 0.2)
    await daemon.nursery.ready()
    pid = nursery_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        await daemon.tasks.create(NS, await daemon.container("t1", DEFAULT_RUNTIME, **spec("sleep 1000")))
        assert (await daemon.tasks.get(NS, "t1")).status is Status.CREATED
        await daemon.tasks.delete(NS, "t1")
    finally:
        os.kill(pid, signal.SIGCONT)
