"""What happens to a shim in the field: storms, zombies, clients that do not read, a runtime that is killed, limits."""

import asyncio
import os
import resource
import signal
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import ResourceExhausted, RuntimedError
from runtimed.mounts import mounts_below
from tests.integration.shim.conftest import CGROUPS, cgroups_left, eventually, exists, fds_of, proc
from tests.processes import children, descendants

pytestmark = pytest.mark.root


def is_zombie(pid):
    return proc(pid, "stat").rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
async def test_of_a_storm_of_execs_that_end_at_once_each_has_one_exit(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    names = [f"e{number}" for number in range(200)]
    ahead = asyncio.Semaphore(16)

    async def one(name):
        async with ahead:
            await shim.exec("t1", name, f"exit {int(name[1:]) % 7}")
            await shim.Start(pb.StartRequest(id="t1", exec_id=name))
            status = (await shim.wait("t1", name)).exit_status
            await shim.delete("t1", name)
            return status

    assert await asyncio.gather(*map(one, names)) == [number % 7 for number in range(200)]
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.events.of("/tasks/exit", "t1")
    started = [event.exec_id for topic, event in shim.events.received if topic == "/tasks/exec-started"]
    exited = [event.id for topic, event in shim.events.received if topic == "/tasks/exit"]
    assert sorted(started) == sorted(names)
    assert sorted(exited) == sorted([*names, "t1"])
    order = [
        (topic, getattr(event, "exec_id", "") or getattr(event, "id", "")) for topic, event in shim.events.received
    ]
    for name in names:
        assert order.index(("/tasks/exec-started", name)) < order.index(("/tasks/exit", name))
    assert shim.others() == []


async def test_a_container_that_forks_zombies_and_double_forks_leaves_none(shim, bundle, tmp_path):
    # In the host's pid namespace, so that its orphans become the shim's children.
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do (true & (sleep 0.01 &) ); done; exec sleep 300"
    pid = await shim.run("t1", bundle(script, pid_namespace=False))
    await eventually(lambda: proc(pid, "comm") == "sleep\n")
    await eventually(lambda: shim.others() == [pid])
    assert not is_zombie(pid)
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137


async def test_a_client_that_opens_no_end_and_never_reads_holds_up_its_container_only(shim, bundle, fifo):
    out = fifo("out")
    flood = bundle("exec yes")
    pid = await shim.run("t1", flood, stdout=str(out), stderr=str(fifo("err")))
    await eventually(lambda: "pipe" in proc(pid, "wchan") or proc(pid, "wchan") == "0")
    await shim.run("t2", bundle("exit 3"))
    assert (await shim.wait("t2")).exit_status == 3
    await shim.delete("t2")
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    await shim.delete("t1")


async def test_a_client_that_closes_early_and_comes_back_goes_on_reading(shim, bundle, fifo):
    out = fifo("out")
    first = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    await shim.run("t1", bundle("while echo line; do sleep 0.01; done"), stdout=str(out))
    os.set_blocking(first, True)
    assert (await asyncio.to_thread(os.read, first, 5)) == b"line\n"
    os.close(first)
    again = os.open(out, os.O_RDONLY)
    assert b"line\n" in await asyncio.to_thread(os.read, again, 4096)
    os.close(again)
    assert (await shim.state("t1")).status == 2  # running
    await shim.kill("t1")
    await shim.wait("t1")


async def test_a_runtime_that_is_killed_while_it_creates_leaves_nothing_and_the_name_is_free(
    shim, bundle, tmp_path, runc_root
):
    hooks = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"]}]}
    creating = asyncio.create_task(shim.create("t1", bundle(hooks=hooks)))
    await eventually(lambda: any(proc(child, "cmdline").startswith("runc\0") for child in children(shim.worker)))
    runc = next(child for child in children(shim.worker) if proc(child, "cmdline").startswith("runc\0"))
    await eventually(lambda: any("sleep" in proc(child, "comm") for child in descendants(runc)))
    hook = next(child for child in descendants(runc) if "sleep" in proc(child, "comm"))
    os.kill(runc, signal.SIGKILL)
    with pytest.raises(RuntimedError, match="OCI runtime create failed"):
        await creating
    os.kill(hook, signal.SIGKILL)
    await eventually(lambda: not exists(hook))
    assert list((runc_root / "test").iterdir()) == []
    assert mounts_below(tmp_path) == []
    assert cgroups_left() == []
    await shim.run("t1", bundle("exit 4"))
    assert (await shim.wait("t1")).exit_status == 4


@pytest.mark.parametrize("work", ["", 'runc "$@";'], ids=["before", "after"])
@pytest.mark.parametrize("command", ["start", "exec", "delete"])
async def test_a_runtime_that_is_killed_before_or_after_its_work_is_an_error_and_all_can_be_given_back(
    shim, bundle, options, tmp_path, command, work
):
    program = tmp_path / "program"
    once = f'case " $* " in *" {command} "*) mkdir {tmp_path}/once 2>/dev/null && {{ {work} kill -9 $$; }};; esac'
    program.write_text(f'#!/bin/sh\n{once}\nexec runc "$@"\n')
    program.chmod(0o755)
    pid = (await shim.create("t1", bundle("exec sleep 300"), options=options(binary_name=str(program)))).pid
    if command == "start":
        with pytest.raises(RuntimedError, match="OCI runtime start failed"):
            await shim.Start(pb.StartRequest(id="t1"))
    else:
        await shim.Start(pb.StartRequest(id="t1"))
    if command == "exec":
        await shim.exec("t1", "e1", "exec sleep 301")
        with pytest.raises(RuntimedError, match="OCI runtime exec failed"):
            await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
        assert [entry.pid for entry in (await shim.Pids(pb.PidsRequest(id="t1"))).processes] == [pid]
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    if command == "delete":
        with pytest.raises(RuntimedError, match="OCI runtime delete failed"):
            await shim.delete("t1")
    assert (await shim.delete("t1")).exit_status == 137
    assert shim.others() == []
    await shim.events.of("/tasks/delete")
    assert shim.events.topics.count("/tasks/exit") == 1


@pytest.fixture
def process_limit():
    """Put processes into a cgroup that may have so many; a function returns the file of its limit."""
    root = Path("/sys/fs/cgroup/pids")
    root = root if root.is_dir() else root.parent
    group = root / f"{CGROUPS}-limit"
    group.mkdir()

    def limit(*pids):
        (group / "pids.max").write_text(str(len(pids)))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        return group / "pids.max"

    yield limit
    for pid in (group / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    group.rmdir()


async def test_at_the_limit_of_processes_what_is_new_is_refused_and_what_runs_goes_on(shim, bundle, process_limit):
    await shim.run("t1", bundle("exec sleep 300"))
    limit = process_limit(shim.pid, shim.worker)
    with pytest.raises(ResourceExhausted, match=r"no process can be started: a limit is reached, pids\.max"):
        await shim.create("t2", bundle("exit 0"))
    assert (await shim.state("t1")).status == 2  # running
    await shim.rested()
    limit.write_text("1")  # not even for a worker
    asking = asyncio.create_task(shim.state("t1"))
    await asyncio.sleep(0.5)
    assert not asking.done()
    limit.write_text("max")
    assert (await asking).status == 2
    await shim.run("t2", bundle("exit 5"))
    assert (await shim.wait("t2")).exit_status == 5
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137


async def test_at_the_limit_of_descriptors_what_is_new_is_refused_and_what_runs_goes_on(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    worker = shim.worker
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (len(fds_of(worker)), before[1]))
    with pytest.raises(ResourceExhausted, match="Too many open files"):
        await shim.create("t2", bundle("exit 0"))
    assert (await shim.state("t1")).status == 2  # running
    resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
    await shim.run("t2", bundle("exit 5"))
    assert (await shim.wait("t2")).exit_status == 5
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
