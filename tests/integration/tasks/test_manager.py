"""The task manager with shims that are processes of their own, and the daemon's own end and return."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed import failpoints
from runtimed.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
)
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.tasks.bundle import DIRECTORY
from runtimed.tasks.client import Process, Status, Stdio
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager
from tests.fakes.tasks import NS, TaskDaemon, gone, short_home

pytestmark = pytest.mark.root

REPO = Path(__file__).parents[3]


@pytest.fixture
def home():
    with short_home() as home:
        yield home


@pytest.fixture
def shim(home):
    """The program of a runtime, as somebody would install it."""
    program = home / "containerd-shim-fake-v1"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPO} exec {sys.executable} {REPO}/tests/fakes/shim.py "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
async def daemon(home):
    daemon = await TaskDaemon(home).start()
    yield daemon
    await daemon.stop()


@pytest.fixture
async def created(daemon: TaskDaemon, shim: Path) -> int:
    return await daemon.tasks.create(NS, await daemon.container("t1", shim))


@pytest.fixture
async def running(daemon: TaskDaemon, created: int) -> int:
    await daemon.tasks.start(NS, "t1", "")
    return created


async def test_a_task_lives_from_create_to_delete(daemon, shim):
    new = await daemon.container(
        "t1", shim, fake={"argv": ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done"]}
    )
    new = NewTask(id=new.id, stdio=Stdio(stdout="/dev/null", terminal=True))
    pid = await daemon.tasks.create(NS, new)
    shim_pid = daemon.shim_pid("t1")
    assert await daemon.tasks.start(NS, "t1", "") == pid

    await daemon.tasks.kill(NS, "t1", "", signal.SIGTERM, all=False)
    exited = await daemon.tasks.wait(NS, "t1", "")
    state = await daemon.tasks.get(NS, "t1")
    assert (state.status, state.exit_status, state.exited_at) == (Status.STOPPED, exited.status, exited.exited_at)
    assert state.stdio == new.stdio

    deleted = await daemon.tasks.delete(NS, "t1")
    assert (deleted.pid, deleted.status) == (pid, exited.status)
    assert not daemon.bundle("t1").exists()
    await gone(shim_pid)
    with pytest.raises(NotFound, match="task t1: not found"):
        await daemon.tasks.get(NS, "t1")
    assert await daemon.topics("/tasks/delete") == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.mark.parametrize("answer", ["json", "address", "protobuf"])
async def test_a_shim_may_answer_in_each_of_three_ways(daemon, shim, answer):
    await daemon.tasks.create(NS, await daemon.container("t1", shim, fake={"answer": answer}))
    assert (await daemon.tasks.get(NS, "t1")).status is Status.CREATED
    await daemon.tasks.delete(NS, "t1")


async def test_a_shim_is_found_on_path_by_its_runtimes_name(daemon, shim, monkeypatch):
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    await daemon.tasks.create(NS, await daemon.container("t1", "io.containerd.fake.v1"))
    assert (daemon.bundle("t1") / "shim-binary-path").read_text() == str(shim)
    await daemon.tasks.delete(NS, "t1")


async def test_a_shim_that_is_not_installed_is_named(daemon):
    new = await daemon.container("t1", "io.containerd.nosuch.v9")
    with pytest.raises(RuntimedError) as raised:
        await daemon.tasks.create(NS, new)
    assert 'runtime "io.containerd.nosuch.v9" binary not installed "containerd-shim-nosuch-v9": ' in str(raised.value)
    assert type(raised.value) is RuntimedError
    assert not daemon.bundle("t1").exists()


async def test_a_task_needs_a_container(daemon):
    with pytest.raises(NotFound):
        await daemon.tasks.create(NS, NewTask(id="t1"))


async def test_of_two_creates_at_once_one_wins(daemon, shim):
    new = await daemon.container("t1", shim)
    results = await asyncio.gather(daemon.tasks.create(NS, new), daemon.tasks.create(NS, new), return_exceptions=True)
    assert {type(result) for result in results} == {int, AlreadyExists}
    await daemon.tasks.delete(NS, "t1")


async def test_the_same_id_in_another_namespace_is_another_task(daemon, shim, created):
    spec = Opaque("", b"{}")
    await daemon.database.write(containers.create, "other", Container(id="t1", runtime=str(shim), spec=spec))
    with pytest.raises(NotFound):
        await daemon.tasks.get("other", "t1")


async def test_a_create_that_the_runtime_refuses_leaves_nothing(daemon, shim):
    new = await daemon.container("t1", shim, fake={"create_error": "OCI runtime create failed: no"})
    with pytest.raises(RuntimedError, match="^failed to create shim task: OCI runtime create failed: no$"):
        await daemon.tasks.create(NS, new)
    assert not daemon.bundle("t1").exists()
    assert list(daemon.home.glob("*.shim")) == []
    assert await daemon.tasks.list(NS) == []


async def test_a_shim_that_does_not_start_says_why(daemon, shim):
    new = await daemon.container("t1", shim, fake={"start_error": "out of luck"})
    with pytest.raises(RuntimedError, match="failed to start shim: .*exit status 1: out of luck"):
        await daemon.tasks.create(NS, new)
    assert not daemon.bundle("t1").exists()


@pytest.mark.parametrize("step", ["begun", "bundle", "shim", "connected", "made", "marked"])
async def test_a_create_that_fails_at_a_step_leaves_nothing_and_frees_the_name(daemon, shim, monkeypatch, step):
    monkeypatch.setattr(failpoints, "_points", failpoints.parse(f"create.{step}=1*error(no luck)"))
    new = await daemon.container("t1", shim)
    with pytest.raises(RuntimedError, match="no luck"):
        await daemon.tasks.create(NS, new)
    assert not daemon.bundle("t1").exists()
    assert await daemon.tasks.list(NS) == []
    await daemon.tasks.create(NS, new)
    await daemon.tasks.delete(NS, "t1")


async def test_a_create_that_is_cancelled_leaves_nothing_and_frees_the_name(daemon, shim):
    new = await daemon.container("t1", shim, fake={"create_s": 0.3})
    creating = asyncio.create_task(daemon.tasks.create(NS, new))
    await daemon.topics("/fake/creating")
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not daemon.bundle("t1").exists()
    await daemon.tasks.create(NS, new)
    await daemon.tasks.delete(NS, "t1")


async def test_a_running_task_cannot_be_deleted(daemon, running):
    with pytest.raises(FailedPrecondition, match="it is running"):
        await daemon.tasks.delete(NS, "t1")
    assert (await daemon.tasks.get(NS, "t1")).status is Status.RUNNING


async def test_of_two_deletes_at_once_one_finds_nothing(daemon, created):
    results = await asyncio.gather(daemon.tasks.delete(NS, "t1"), daemon.tasks.delete(NS, "t1"), return_exceptions=True)
    assert [type(result) for result in results].count(NotFound) == 1


async def test_an_exec_is_a_process_of_its_own(daemon, running):
    await daemon.tasks.exec(NS, "t1", "e1", Stdio(), Opaque("", b"{}"))
    pid = await daemon.tasks.start(NS, "t1", "e1")
    assert pid != running
    assert {pid for pid, _ in await daemon.tasks.pids(NS, "t1")} == {running, pid}
    await daemon.tasks.kill(NS, "t1", "e1", signal.SIGTERM, all=False)
    assert (await daemon.tasks.wait(NS, "t1", "e1")).status == 143
    assert (await daemon.tasks.delete_exec(NS, "t1", "e1")).status == 143
    assert (await daemon.tasks.get(NS, "t1")).status is Status.RUNNING


async def test_when_a_shim_dies_its_task_ends_with_it(daemon, running):
    waiting = asyncio.create_task(daemon.tasks.wait(NS, "t1", ""))
    await daemon.topics("/tasks/start")
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    exited = await waiting
    assert (exited.pid, exited.status) == (running, 137)
    assert await daemon.topics("/tasks/delete") == ["/tasks/exit", "/tasks/delete"]
    await gone(running)
    assert not daemon.bundle("t1").exists()
    with pytest.raises(NotFound):
        await daemon.tasks.get(NS, "t1")


async def test_an_exit_that_was_told_is_not_told_again_when_the_shim_dies(daemon, running):
    os.kill(running, signal.SIGTERM)
    await daemon.topics("/tasks/exit")
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    assert await daemon.topics("/tasks/delete") == ["/tasks/delete"]


async def test_a_wait_ends_when_the_daemon_stops_and_says_so(daemon, running):
    waiting = asyncio.create_task(daemon.tasks.wait(NS, "t1", ""))
    await asyncio.sleep(0)
    daemon.tasks.end_waits()
    with pytest.raises(Unavailable, match="the daemon is stopping"):
        await waiting
    with pytest.raises(Unavailable, match="the daemon is stopping"):
        await daemon.tasks.wait(NS, "t1", "")


async def test_a_wait_can_be_given_up(daemon, running):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await daemon.tasks.wait(NS, "t1", "")


@pytest.fixture
def full(daemon):
    """A file that fills the state directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "rt-test", daemon.state], check=True)
    with suppress(OSError):
        (daemon.state / "filler").write_bytes(b"x" * 128 * 1024)
    yield daemon.state / "filler"
    subprocess.run(["umount", "-l", daemon.state], check=True)


async def test_a_full_disk_is_said_and_leaves_nothing(daemon, shim, full):
    new = await daemon.container("t1", shim)
    with pytest.raises(ResourceExhausted, match="bundle .*: No space left on device"):
        await daemon.tasks.create(NS, new)
    assert not daemon.bundle("t1").exists()
    full.unlink()
    await daemon.tasks.create(NS, new)
    await daemon.tasks.delete(NS, "t1")


async def test_a_shim_that_dies_of_a_delete_is_cleaned_up_after(daemon, shim):
    await daemon.tasks.create(NS, await daemon.container("t1", shim, fake={"dies": True}))
    with pytest.raises(RuntimedError):
        await daemon.tasks.delete(NS, "t1")
    await daemon.topics("/tasks/delete")
    assert not daemon.bundle("t1").exists()


async def test_a_running_task_is_found_again_after_a_restart(daemon, running):
    await daemon.restart()
    assert await daemon.tasks.list(NS) == [Process(container_id="t1", pid=running, status=Status.RUNNING)]
    waiting = asyncio.create_task(daemon.tasks.wait(NS, "t1", ""))
    await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=False)
    assert (await waiting).status == 137
    assert (await daemon.tasks.delete(NS, "t1")).pid == running


async def test_a_task_that_ended_while_the_daemon_was_away_has_its_status(daemon, running):
    await daemon.topics("/tasks/start")
    await daemon.stop()
    os.kill(running, signal.SIGTERM)
    await gone(running)
    await daemon.start()
    assert (await daemon.tasks.get(NS, "t1")).exit_status == 143
    assert await daemon.topics("/tasks/exit") == ["/tasks/exit"]
    assert (await daemon.tasks.delete(NS, "t1")).status == 143


async def test_a_shim_that_died_while_the_daemon_was_away_leaves_nothing_but_its_end(daemon, running):
    await daemon.topics("/tasks/start")
    await daemon.stop()
    os.kill(daemon.shim_pid("t1"), signal.SIGKILL)
    await daemon.start()
    assert await daemon.topics("/tasks/delete") == ["/tasks/exit", "/tasks/delete"]
    await gone(running)
    assert not daemon.bundle("t1").exists()
    assert await daemon.tasks.list(NS) == []


async def test_half_a_bundle_is_removed_at_the_start(daemon):
    await daemon.stop()
    daemon.bundle("half").mkdir(parents=True)
    (daemon.bundle("half") / ".config.json").write_text("{")
    work = daemon.root / DIRECTORY / NS / "only-work"
    work.mkdir(parents=True)
    await daemon.start()
    assert not daemon.bundle("half").exists()
    assert not work.exists()


async def test_a_shim_without_its_task_is_ended_at_the_start(daemon, shim):
    new = await daemon.container("t1", shim, fake={"create_s": 3600})
    creating = asyncio.create_task(daemon.tasks.create(NS, new))
    await daemon.topics("/fake/creating")
    pid = daemon.shim_pid("t1")
    manager = TaskManager(
        daemon.database,
        daemon.events,
        daemon.launcher,
        daemon.content,
        root=daemon.root,
        state=daemon.state,
        default_runtime="",
    )
    await manager.load()  # as a daemon that comes after one that died in the middle
    assert not daemon.bundle("t1").exists()
    await gone(pid)
    with pytest.raises(RuntimedError):
        await creating
    await manager.close()


async def test_a_stuck_shim_costs_its_own_task_only(daemon, shim, running):
    other = await daemon.tasks.create(NS, await daemon.container("t2", shim))
    pid = daemon.shim_pid("t1")
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(8):
        await daemon.restart()
        states = {state.container_id: state for state in await daemon.tasks.list(NS)}
    assert states["t1"].status is Status.UNKNOWN
    assert (states["t2"].pid, states["t2"].status) == (other, Status.CREATED)
    await daemon.tasks.delete(NS, "t2")

    deleted = await daemon.tasks.delete(NS, "t1")
    assert deleted.status == 137
    await gone(pid)
    await gone(running)
    assert not daemon.bundle("t1").exists()
