"""A real shim, forked by a real nursery, with real runc containers."""

import asyncio
import json
import os
import signal

import pytest

from runtimed.api import runc_options_pb2 as runc_pb
from runtimed.api import task_types_pb2 as types
from runtimed.api import task_v2_pb2, types_pb2
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimedError, Unimplemented
from runtimed.mounts import mounts_below
from tests.integration.shim.conftest import eventually, exists, proc

pytestmark = pytest.mark.root


def status_of(error):
    """Return the class that an error has on the wire, where subclasses are codes."""
    return type(error.value)


async def test_a_task_runs_to_its_exit_status(shim, bundle, tmp_path):
    path = bundle("echo hello; exit 7")
    output = tmp_path / "stdout"
    created = await shim.create("t1", path, stdout=f"file://{output}")
    assert (path / "init.pid").read_text() == str(created.pid)
    started = await shim.Start(pb.StartRequest(id="t1"))
    assert started.pid == created.pid

    exited = await shim.wait("t1")
    assert exited.exit_status == 7
    assert output.read_text() == "hello\n"
    state = await shim.state("t1")
    assert (state.status, state.exit_status, state.exited_at) == (types.STOPPED, 7, exited.exited_at)

    deleted = await shim.delete("t1")
    assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (created.pid, 7, exited.exited_at)
    with pytest.raises(NotFound, match="task 't1'"):
        await shim.state("t1")
    await shim.events.of("/tasks/delete")
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert shim.events.namespaces == {"test"}
    event = await shim.events.of("/tasks/exit")
    assert (event.container_id, event.id, event.pid, event.exit_status) == ("t1", "t1", created.pid, 7)


async def test_both_versions_of_the_service_are_served(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    request = task_v2_pb2.StateRequest(id="t1")
    state = await shim.client.call("containerd.task.v2.Task", "State", request, task_v2_pb2.StateResponse)
    assert state.status == types.RUNNING


async def test_a_method_that_there_is_not_is_unimplemented(shim):
    with pytest.raises(Unimplemented, match="Migrate"):
        await shim.client.call("containerd.task.v3.Task", "Migrate", pb.StateRequest(), pb.StateResponse)


async def test_a_killed_task_has_128_and_the_signal_as_its_status(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.kill("t1", signal.SIGKILL)
    assert (await shim.wait("t1")).exit_status == 137


async def test_a_running_task_cannot_be_deleted(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    with pytest.raises(FailedPrecondition, match="cannot delete task 't1': it is running"):
        await shim.delete("t1")


async def test_a_created_task_can_be_deleted(shim, bundle):
    await shim.create("t1", bundle("exec sleep 60"))
    assert (await shim.delete("t1")).exit_status == 137
    await shim.events.of("/tasks/delete")
    assert shim.events.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


async def test_a_task_starts_once(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    with pytest.raises(FailedPrecondition, match="cannot start task 't1': it is running"):
        await shim.Start(pb.StartRequest(id="t1"))


async def test_a_task_that_has_not_been_created_cannot_be_started(shim):
    with pytest.raises(NotFound):
        await shim.Start(pb.StartRequest(id="t1"))


async def test_of_two_creates_at_once_one_wins(shim, bundle):
    path = bundle("exec sleep 60")
    results = await asyncio.gather(shim.create("t1", path), shim.create("t1", path), return_exceptions=True)
    assert {type(result) for result in results} == {pb.CreateTaskResponse, AlreadyExists}


@pytest.mark.parametrize("id", ["", "../t1", "-t1", "a" * 77])
async def test_an_id_that_is_none_is_refused(shim, bundle, id):
    with pytest.raises(InvalidArgument):
        await shim.create(id, bundle())
    shim.ids.clear()


async def test_a_failed_create_leaves_nothing(shim, bundle, runc_root):
    path = bundle(args=["/no/such/program"])
    with pytest.raises(RuntimedError, match="OCI runtime create failed: .*/no/such/program.*no such file") as error:
        await shim.create("t1", path)
    assert status_of(error) is RuntimedError
    assert mounts_below(path) == []
    assert list((runc_root / "test").iterdir()) == []
    await shim.create("t1", bundle("exit 0"))  # the ID is free again
    await shim.events.of("/tasks/create")
    assert shim.events.topics == ["/tasks/create"]


async def test_docker_finds_its_words_in_the_error_of_a_missing_program(shim, bundle):
    with pytest.raises(
        RuntimedError, match='OCI runtime create failed: .*exec: "nosuch": executable file not found in'
    ):
        await shim.create("t1", bundle(args=["nosuch"]))


async def test_a_rootfs_that_cannot_be_mounted_fails_the_create(shim, bundle):
    path = bundle("exit 0")
    mounts = [
        shim.bind,
        types_pb2.Mount(type="bind", source="/no/such/directory", options=["rbind"]),
    ]
    with pytest.raises(NotFound, match="/no/such/directory"):
        await shim.Create(pb.CreateTaskRequest(id="t1", bundle=str(path), rootfs=mounts))
    assert mounts_below(path) == []


async def test_a_missing_runtime_is_named_with_the_remedy(shim, bundle, options):
    with pytest.raises(FailedPrecondition, match="'/no/such/runc': No such file or directory; install it on the PATH"):
        await shim.create("t1", bundle(), options=options(binary_name="/no/such/runc"))


async def test_the_options_of_a_task_are_honoured_and_written_down(shim, bundle, options, tmp_path):
    path = bundle("exec sleep 60")
    await shim.create("t1", path, options=options(root=str(tmp_path / "other"), no_new_keyring=True))
    assert (tmp_path / "other" / "test" / "t1" / "state.json").exists()
    assert json.loads((path / "options.json").read_bytes())["root"] == str(tmp_path / "other")
    assert (path / "runtime").read_text() == "runc"


async def test_options_of_another_runtime_are_refused(shim, bundle):
    with pytest.raises(InvalidArgument, match="options of type 'other.Options'"):
        await shim.create("t1", bundle(), options={"type_url": "other.Options"})


# Signals


async def test_a_task_that_has_ended_cannot_be_killed(shim, bundle):
    await shim.run("t1", bundle("exit 0"))
    await shim.wait("t1")
    with pytest.raises(NotFound, match="process already finished"):
        await shim.kill("t1")
    with pytest.raises(NotFound, match="process already finished"):
        await shim.kill("t1", all=True)
    await shim.delete("t1")
    with pytest.raises(NotFound):
        await shim.kill("t1")


async def test_a_signal_that_there_is_not_is_refused(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    with pytest.raises(InvalidArgument, match="signal 4000"):
        await shim.kill("t1", 4000)


async def test_kill_all_reaches_every_process(shim, bundle, fifo):
    started = fifo("started")
    reader = os.open(started, os.O_RDWR)
    script = "sleep 61 & trap 'wait; exit 3' TERM; echo up; wait; wait; exit 4"
    await shim.run("t1", bundle(script), stdout=str(started))
    assert os.read(reader, 10) == b"up\n"
    await shim.kill("t1", signal.SIGTERM, all=True)
    assert (await shim.wait("t1")).exit_status == 3
    os.close(reader)


async def test_what_is_left_in_the_hosts_pid_namespace_is_killed(shim, bundle, fifo):
    started = fifo("started")
    reader = os.open(started, os.O_RDWR)
    await shim.run("t1", bundle("sleep 61 & echo $!; exit 0", pid_namespace=False), stdout=str(started))
    left = int(os.read(reader, 20))
    await shim.wait("t1")
    await eventually(lambda: not exists(left))  # killed, and reaped by the shim
    os.close(reader)


async def test_a_task_can_be_paused_and_resumed(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.Pause(pb.PauseRequest(id="t1"))
    assert (await shim.state("t1")).status == types.PAUSED
    await shim.Resume(pb.ResumeRequest(id="t1"))
    assert (await shim.state("t1")).status == types.RUNNING
    with pytest.raises(RuntimedError, match="OCI runtime resume failed: container not paused") as error:
        await shim.Resume(pb.ResumeRequest(id="t1"))
    assert status_of(error) is RuntimedError
    await shim.events.of("/tasks/resumed")
    assert shim.events.topics[-2:] == ["/tasks/paused", "/tasks/resumed"]


async def test_a_paused_task_can_be_killed(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.Pause(pb.PauseRequest(id="t1"))
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137


# Further processes


async def test_an_exec_runs_in_the_container(shim, bundle, tmp_path):
    await shim.run("t1", bundle("exec sleep 60"))
    output = tmp_path / "out"
    await shim.exec("t1", "e1", "echo $WORD; exit 5", env=["WORD=blue"], stdout=f"file://{output}")
    assert (await shim.state("t1", "e1")).status == types.CREATED
    started = await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert started.pid > 0
    assert (await shim.wait("t1", "e1")).exit_status == 5
    assert output.read_text() == "blue\n"
    state = await shim.state("t1", "e1")
    assert (state.id, state.exec_id, state.status, state.exit_status) == ("e1", "e1", types.STOPPED, 5)
    assert (await shim.delete("t1", "e1")).pid == started.pid
    with pytest.raises(NotFound, match="exec 'e1' of task 't1'"):
        await shim.state("t1", "e1")
    event = await shim.events.of("/tasks/exit", "e1")
    assert (event.container_id, event.exit_status) == ("t1", 5)
    assert shim.events.topics[-3:] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]


async def test_an_exec_id_is_taken_until_it_is_deleted(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exit 0")
    with pytest.raises(AlreadyExists, match="exec 'e1'"):
        await shim.exec("t1", "e1", "exit 0")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    with pytest.raises(AlreadyExists):
        await shim.exec("t1", "e1", "exit 0")
    await shim.delete("t1", "e1")
    await shim.exec("t1", "e1", "exit 0")
    await shim.delete("t1", "e1")  # without a start


async def test_an_exec_can_be_killed_and_not_deleted_before(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exec sleep 60")
    with pytest.raises(FailedPrecondition, match="no process yet"):
        await shim.kill("t1", exec_id="e1")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    with pytest.raises(FailedPrecondition, match="it is running"):
        await shim.delete("t1", "e1")
    await shim.kill("t1", exec_id="e1")
    assert (await shim.wait("t1", "e1")).exit_status == 137
    with pytest.raises(NotFound):
        await shim.kill("t1", exec_id="e1")


async def test_who_waits_for_an_exec_that_is_deleted_unstarted_is_told(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exit 0")
    waiting = asyncio.create_task(shim.wait("t1", "e1"))
    await shim.state("t1", "e1")  # the Wait has arrived before this
    await shim.delete("t1", "e1")
    with pytest.raises(NotFound, match="never started"):
        await waiting


async def test_a_program_that_an_exec_does_not_find_is_named(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    request = pb.ExecProcessRequest(id="t1", exec_id="e1")
    request.spec.value = json.dumps({"args": ["nosuch"], "cwd": "/", "env": ["PATH=/bin"]}).encode()
    await shim.Exec(request)
    with pytest.raises(
        RuntimedError, match='OCI runtime exec failed: exec failed: .*"nosuch": executable file not found'
    ):
        await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.delete("t1", "e1")


@pytest.mark.parametrize("spec", [b"", b"\xff", b"[]", b"{"])
async def test_a_spec_that_is_none_is_refused(shim, bundle, spec):
    await shim.run("t1", bundle("exec sleep 60"))
    with pytest.raises(InvalidArgument, match="not the JSON of a process"):
        await shim.Exec(pb.ExecProcessRequest(id="t1", exec_id="e1", spec={"value": spec}))


async def test_an_exec_in_a_stopped_task_is_an_error(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "before", "exit 0")
    await shim.kill("t1")
    await shim.wait("t1")
    with pytest.raises(FailedPrecondition, match="stopped"):
        await shim.exec("t1", "after", "exit 0")
    with pytest.raises(FailedPrecondition, match="the task is stopped"):
        await shim.Start(pb.StartRequest(id="t1", exec_id="before"))


async def test_execs_exit_before_their_init_and_each_once(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    for number in range(3):
        await shim.exec("t1", f"e{number}", "exec sleep 60")
        await shim.Start(pb.StartRequest(id="t1", exec_id=f"e{number}"))
    await shim.kill("t1")
    await shim.events.of("/tasks/exit", "t1")
    exits = [event.id for topic, event in shim.events.received if topic == "/tasks/exit"]
    assert sorted(exits[:-1]) == ["e0", "e1", "e2"]
    assert exits[-1] == "t1"


async def test_short_processes_exit_after_they_started_and_once(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))
    ids = [f"e{number}" for number in range(8)]

    async def go(exec_id):
        await shim.exec("t1", exec_id, "exit 3")
        await shim.Start(pb.StartRequest(id="t1", exec_id=exec_id))
        return (await shim.wait("t1", exec_id)).exit_status

    assert await asyncio.gather(*map(go, ids)) == [3] * 8
    for exec_id in ids:
        await shim.events.of("/tasks/exit", exec_id)
        of_it = [
            topic
            for topic, event in shim.events.received
            if exec_id in {getattr(event, "id", ""), getattr(event, "exec_id", "")}
        ]
        assert of_it == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]


async def test_pids_tell_execs_from_the_rest(shim, bundle):
    init = await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exec sleep 60")
    started = await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    pids = (await shim.Pids(pb.PidsRequest(id="t1"))).processes
    assert sorted(entry.pid for entry in pids) == sorted([init, started.pid])
    details = {entry.pid: runc_pb.ProcessDetails.FromString(entry.info.value).exec_id for entry in pids}
    assert details == {init: "", started.pid: "e1"}


# The shim itself


async def test_a_shim_ends_only_without_tasks(shim, bundle):
    pid = await shim.run("t1", bundle("exec sleep 60"))
    connected = await shim.Connect(pb.ConnectRequest(id="t1"))
    assert (connected.shim_pid, connected.task_pid) == (shim.pid, pid)
    await shim.Shutdown(pb.ShutdownRequest(now=True))
    os.kill(shim.pid, signal.SIGTERM)
    assert (await shim.state("t1")).status == types.RUNNING
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.delete("t1")
    await shim.Shutdown(pb.ShutdownRequest())
    await shim.ended()


async def test_events_wait_for_a_daemon_that_is_away(shim, bundle):
    await shim.events.close()
    await shim.run("t1", bundle("exit 4"))
    await shim.wait("t1")
    await shim.events.open()
    await shim.Connect(pb.ConnectRequest(id="t1"))
    await shim.events.of("/tasks/exit")
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]


async def test_events_are_delivered_before_the_shim_ends(shim, bundle):
    await shim.run("t1", bundle("exit 4"))
    await shim.wait("t1")
    await shim.delete("t1")
    await shim.Shutdown(pb.ShutdownRequest())
    await shim.ended()
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_a_shim_ends_though_nobody_takes_its_events(shim, bundle):
    await shim.events.close()
    await shim.run("t1", bundle("exit 4"))
    await shim.wait("t1")
    await shim.delete("t1")
    await shim.Shutdown(pb.ShutdownRequest())
    await shim.ended()
    await shim.events.open()


async def test_several_containers_share_a_shim(shim, bundle):
    ids = [f"c{number}" for number in range(3)]
    await asyncio.gather(*(shim.run(id, bundle(f"exit {number}")) for number, id in enumerate(ids)))
    statuses = [(await shim.wait(id)).exit_status for id in ids]
    assert statuses == [0, 1, 2]


async def test_a_caller_that_leaves_does_not_stop_a_create_half_way(shim, bundle, events):
    request = pb.CreateTaskRequest(id="t1", bundle=str(bundle("exec sleep 60")), rootfs=[shim.bind])
    creating = asyncio.create_task(shim.Create(request))
    await asyncio.sleep(0)
    creating.cancel()
    await events.of("/tasks/create")
    assert (await shim.state("t1")).status == types.CREATED


async def test_a_container_gets_no_descriptor_and_no_environment_of_the_shim(shim, bundle, tmp_path):
    output = tmp_path / "out"
    script = "ls /proc/self/fd; tr '\\0' '\\n' </proc/self/environ; grep SigIgn /proc/self/status; true"
    await shim.run("t1", bundle(script), stdout=f"file://{output}")
    await shim.wait("t1")
    *lines, ignored = output.read_text().splitlines()
    assert lines[:4] == ["0", "1", "2", "3"]  # 3 is the directory itself
    assert {line.partition("=")[0] for line in lines[4:]} <= {"PATH", "TERM", "SHLVL", "PWD", "HOME"}
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0  # signal 32 is the C library's own


async def test_zombies_of_others_are_reaped(shim, bundle, fifo):
    up = fifo("up")
    reader = os.open(up, os.O_RDWR)
    script = "sh -c 'sleep 0.01 & exec true'; echo up; exec sleep 60"
    await shim.run("t1", bundle(script, pid_namespace=False), stdout=str(up))
    assert os.read(reader, 10) == b"up\n"
    os.close(reader)
    await shim.exec("t1", "e1", "sleep 0.1; exit 0")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    children = proc(shim.pid, f"task/{shim.pid}/children").split()
    stats = [proc(pid, "stat").rpartition(")")[2].split()[0] for pid in children]
    assert "Z" not in stats


async def test_init_killed_while_execs_start_still_exits_last_and_everybody_once(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60"))

    async def go(exec_id):
        await shim.exec("t1", exec_id, "exec sleep 60")
        await shim.Start(pb.StartRequest(id="t1", exec_id=exec_id))
        return (await shim.wait("t1", exec_id)).exit_status

    going = [asyncio.create_task(go(f"e{number}")) for number in range(12)]
    await shim.events.of("/tasks/exec-started")
    await shim.kill("t1")
    results = await asyncio.gather(*going, return_exceptions=True)
    # Killed with the container, or the runtime came too late.
    assert {result if isinstance(result, int) else isinstance(result, RuntimedError) for result in results} <= {
        137,
        True,
    }
    await shim.events.of("/tasks/exit", "t1")
    exits = [event.id for topic, event in shim.events.received if topic == "/tasks/exit"]
    started = [event.exec_id for topic, event in shim.events.received if topic == "/tasks/exec-started"]
    assert exits[-1] == "t1"
    assert sorted(exits[:-1]) == sorted(started)
