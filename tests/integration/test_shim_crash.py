"""A shim is killed at each step of what it does: the daemon ends the container and cleans up, and the name is free."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import containers_pb2, task_types_pb2, tasks_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import PrivateDaemon, cgroups, private_daemon, processes

pytestmark = [pytest.mark.root, pytest.mark.slow]

TYPES = "types.containerd.io/opencontainers/runtime-spec/1/"
STEPS = [
    *(f"shim.create.{step}" for step in ("begun", "mounted", "made")),
    *(f"shim.start.{step}" for step in ("begun", "started")),
    *(f"shim.exec.{step}" for step in ("begun", "made", "started")),
    *(f"shim.delete.{step}" for step in ("begun", "runtime", "streams", "unmounted")),
    *(f"shim.runc.{command}" for command in ("create", "start", "exec", "delete")),
]


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
    """One connection to the daemon as it is now, for one container with a bind mount as its rootfs."""

    def __init__(self, daemon: PrivateDaemon, id: str, rootfs: Path) -> None:
        self.id = id
        self._daemon = daemon
        self._rootfs = rootfs
        self._with = {"metadata": (("containerd-namespace", daemon.namespace),), "timeout": 30}
        self.channel = grpc.insecure_channel(f"unix:{daemon.address}")
        self._tasks = TasksStub(self.channel)
        self._containers = ContainersStub(self.channel)

    def record(self) -> None:
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["/bin/busybox", "sleep", "1000"], "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": f"{self._daemon.cgroup_parent}/{self.id}",
                "namespaces": [{"type": "pid"}, {"type": "mount"}],
            },
        }
        container = containers_pb2.Container(id=self.id)
        container.runtime.name = "io.containerd.runc.v2"
        container.spec.type_url, container.spec.value = f"{TYPES}Spec", json.dumps(spec).encode()
        self._containers.Create(containers_pb2.CreateContainerRequest(container=container), **self._with)

    def status(self) -> int | None:
        try:
            found = self._tasks.Get(tasks_pb2.GetRequest(container_id=self.id), **self._with)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return int(found.process.status)

    def live(self) -> None:
        """Create, start, exec, kill, delete."""
        id, with_ = self.id, self._with
        request = tasks_pb2.CreateTaskRequest(container_id=id)
        request.rootfs.add(type="bind", source=str(self._rootfs), options=["rbind", "rw"])
        self._tasks.Create(request, **with_)
        self._tasks.Start(tasks_pb2.StartRequest(container_id=id), **with_)
        exec_ = tasks_pb2.ExecProcessRequest(container_id=id, exec_id="e1")
        process = {"cwd": "/", "args": ["/bin/busybox", "sleep", "1000"], "user": {"uid": 0, "gid": 0}}
        exec_.spec.type_url, exec_.spec.value = f"{TYPES}Process", json.dumps(process).encode()
        self._tasks.Exec(exec_, **with_)
        self._tasks.Start(tasks_pb2.StartRequest(container_id=id, exec_id="e1"), **with_)
        self._tasks.Kill(tasks_pb2.KillRequest(container_id=id, signal=9), **with_)
        self._tasks.Wait(tasks_pb2.WaitRequest(container_id=id), **with_)
        self.delete()

    def delete(self) -> None:
        self._tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=self.id), **self._with)

    def forget(self) -> None:
        self._containers.Delete(containers_pb2.DeleteContainerRequest(id=self.id), **self._with)


def left(daemon: PrivateDaemon) -> list[str]:
    """Return what is there of tasks, of the file system, the kernel and the process table."""
    found = [str(path) for path in daemon.state.glob("io.containerd.runtime.v2.task/*/*")]
    found += map(str, (daemon.state / "s").iterdir())
    found += map(str, daemon.state.glob("runc/*/*"))
    found += [str(path) for parent in cgroups(daemon.namespace) for path in parent.rglob("*") if path.is_dir()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{daemon.state}/io." in line]
    own = os.fsencode(daemon.state / "io.containerd.runtime.v2.task")
    found += [f"{pid} {command}" for pid, command in processes(own)]
    found += [f"{pid} {command}" for pid, command in processes(os.fsencode(daemon.base / "image"))]
    return found


def eventually(found: Callable[[], Any], *wanted: Any) -> None:
    """Wait until *found* returns one of *wanted*: the daemon and the kernel tell clients before they have done all."""
    deadline = time.monotonic() + 10
    while (last := found()) not in wanted:
        assert time.monotonic() < deadline, f"it is {last}, not {wanted}"
        time.sleep(0.02)


@pytest.mark.parametrize("step", STEPS)
def test_a_shim_that_dies_at_a_step_leaves_nothing(daemon: PrivateDaemon, rootfs: Path, step: str) -> None:
    id = f"s-{secrets.token_hex(4)}"
    daemon.stop()
    daemon.environment = {"RUNTIMED_FAILPOINTS": f"{step}=panic"}
    daemon.start()
    client = Client(daemon, id, rootfs)
    client.record()
    with pytest.raises(grpc.RpcError):
        client.live()
    eventually(client.status, None, task_types_pb2.STOPPED)
    with suppress(grpc.RpcError):  # there need be no task
        client.delete()
    assert client.status() is None
    eventually(lambda: left(daemon), [])
    client.channel.close()
    assert "the parent of shims" not in daemon.log.read_text()  # it is not what died
    # The same name, with a shim that is not killed.
    daemon.stop()
    daemon.environment = {}
    daemon.start()
    client = Client(daemon, id, rootfs)
    client.live()
    eventually(lambda: left(daemon), [])
    client.forget()
    client.channel.close()


@pytest.mark.parametrize("step", [step for step in STEPS if not step.endswith((".started", "runc.start"))])
def test_an_error_at_a_step_is_told_and_leaves_nothing_when_the_task_is_deleted(
    daemon: PrivateDaemon, rootfs: Path, step: str
) -> None:
    id = f"e-{secrets.token_hex(4)}"
    daemon.stop()
    daemon.environment = {"RUNTIMED_FAILPOINTS": f"{step}=1*error(no luck)"}
    daemon.start()
    client = Client(daemon, id, rootfs)
    client.record()
    with pytest.raises(grpc.RpcError, match="no luck"):
        client.live()
    if step.startswith(("shim.create", "shim.runc.create")):
        eventually(lambda: left(daemon), [])
    else:
        with suppress(grpc.RpcError):
            client._tasks.Kill(tasks_pb2.KillRequest(container_id=id, signal=9), **client._with)
        client._tasks.Wait(tasks_pb2.WaitRequest(container_id=id), **client._with)
        client.delete()
        eventually(lambda: left(daemon), [])
    client.forget()
    client.channel.close()
