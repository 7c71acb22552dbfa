"""The daemon is killed while it makes containers: whatever the moment, the next one has nothing half-made."""

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from runtimed.api import task_types_pb2
from tests.clients import Client, busybox_rootfs
from tests.daemon import PrivateDaemon, private_daemon
from tests.processes import children

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def rootfs(daemon: PrivateDaemon) -> Path:
    return busybox_rootfs(daemon.base / "image")


def nothing_of_tasks(daemon: PrivateDaemon) -> None:
    assert list(daemon.state.glob("io.containerd.runtime.v2.task/*/*")) == []
    assert list((daemon.state / "s").iterdir()) == []
    assert list(daemon.state.glob("runc/*/*")) == []


def shims(daemon: PrivateDaemon) -> list[int]:
    """Return the pids of the shims (not their workers) that work in one of the daemon's bundles, deleted ones too."""
    bundles = f"{daemon.state}/io.containerd.runtime.v2.task/"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            is_keeper = [(place / "comm").read_text() == "runtimed-shim\n" for place in (entry, Path("/proc", parent))]
            if is_keeper == [True, False] and str((entry / "cwd").readlink()).startswith(bundles):
                found.append(int(entry.name))
    return found


def killed_during_create(daemon: PrivateDaemon, id: str, after_s: float) -> bool:
    """Kill the daemon so long after a Create was sent; return whether that was answered."""
    client, answers = Client(daemon), []

    def create() -> None:
        try:
            client.create(id)
            answers.append(id)
        except grpc.RpcError:
            pass  # what it says of a daemon that dies is not the point

    creating = threading.Thread(target=create)
    creating.start()
    creating.join(after_s)
    daemon.kill()
    creating.join()
    client.channel.close()
    return bool(answers)


@pytest.mark.parametrize("after_ms", [1, 4, 8, 12, 20, 30, 45, 60, 90])
def test_a_daemon_that_dies_while_it_creates_leaves_a_whole_task_or_a_free_name(daemon, rootfs, after_ms):
    id = f"c-{secrets.token_hex(4)}"
    first = Client(daemon)
    first.record(id, rootfs)
    first.channel.close()
    was_answered = killed_during_create(daemon, id, after_ms / 1000)

    daemon.start()
    client = Client(daemon)
    status = client.status(id)
    assert status in ({task_types_pb2.CREATED} if was_answered else {None, task_types_pb2.CREATED})
    if status is None:
        client.create(id)
    client.start(id)
    assert client.status(id) == task_types_pb2.RUNNING
    client.kill(id)
    client.delete(id)
    assert client.status(id) is None
    client.channel.close()
    nothing_of_tasks(daemon)


STEPS = {
    "create.begun": "none",
    "create.bundle": "none",
    "create.shim": "none",
    "create.connected": "none",
    "create.made": "none",
    "create.marked": "created",
    "start.begun": "created",
    "start.started": "running",
    "delete.begun": "stopped",
    "delete.forgotten": "none",
    "delete.shim": "none",
    "delete.bundle": "none",
}
STATUS = {
    "none": None,
    "created": task_types_pb2.CREATED,
    "running": task_types_pb2.RUNNING,
    "stopped": task_types_pb2.STOPPED,
}


def lived(client: Client, id: str) -> None:
    """Lead a task from where it is to its end."""
    if client.status(id) is None:
        client.create(id)
    if client.status(id) == task_types_pb2.CREATED:
        client.start(id)
    if client.status(id) == task_types_pb2.RUNNING:
        client.kill(id)
    client.delete(id)


@pytest.mark.parametrize("step", STEPS)
def test_a_daemon_that_dies_at_a_step_leaves_a_whole_task_or_none(daemon, rootfs, step):
    id = f"s-{secrets.token_hex(4)}"
    daemon.stop()
    daemon.environment = {"RUNTIMED_FAILPOINTS": f"{step}=panic"}
    daemon.start()
    client = Client(daemon)
    client.record(id, rootfs)
    with pytest.raises(grpc.RpcError):
        lived(client, id)
    client.channel.close()
    daemon.kill()
    daemon.environment = {}
    daemon.start()
    client = Client(daemon)
    assert client.status(id) == STATUS[STEPS[step]]
    lived(client, id)
    client.channel.close()
    nothing_of_tasks(daemon)


def exec_lived(client: Client, id: str) -> None:
    """Lead an exec of a running task from where it is to its end."""
    if client.status(id, "e") is None:
        client.exec(id, "e")
    if client.status(id, "e") == task_types_pb2.CREATED:
        client.start_exec(id, "e")
    if client.status(id, "e") == task_types_pb2.RUNNING:
        assert client.kill(id, "e") == 137
    client.delete_exec(id, "e")


# The task's own start comes before that of the exec.
EXEC_STEPS = {
    "exec.begun=panic": "none",
    "exec.added=panic": "created",
    "start.begun=1*off->panic": "created",
    "start.started=1*off->panic": "running",
    "exec.deleting=panic": "stopped",
    "exec.deleted=panic": "none",
}


@pytest.mark.parametrize("program", EXEC_STEPS)
def test_a_daemon_that_dies_at_a_step_of_an_exec_leaves_it_whole_or_not_there(daemon, rootfs, program):
    id = f"e-{secrets.token_hex(4)}"
    daemon.stop()
    daemon.environment = {"RUNTIMED_FAILPOINTS": program}
    daemon.start()
    client = Client(daemon)
    client.record(id, rootfs)
    client.create(id)
    client.start(id)
    with pytest.raises(grpc.RpcError):
        exec_lived(client, id)
    client.channel.close()
    daemon.kill()
    daemon.environment = {}
    daemon.start()
    client = Client(daemon)
    assert client.status(id) == task_types_pb2.RUNNING
    assert client.status(id, "e") == STATUS[EXEC_STEPS[program]]
    exec_lived(client, id)
    assert client.status(id, "e") is None
    lived(client, id)
    client.channel.close()
    nothing_of_tasks(daemon)


def churn(daemon: PrivateDaemon, id: str, rootfs: Path, stop: threading.Event) -> None:
    """Make, exec in and remove a container over and over, whatever the daemon answers."""
    while not stop.is_set():
        client = Client(daemon)
        for step in (
            lambda client=client: client.record(id, rootfs),
            lambda client=client: lived(client, id),
            lambda client=client: (client.create(id), client.start(id)),
            lambda client=client: exec_lived(client, id),
        ):
            with suppress(grpc.RpcError):
                step()
        client.channel.close()
        stop.wait(0.01)  # a daemon that is away answers at once


def test_a_daemon_that_is_killed_over_and_over_under_churn_has_a_shim_for_each_task(daemon, rootfs):
    ids = [f"l-{secrets.token_hex(4)}" for _ in range(3)]
    stop = threading.Event()
    churning = [threading.Thread(target=churn, args=(daemon, id, rootfs, stop)) for id in ids]
    for thread in churning:
        thread.start()
    for number in range(8):
        stop.wait(0.2 + number * 0.07)
        daemon.kill()
        daemon.start()
    stop.set()
    for thread in churning:
        thread.join()
    daemon.kill()
    daemon.start()
    client = Client(daemon)
    tasks = [id for id in ids if client.status(id) is not None]
    assert len(shims(daemon)) == len(tasks)
    assert len(list((daemon.state / "s").iterdir())) == len(tasks)
    for id in tasks:
        lived(client, id)
    client.channel.close()
    assert shims(daemon) == []
    nothing_of_tasks(daemon)


def test_a_warm_parent_that_is_killed_under_churn_costs_no_task_and_leaves_no_shim(daemon, rootfs):
    ids = [f"n-{secrets.token_hex(4)}" for _ in range(3)]
    stop = threading.Event()
    churning = [threading.Thread(target=churn, args=(daemon, id, rootfs, stop)) for id in ids]
    for thread in churning:
        thread.start()
    for _ in range(5):
        stop.wait(0.5)
        for pid in children(daemon.pid):
            with suppress(OSError):
                if b"shim.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    shutil.rmtree(f"/tmp/runtimed-rehearsal-{pid}", ignore_errors=True)  # the one thing it can leave
    stop.set()
    for thread in churning:
        thread.join()
    client = Client(daemon)
    tasks = [id for id in ids if client.status(id) is not None]
    assert len(shims(daemon)) == len(tasks)
    for id in tasks:
        lived(client, id)
    client.channel.close()
    assert shims(daemon) == []
    nothing_of_tasks(daemon)
