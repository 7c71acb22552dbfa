"""What counts as the end of a container, and who is asked when nobody tells of it."""

import asyncio
import os
import subprocess
from typing import Any

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import container_exit, container_stop
from runtimed.cri.container_events import ContainerEvents
from runtimed.cri.hooks import Hooks
from runtimed.cri.records import ContainerRecord, SandboxRecord
from runtimed.cri.state import Container, Sandbox, State
from runtimed.errors import DeadlineExceeded, NotFound
from runtimed.tasks.client import Exit

ID = "c" * 64


class Tasks:
    """One task, whose end is known by asking for it only."""

    def __init__(self, exit: Exit | None = None) -> None:
        self.exit = exit
        self.killed = asyncio.Event()

    async def kill(self, namespace, id, exec_id, number, *, all):
        self.killed.set()

    async def wait(self, namespace, id, exec_id):
        await self.killed.wait()
        if self.exit is None:
            await asyncio.Event().wait()
        return self.exit

    async def delete(self, namespace, id):
        raise NotFound(id)


class Core:
    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.state, self.events, self.hooks = State(), ContainerEvents(), Hooks()
        self.spawned: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine):
        self.spawned.append(asyncio.create_task(coroutine))

    def save_soon(self, id, record):
        pass


def made(core: Any, state: "pb.ContainerState", pid: int = 0) -> Container:
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"))
    pod = Sandbox(
        id="p" * 64, config=pb.PodSandboxConfig(), record=SandboxRecord(config=b""), handler="", snapshotter=""
    )
    container = Container(id=ID, sandbox=pod, config=config, record=ContainerRecord(config=b""), state=state, pid=pid)
    core.state.containers.add(container)
    return container


async def told(core: Any, pid: int) -> None:
    container_exit.told(core, ID, Exit(pid=pid, status=137, exited_at=5))
    await asyncio.gather(*core.spawned)


async def test_the_end_of_a_task_that_was_never_started_is_not_the_containers():
    """A daemon was killed before the start: the next one removes the task, and the container can be started still."""
    core = Core(Tasks())
    container = made(core, pb.CONTAINER_CREATED)
    await told(core, 10)
    assert (container.state, container.record.exit_code) == (pb.CONTAINER_CREATED, 0)
    assert not container.ended.is_set()


@pytest.mark.parametrize(
    ("pid", "state"), [(10, pb.CONTAINER_RUNNING), (20, pb.CONTAINER_EXITED), (0, pb.CONTAINER_EXITED)]
)
async def test_nor_is_it_when_the_container_runs_in_another_task_by_then(pid, state):
    core = Core(Tasks())
    container = made(core, pb.CONTAINER_RUNNING, 20)
    await told(core, pid)
    assert container.state == state
    assert container.ended.is_set() == (state == pb.CONTAINER_EXITED)


async def test_a_shim_that_does_not_tell_of_an_end_is_asked(monkeypatch):
    monkeypatch.setattr(container_stop, "_TOLD_WITHIN_S", 0.0)
    core: Any = Core(Tasks(Exit(pid=20, status=137, exited_at=5)))
    container = made(core, pb.CONTAINER_RUNNING, 20)
    await container_stop.stop_at_once(core, container)
    assert (container.state, container.record.exit_code) == (pb.CONTAINER_EXITED, 137)
    assert (container.record.finished_at, container.pid) == (5, 0)


async def test_what_cannot_be_killed_is_said_to_be_there(monkeypatch):
    monkeypatch.setattr(container_stop, "_TOLD_WITHIN_S", 0.0)
    monkeypatch.setattr(container_stop, "_KILLED_WITHIN_S", 0.05)
    core: Any = Core(Tasks())
    with pytest.raises(DeadlineExceeded, match="still there"):
        await container_stop.stop_at_once(core, made(core, pb.CONTAINER_RUNNING, 20))


def zombie() -> subprocess.Popen[bytes]:
    """Return a process that has come to its end, and that nobody has taken from the kernel yet."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


async def test_a_process_that_the_kernel_is_ending_is_waited_for():
    core: Any = Core(Tasks())
    living = made(core, pb.CONTAINER_RUNNING, 1)
    assert not await container_exit.has_ended(living)
    process = zombie()
    try:
        ending = made(core, pb.CONTAINER_RUNNING, process.pid)
        asked = asyncio.create_task(container_exit.has_ended(ending))
        await asyncio.sleep(0)
        await told(core, process.pid)
        assert await asked
    finally:
        process.wait()
