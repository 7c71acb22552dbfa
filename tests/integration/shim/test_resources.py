"""What a container uses and may use: statistics, updates, out of memory; with real runc on the machine's cgroups."""

import asyncio
import json

import pytest

from runtimed.api import cgroups_v1_pb2, cgroups_v2_pb2
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimedError
from tests.integration.shim.conftest import cgroups_left

pytestmark = pytest.mark.root

KINDS = {kind.DESCRIPTOR.full_name: kind for kind in (cgroups_v1_pb2.Metrics, cgroups_v2_pb2.Metrics)}
LIMIT = 16 << 20
LIMITED = {"memory": {"limit": LIMIT, "swap": LIMIT}}
# Doubles a variable of the shell until there is no memory for it.
EAT = "x=0123456789; while :; do x=$x$x; done"


async def stats(shim, id):
    found = (await shim.Stats(pb.StatsRequest(id=id))).stats
    return KINDS[found.type_url].FromString(found.value)


async def update(shim, id, document, kind="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"):
    request = pb.UpdateTaskRequest(id=id, annotations={"a": "b"})
    request.resources.type_url = kind
    request.resources.value = document if isinstance(document, bytes) else json.dumps(document).encode()
    await shim.Update(request)


def memory_limit(metrics):
    return metrics.memory.usage_limit if isinstance(metrics, cgroups_v2_pb2.Metrics) else metrics.memory.usage.limit


def cpu_ns(metrics):
    is_v2 = isinstance(metrics, cgroups_v2_pb2.Metrics)
    return metrics.cpu.usage_usec * 1000 if is_v2 else metrics.cpu.usage.total


def first_line(path):
    with path.open() as file:
        return file.readline()


async def test_the_statistics_of_a_container_are_its_own(shim, bundle, fifo):
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo > /tmp/x; echo begun; exec sleep 60"
    output = fifo("out")
    reading = asyncio.create_task(asyncio.to_thread(first_line, output))
    await shim.run("t1", bundle(script, resources=LIMITED), stdout=str(output))
    assert await reading == "begun\n"  # so it is one process, and no more runc's with its threads
    metrics = await stats(shim, "t1")
    assert metrics.pids.current == 1
    assert memory_limit(metrics) == LIMIT
    assert cpu_ns(metrics) > 0
    if isinstance(metrics, cgroups_v1_pb2.Metrics):
        assert sum(metrics.cpu.usage.per_cpu) > 0
        assert 0 < metrics.memory.usage.usage <= metrics.memory.usage.max <= LIMIT
        assert metrics.memory.total_rss > 0
        assert metrics.memory.hierarchical_memory_limit == LIMIT
        assert metrics.memory_oom_control.oom_kill == 0
    else:
        assert 0 < metrics.memory.usage <= LIMIT
        assert metrics.memory.anon > 0


async def test_a_task_that_has_ended_has_statistics_until_its_cgroup_goes(shim, bundle):
    await shim.run("t1", bundle("exit 0"))
    await shim.wait("t1")
    assert (await stats(shim, "t1")).pids.current == 0
    for group in cgroups_left():
        group.rmdir()
    with pytest.raises(NotFound, match="no metrics of task 't1'"):
        await stats(shim, "t1")
    with pytest.raises(NotFound, match="task 't2'"):
        await stats(shim, "t2")


@pytest.mark.parametrize("state", ["created", "running", "paused"])
async def test_limits_are_changed(shim, bundle, state):
    await shim.create("t1", bundle("exec sleep 60", resources=LIMITED))
    if state != "created":
        await shim.Start(pb.StartRequest(id="t1"))
    if state == "paused":
        await shim.Pause(pb.PauseRequest(id="t1"))
    await update(shim, "t1", {"memory": {"limit": 2 * LIMIT, "swap": 2 * LIMIT}, "pids": {"limit": 7}})
    metrics = await stats(shim, "t1")
    assert memory_limit(metrics) == 2 * LIMIT
    assert metrics.pids.limit == 7


async def test_what_docker_sends_for_an_update_is_taken(shim, bundle):
    # docker update --cpu-shares 512 --cpus .5 --memory 32m --memory-swap 64m (20.10 to 29): all of it, most of it null
    await shim.run("t1", bundle("exec sleep 60", resources=LIMITED))
    memory = {"limit": 2 * LIMIT, "swap": 4 * LIMIT, "reservation": 0}
    cpu = {"shares": 512, "quota": 50000, "period": 100000}
    await update(shim, "t1", {"memory": memory, "cpu": cpu, "blockIO": {}})
    assert memory_limit(await stats(shim, "t1")) == 2 * LIMIT


async def test_an_update_that_is_none_is_refused_and_changes_nothing(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60", resources=LIMITED))
    for document, kind in ((b"{}", "types.containerd.io/opencontainers/runtime-spec/1/Spec"), (b"{", None), (b"", "")):
        with pytest.raises(InvalidArgument, match="resources"):
            await update(shim, "t1", document, **({} if kind is None else {"kind": kind}))
    with pytest.raises(RuntimedError, match="OCI runtime update failed"):
        await update(shim, "t1", {"memory": {"limit": "much"}})
    assert memory_limit(await stats(shim, "t1")) == LIMIT


async def test_a_task_that_has_ended_takes_no_update(shim, bundle):
    await shim.run("t1", bundle("exit 0"))
    await shim.wait("t1")
    with pytest.raises(FailedPrecondition, match="cannot update task 't1': it is stopped"):
        await update(shim, "t1", {})


async def test_the_end_for_want_of_memory_is_told_before_the_exit(shim, bundle):
    await shim.run("t1", bundle(EAT, resources=LIMITED))
    assert (await shim.wait("t1")).exit_status == 137
    await shim.events.of("/tasks/exit")
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]
    assert (await shim.events.of("/tasks/oom")).container_id == "t1"


async def test_a_child_that_is_killed_for_want_of_memory_is_told_too(shim, bundle):
    await shim.run("t1", bundle(f"sh -c '{EAT}'; exec sleep 60", resources=LIMITED))
    assert (await shim.events.of("/tasks/oom")).container_id == "t1"
    assert "/tasks/exit" not in shim.events.topics


async def test_so_is_an_exec_before_its_exit(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60", resources=LIMITED))
    await shim.exec("t1", "e1", EAT)
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert (await shim.wait("t1", "e1")).exit_status == 137
    await shim.events.of("/tasks/exit", "e1")
    assert shim.events.topics[-2:] == ["/tasks/oom", "/tasks/exit"]


async def test_no_end_of_another_kind_is_one_for_want_of_memory(shim, bundle):
    await shim.run("t1", bundle("exec sleep 60", resources=LIMITED))
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.delete("t1")  # the cgroup goes, of which the kernel gives notice as well
    await shim.events.of("/tasks/delete")
    assert "/tasks/oom" not in shim.events.topics
