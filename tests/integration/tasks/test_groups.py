"""Containers of one group, as those of a pod are, share one shim of ours."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from runtimed import failpoints
from runtimed.api.events_pb2 import TaskExit
from runtimed.config import DEFAULT_RUNTIME
from runtimed.errors import NotFound, RuntimedError
from runtimed.metadata.containers import Opaque
from runtimed.tasks.client import Process, Status, Stdio
from tests.fakes.tasks import NS, SPEC_TYPE, TaskDaemon, gone, process, signal_shim

pytestmark = pytest.mark.root

GROUP = {"io.containerd.runc.v2.group": "pod"}
SANDBOX = {"io.kubernetes.cri.sandbox-id": "pod"}


class Pods:
    """Makes containers that belong to groups."""

    def __init__(self, daemon: TaskDaemon, spec) -> None:
        self.daemon = daemon
        self._spec = spec

    async def create(self, id: str, annotations: dict[str, str] = GROUP, script: str = "sleep 1000") -> int:
        described = self._spec(script) | {"annotations": annotations}
        return await self.daemon.tasks.create(NS, await self.daemon.container(id, DEFAULT_RUNTIME, **described))

    async def run(self, id: str, annotations: dict[str, str] = GROUP, script: str = "sleep 1000") -> int:
        await self.create(id, annotations, script)
        return await self.daemon.tasks.start(NS, id, "")

    async def end(self, id: str) -> None:
        await self.daemon.tasks.kill(NS, id, "", signal.SIGKILL, all=True)
        await self.daemon.tasks.wait(NS, id, "")
        await self.daemon.tasks.delete(NS, id)

    async def states(self) -> dict[str, Status]:
        return {state.container_id: state.status for state in await self.daemon.tasks.list(NS)}

    def sockets(self) -> list[Path]:
        return list((self.daemon.state / "s").iterdir())

    async def exits(self, count: int) -> dict[str, int]:
        """Return the status of the next *count* inits that are told to have ended, and see that no more are told."""
        told: list[tuple[str, int]] = []
        async with asyncio.timeout(10):
            deleted = 0
            async for envelope in self.daemon.told:
                if envelope.topic == "/tasks/exit":
                    event = TaskExit.FromString(envelope.event.value)
                    told.append((event.id, event.exit_status))
                deleted += envelope.topic == "/tasks/delete"  # which comes after the exit
                if deleted == count:
                    break
        assert len(told) == len(dict(told)), told
        return dict(told)


@pytest.fixture
def pods(daemon, spec) -> Pods:
    return Pods(daemon, spec)


async def test_the_containers_of_a_group_share_a_shim_until_the_last_one_goes(daemon, pods):
    pids = [await pods.run(id, annotations) for id, annotations in (("a", GROUP), ("b", SANDBOX), ("c", GROUP))]
    assert len(set(pids)) == 3
    shim = daemon.shim_pid("a")
    assert {daemon.shim_pid(id) for id in "abc"} == {shim}
    assert len(pods.sockets()) == 1
    await pods.end("a")  # the one whose bundle the shim works in
    assert await pods.states() == {"b": Status.RUNNING, "c": Status.RUNNING}
    await daemon.tasks.exec(
        NS, "b", "e", Stdio(), Opaque(SPEC_TYPE.replace("Spec", "Process"), json.dumps(process("exit 3")).encode())
    )
    await daemon.tasks.start(NS, "b", "e")
    assert (await daemon.tasks.wait(NS, "b", "e")).status == 3
    await pods.run("d")
    assert daemon.shim_pid("d") == shim
    for id in "bcd":
        await pods.end(id)
    await gone(shim)
    assert pods.sockets() == []


async def test_a_container_that_is_its_groups_name_belongs_to_it(daemon, pods):
    await pods.run("pod", {})
    await pods.run("a", SANDBOX)
    assert daemon.shim_pid("a") == daemon.shim_pid("pod")


async def test_another_group_has_another_shim(daemon, pods):
    await pods.run("a")
    await pods.run("b", {"io.containerd.runc.v2.group": "other"})
    assert daemon.shim_pid("a") != daemon.shim_pid("b")


async def test_of_creates_at_once_all_get_the_same_shim(daemon, pods):
    await asyncio.gather(*(pods.create(f"c{number}") for number in range(6)))
    assert len({daemon.shim_pid(f"c{number}") for number in range(6)}) == 1


async def test_a_create_that_meets_the_last_delete_is_never_refused(daemon, pods):
    await pods.create("c0")
    for number in range(20):
        await asyncio.gather(daemon.tasks.delete(NS, f"c{number}"), pods.create(f"c{number + 1}"))
        assert await pods.states() == {f"c{number + 1}": Status.CREATED}
    assert len(pods.sockets()) == 1


async def test_a_create_that_comes_while_the_shim_ends_waits_and_gets_a_new_one(daemon, pods, monkeypatch):
    await pods.create("a")
    shim = daemon.shim_pid("a")
    monkeypatch.setattr(failpoints, "_points", failpoints.parse("delete.forgotten=1*delay(200)"))
    deleting = asyncio.create_task(daemon.tasks.delete(NS, "a"))
    await daemon.topics("/tasks/delete")  # from the shim: it has no task any more, and has not been asked to end
    await pods.create("b")
    assert daemon.shim_pid("b") == shim
    await deleting
    assert await pods.states() == {"b": Status.CREATED}


async def test_a_create_that_fails_leaves_the_others_alone(daemon, pods, monkeypatch):
    await pods.run("a")
    monkeypatch.setattr(failpoints, "_points", failpoints.parse("create.made=1*error(no luck)"))
    with pytest.raises(RuntimedError, match="no luck"):
        await pods.create("b")
    assert await pods.states() == {"a": Status.RUNNING}
    assert list((daemon.state / "runc" / NS).iterdir()) == [daemon.state / "runc" / NS / "a"]
    await daemon.tasks.create(NS, await daemon.container("c", DEFAULT_RUNTIME, **pods._spec("true"), annotations=GROUP))
    shim = daemon.shim_pid("a")
    await daemon.tasks.delete(NS, "c")
    await pods.end("a")
    await gone(shim)  # it holds nothing of the one that was given up


async def test_a_killed_shim_ends_all_its_containers_and_each_is_told_once(daemon, pods):
    pids = [await pods.run(id) for id in "ab"]
    pids.append(await pods.run("c", script="exit 5"))
    assert (await daemon.tasks.wait(NS, "c", "")).status == 5
    await daemon.topics("/tasks/exit")
    os.kill(daemon.shim_pid("a"), signal.SIGKILL)
    assert await pods.exits(3) == {"a": 137, "b": 137}
    for pid in pids:
        await gone(pid)
    assert await pods.states() == {}
    assert pods.sockets() == []
    await pods.run("d")


async def test_a_group_is_found_again_after_a_restart(daemon, pods):
    pids = {id: await pods.run(id) for id in "ab"}
    shim = daemon.shim_pid("a")
    await daemon.restart()
    assert await daemon.tasks.list(NS) == [
        Process(container_id=id, pid=pids[id], status=Status.RUNNING, stdio=Stdio()) for id in "ab"
    ]
    await pods.run("c")
    assert daemon.shim_pid("c") == shim
    await pods.end("a")
    assert await pods.states() == {"b": Status.RUNNING, "c": Status.RUNNING}


async def test_a_shared_shim_that_is_killed_without_a_daemon_ends_all_its_containers(daemon, pods):
    pids = [await pods.run(id) for id in "ab"]
    await daemon.stop()
    os.kill(daemon.shim_pid("a"), signal.SIGKILL)
    await daemon.start()
    assert await pods.exits(2) == {"a": 137, "b": 137}
    for pid in pids:
        await gone(pid)
    assert pods.sockets() == []


async def test_of_a_group_only_the_half_made_one_is_undone_at_the_start(daemon, pods):
    running = await pods.run("a")
    half = await pods.run("b")
    shim = daemon.shim_pid("a")
    await daemon.stop()
    (daemon.bundle("b") / "created").unlink()  # as if the daemon had died before anybody was told
    await daemon.start()
    await gone(half)
    assert await pods.states() == {"a": Status.RUNNING}
    assert (await daemon.tasks.get(NS, "a")).pid == running
    with pytest.raises(NotFound):
        await daemon.tasks.get(NS, "b")
    await pods.end("a")
    await gone(shim)


async def test_a_stuck_shim_refuses_a_further_container_and_says_whose_it_is(daemon, pods):
    await pods.run("a")
    shim = daemon.shim_pid("a")
    signal_shim(shim, signal.SIGSTOP)
    with pytest.raises(RuntimedError, match=rf"task b: the shim of its group pod \(pid {shim}\) does not answer"):
        await pods.create("b")
    signal_shim(shim, signal.SIGCONT)
    assert await pods.states() == {"a": Status.RUNNING}


async def test_a_stuck_shim_that_is_ended_for_one_of_its_tasks_ends_them_all(daemon, pods):
    pids = [await pods.run(id) for id in "ab"]
    signal_shim(daemon.shim_pid("a"), signal.SIGSTOP)
    assert (await daemon.tasks.delete(NS, "a")).status == 137
    assert await pods.exits(2) == {"a": 137, "b": 137}
    for pid in pids:
        await gone(pid)
    assert await pods.states() == {}
    assert pods.sockets() == []
