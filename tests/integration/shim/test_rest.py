"""A shim at rest: its worker has ended, and what happens has the keeper start another."""

import asyncio
import json
import os
import select
import signal
import time

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import DeadlineExceeded, NotFound, Unavailable
from runtimed.rpc import ttrpc
from tests.integration.shim.conftest import TASK, cgroups_left, eventually, exists, fds_of, proc
from tests.integration.shim.test_faults import is_zombie
from tests.processes import children

pytestmark = pytest.mark.root


async def is_at_rest_for(shim, seconds):
    """Whether nothing wakes the shim for some time."""
    for _ in range(int(seconds / 0.05)):
        if shim.worker:
            return False
        await asyncio.sleep(0.05)
    return True


async def test_a_request_wakes_it_and_finds_all_as_it_was(shim, bundle, fifo):
    await shim.run("t1", bundle("exec sleep 300"), stdout=str(fifo("out")))
    await shim.exec("t1", "e1", "exit 3")
    before = await shim.state("t1"), await shim.state("t1", "e1")
    first = shim.worker
    await shim.rested()
    assert (await shim.state("t1"), await shim.state("t1", "e1")) == before
    assert shim.worker not in {0, first}
    assert (await shim.Connect(pb.ConnectRequest(id="t1"))).shim_pid == shim.pid
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert (await shim.wait("t1", "e1")).exit_status == 3
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    await shim.delete("t1")
    await shim.events.of("/tasks/delete")
    assert shim.events.topics == [
        *("/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"),
        *("/tasks/exit", "/tasks/exit", "/tasks/delete"),
    ]


async def test_it_costs_a_fraction_of_what_one_at_work_does(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.rested()
    lines = [line.split() for line in proc(shim.pid, "smaps_rollup").splitlines()]
    assert sum(int(words[1]) for words in lines if words[0].startswith("Private_")) < 1200  # KiB


async def test_nothing_wakes_it_that_is_not_for_it(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.rested()
    assert await is_at_rest_for(shim, 3)


async def test_a_new_client_wakes_it_and_one_that_leaves_is_forgotten(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.rested()
    held = len(fds_of(shim.pid))
    other = await ttrpc.Client.connect(shim.path)
    state = await other.call(TASK, "State", pb.StateRequest(id="t1"), pb.StateResponse, timeout_s=10)
    assert state == await shim.state("t1")
    await shim.rested()
    assert len(fds_of(shim.pid)) == held + 1
    await other.close()
    await eventually(lambda: shim.worker)
    await shim.rested()
    assert len(fds_of(shim.pid)) == held


async def test_the_end_of_a_container_is_told_once_with_its_time_to_all_who_wait(shim, bundle, fifo):
    pid = await shim.run("t1", bundle("read line; exit 7"), stdin=str(fifo("in")))
    waiting = [asyncio.create_task(shim.wait("t1")) for _ in range(3)]
    await shim.rested()
    before = time.time_ns()
    os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(*waiting)
    after = time.time_ns()
    assert {answer.exit_status for answer in answers} == {137}
    assert before <= answers[0].exited_at.ToNanoseconds() <= after
    exit = await shim.events.of("/tasks/exit")
    assert (exit.exit_status, exit.pid, exit.exited_at) == (137, pid, answers[0].exited_at)
    await shim.rested()
    assert (await shim.state("t1")).status == 3  # stopped
    await shim.delete("t1")
    await shim.events.of("/tasks/delete")
    assert shim.events.topics.count("/tasks/exit") == 1


async def test_the_end_of_an_exec_is_told_once(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.exec("t1", "e1", "exec sleep 300")
    pid = (await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))).pid
    waiting = asyncio.create_task(shim.wait("t1", "e1"))
    await shim.rested()
    os.kill(pid, signal.SIGTERM)
    assert (await waiting).exit_status == 143
    await shim.events.of("/tasks/exit", "e1")
    await shim.rested()
    await shim.delete("t1", "e1")
    with pytest.raises(NotFound):
        await shim.state("t1", "e1")
    await shim.events.of("/tasks/exit", "e1")
    assert shim.events.topics.count("/tasks/exit") == 1


async def test_orphans_are_reaped_without_waking_it(shim, bundle):
    # In the host's pid namespace, so that its orphans become the shim's children.
    script = "while true; do (true & (sleep 0.01 &) ); sleep 0.1; done"
    pid = await shim.run("t1", bundle(script, pid_namespace=False))
    await shim.rested()
    assert await is_at_rest_for(shim, 2)
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: children(shim.pid) == [pid])
    os.kill(pid, signal.SIGCONT)
    assert not is_zombie(pid)


async def test_a_wait_with_a_deadline_keeps_it(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    waiting = asyncio.create_task(shim.client.call(TASK, "Wait", pb.WaitRequest(id="t1"), pb.WaitResponse, timeout_s=4))
    await shim.rested()
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert (await shim.state("t1")).status == 2  # running


async def test_input_that_comes_goes_on_to_the_container(shim, bundle, fifo, tmp_path):
    stdin, out = fifo("in"), tmp_path / "out"
    out.touch()
    await shim.run("t1", bundle("exec cat"), stdin=str(stdin), stdout=f"file://{out}")
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"one ")
    await eventually(lambda: out.read_text() == "one ")
    await shim.rested()
    os.write(writer, b"two")
    await eventually(lambda: out.read_text() == "one two")
    await shim.rested()
    await shim.CloseIO(pb.CloseIORequest(id="t1", stdin=True))
    await shim.rested()
    os.close(writer)
    assert (await shim.wait("t1")).exit_status == 0


async def test_a_terminal_goes_on(shim, bundle, fifo):
    stdin, stdout = fifo("in"), fifo("out")
    reader = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
    await shim.run("t1", bundle("cat", terminal=True), terminal=True, stdin=str(stdin), stdout=str(stdout))
    os.set_blocking(reader, True)
    writer = os.open(stdin, os.O_WRONLY)
    await shim.rested()
    os.write(writer, b"hello\n")
    got = b""
    while got.count(b"hello") < 2:  # the terminal's echo, and cat
        got += await asyncio.to_thread(os.read, reader, 4096)
    await shim.rested()
    await shim.ResizePty(pb.ResizePtyRequest(id="t1", width=80, height=25))
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    await shim.delete("t1")
    os.close(reader)
    os.close(writer)


async def test_a_log_in_kubernetes_format_goes_on(shim, bundle, fifo, tmp_path):
    stdin, log = fifo("in"), tmp_path / "log"
    await shim.run("t1", bundle("exec cat"), stdin=str(stdin), stdout=f"cri://{log}")
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"one\nhalf")
    await eventually(lambda: b" stdout F one\n" in log.read_bytes())
    await shim.rested()
    os.write(writer, b" line\n")
    await eventually(lambda: b" stdout F half line\n" in log.read_bytes())
    os.close(writer)
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137


async def test_running_out_of_memory_is_told(shim, bundle):
    path = bundle("exec sleep 300")
    spec = json.loads((path / "config.json").read_text())
    spec["linux"]["resources"] = {"memory": {"limit": 16 << 20}}
    (path / "config.json").write_text(json.dumps(spec))
    await shim.run("t1", path)
    await shim.rested()
    await shim.exec("t1", "e2", "exec tail /dev/zero")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e2"))
    assert (await shim.wait("t1", "e2")).exit_status == 137
    await shim.events.of("/tasks/oom")


async def test_a_container_that_is_paused_can_be_resumed(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.Pause(pb.PauseRequest(id="t1"))
    await shim.rested()
    await shim.Resume(pb.ResumeRequest(id="t1"))
    assert (await shim.state("t1")).status == 2  # running


async def test_a_program_that_takes_output_goes_on_and_its_end_is_noticed(shim, bundle, fifo, tmp_path):
    stdin, program, log = fifo("in"), tmp_path / "program", tmp_path / "log"
    program.write_text(f"#!/bin/sh\nexec 5<&-\nwhile read -r line <&3; do echo $line >> {log}; done\n")
    program.chmod(0o755)
    await shim.run("t1", bundle("exec cat"), stdin=str(stdin), stdout=f"binary://{program}")
    (logger,) = [pid for pid in shim.others() if "program" in proc(pid, "comm")]
    await shim.rested()
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"one\n")
    await eventually(lambda: log.exists() and log.read_text() == "one\n")
    await shim.rested()
    os.kill(logger, signal.SIGKILL)
    await eventually(lambda: not exists(logger))  # reaped
    for _ in range(2):  # together more than a pipe holds
        os.write(writer, b"x" * 60000 + b"\n")
        await eventually(lambda: select.select([], [writer], [], 0)[1])
        await shim.rested()
    os.close(writer)
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    await shim.delete("t1")
    assert shim.others() == []


async def test_events_that_nobody_takes_wait_while_it_rests(shim, bundle, events):
    await shim.run("t1", bundle("exec sleep 300"))
    await events.of("/tasks/start")
    await events.close()
    pid = (await shim.state("t1")).pid
    os.kill(pid, signal.SIGKILL)
    await shim.wait("t1")
    await shim.rested()
    await events.open()
    await shim.Connect(pb.ConnectRequest(id="t1"))
    await events.of("/tasks/exit")
    await shim.rested()
    assert events.topics.count("/tasks/exit") == 1


async def test_a_daemon_that_comes_back_finds_it_and_hears_what_happens_then(shim, bundle, events):
    pid = await shim.run("t1", bundle("exec sleep 300"))
    await events.of("/tasks/start")
    await shim.rested()
    await shim.client.close()
    await events.close()
    await eventually(lambda: shim.worker)
    await shim.rested()
    await events.open()
    shim.client = await ttrpc.Client.connect(shim.path)
    assert (await shim.Connect(pb.ConnectRequest(id="t1"))).task_pid == pid
    await shim.rested()
    os.kill(pid, signal.SIGKILL)
    assert (await events.of("/tasks/exit")).exit_status == 137


async def test_many_tasks_go_over_and_each_keeps_its_own_end(shim, bundle, fifo):
    ids = [f"t{number}" for number in range(50)]
    for number, id in enumerate(ids):
        script = f"trap 'exit {number}' TERM; while true; do sleep 300 & wait; done"
        streams = {"stdin": str(fifo(f"{id}-in")), "stdout": str(fifo(f"{id}-out")), "stderr": str(fifo(f"{id}-err"))}
        await shim.run(id, bundle(script), **streams)
    assert len(fds_of(shim.worker)) > 250
    waiting = {id: asyncio.create_task(shim.Wait(pb.WaitRequest(id=id))) for id in ids}
    await shim.rested()
    pids = {id: (await shim.state(id)).pid for id in ids}
    await shim.rested()
    for id in ids:
        os.kill(pids[id], signal.SIGTERM)
    for number, id in enumerate(ids):
        assert (await waiting[id]).exit_status == number
        await shim.delete(id)
    ends = [event.id for topic, event in shim.events.received if topic == "/tasks/exit"]
    assert sorted(ends) == sorted(ids)


@pytest.mark.parametrize("which", ["keeper", "worker"])
async def test_when_one_of_its_processes_is_killed_the_other_goes_too(fork, bundle, bind, which, tmp_path):
    answer, path = fork()
    keeper = answer["pid"]
    client = await ttrpc.Client.connect(path)
    connected = await client.call(TASK, "Connect", pb.ConnectRequest(id="t1"), pb.ConnectResponse, timeout_s=10)
    assert connected.shim_pid == keeper
    (worker,) = children(keeper)
    os.kill({"keeper": keeper, "worker": worker}[which], signal.SIGKILL)
    await eventually(lambda: not exists(keeper) and not exists(worker))
    with pytest.raises(Unavailable):
        await client.call(TASK, "State", pb.StateRequest(id="t1"), pb.StateResponse, timeout_s=10)
    await client.close()
    path.unlink()


async def test_sigterm_ends_it_if_it_has_no_task(shim, bundle):
    await shim.run("t1", bundle("exec sleep 300"))
    await shim.rested()
    os.kill(shim.pid, signal.SIGTERM)
    await eventually(lambda: shim.worker)
    await shim.rested()
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.delete("t1")
    assert cgroups_left() == []
    await shim.rested()
    os.kill(shim.pid, signal.SIGTERM)
    await shim.ended()


async def test_one_that_is_stopped_goes_on_where_it_was(shim, bundle):
    pid = await shim.run("t1", bundle("exec sleep 300"))
    await shim.rested()
    os.kill(shim.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            await shim.client.call(TASK, "State", pb.StateRequest(id="t1"), pb.StateResponse, timeout_s=0.5)
        os.kill(pid, signal.SIGKILL)
    finally:
        os.kill(shim.pid, signal.SIGCONT)
    assert (await shim.wait("t1")).exit_status == 137


async def test_one_whose_keeper_alone_is_stopped_tells_an_end_later(shim, bundle):
    pid = await shim.run("t1", bundle("exec sleep 300"))
    os.kill(shim.pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        assert (await shim.state("t1")).status == 2  # running, as far as it is known
    finally:
        os.kill(shim.pid, signal.SIGCONT)
    assert (await shim.wait("t1")).exit_status == 137
    await shim.events.of("/tasks/exit")
    assert shim.events.topics.count("/tasks/exit") == 1
