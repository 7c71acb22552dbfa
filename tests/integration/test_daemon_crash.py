"""The daemon is killed while it makes containers: whatever the moment, the next one has nothing half-made."""

import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from runtimed.api import containers_pb2, task_types_pb2, tasks_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import PrivateDaemon, private_daemon

pytestmark = [pytest.mark.root, pytest.mark.slow]

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def rootfs(daemon: PrivateDaemon) -> Path:
    rootfs = daemon.base / "image"
    for name in ("bin", "proc", "dev"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/busybox")
    return rootfs


class Client:
    """One connection to the daemon as it is now."""

    def __init__(self, daemon: PrivateDaemon) -> None:
        self._metadata = (("containerd-namespace", daemon.namespace),)
        self._cgroups = daemon.cgroup_parent
        self.channel = grpc.insecure_channel(f"unix:{daemon.address}")
        self.tasks = TasksStub(self.channel)
        self.containers = ContainersStub(self.channel)

    def record(self, id: str, rootfs: Path) -> None:
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": str(rootfs)},
            "process": {"cwd": "/", "args": ["/bin/busybox", "sleep", "1000"], "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"cgroupsPath": f"{self._cgroups}/{id}", "namespaces": [{"type": "pid"}, {"type": "mount"}]},
        }
        container = containers_pb2.Container(id=id)
        container.runtime.name = "io.containerd.runc.v2"
        container.spec.type_url, container.spec.value = SPEC_TYPE, json.dumps(spec).encode()
        self.containers.Create(
            containers_pb2.CreateContainerRequest(container=container), metadata=self._metadata, timeout=10
        )

    def create(self, id: str) -> None:
        self.tasks.Create(tasks_pb2.CreateTaskRequest(container_id=id), metadata=self._metadata, timeout=20)

    def start(self, id: str) -> None:
        self.tasks.Start(tasks_pb2.StartRequest(container_id=id), metadata=self._metadata, timeout=10)

    def status(self, id: str) -> int | None:
        try:
            found = self.tasks.Get(tasks_pb2.GetRequest(container_id=id), metadata=self._metadata, timeout=10)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return int(found.process.status)

    def delete(self, id: str) -> None:
        self.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=id), metadata=self._metadata, timeout=10)


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
    client.tasks.Kill(
        tasks_pb2.KillRequest(container_id=id, signal=9), metadata=(("containerd-namespace", daemon.namespace),)
    )
    client.tasks.Wait(
        tasks_pb2.WaitRequest(container_id=id), metadata=(("containerd-namespace", daemon.namespace),), timeout=10
    )
    client.delete(id)
    assert client.status(id) is None
    client.channel.close()
    assert list(daemon.state.glob("io.containerd.runtime.v2.task/*/*")) == []
    assert list((daemon.state / "s").iterdir()) == []
    assert list(daemon.state.glob("runc/*/*")) == []


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


def lived(client: Client, daemon: PrivateDaemon, id: str) -> None:
    """Lead a task from where it is to its end."""
    metadata = (("containerd-namespace", daemon.namespace),)
    if client.status(id) is None:
        client.create(id)
    if client.status(id) == task_types_pb2.CREATED:
        client.start(id)
    if client.status(id) == task_types_pb2.RUNNING:
        client.tasks.Kill(tasks_pb2.KillRequest(container_id=id, signal=9), metadata=metadata, timeout=10)
        client.tasks.Wait(tasks_pb2.WaitRequest(container_id=id), metadata=metadata, timeout=10)
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
        lived(client, daemon, id)
    client.channel.close()
    daemon.kill()
    daemon.environment = {}
    daemon.start()
    client = Client(daemon)
    assert client.status(id) == STATUS[STEPS[step]]
    lived(client, daemon, id)
    client.channel.close()
    assert list(daemon.state.glob("io.containerd.runtime.v2.task/*/*")) == []
    assert list((daemon.state / "s").iterdir()) == []
    assert list(daemon.state.glob("runc/*/*")) == []
