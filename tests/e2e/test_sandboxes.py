"""Sandboxes by the API: held by a pause task with real runc, and served by a shim that has the Sandbox API."""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import containers_pb2, tasks_pb2, types_pb2
from runtimed.api import sandbox_pb2 as pb
from runtimed.api.events_pb2 import SandboxExit
from runtimed.api.sandbox_pb2_grpc import ControllerStub, StoreStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.clients import SPEC_TYPE, Client, busybox_rootfs

pytestmark = [pytest.mark.root, pytest.mark.e2e]

REPO = Path(__file__).parents[2]


class Sandboxes:
    """The calls of both services, in the daemon's namespace."""

    def __init__(self, daemon):
        self.daemon = daemon
        self._metadata = (("containerd-namespace", daemon.namespace),)
        self.channel = grpc.insecure_channel(f"unix:{daemon.address}")
        self._controller, self._store = ControllerStub(self.channel), StoreStub(self.channel)

    def call(self, method, id, sandboxer="", timeout=20, **fields):
        request = getattr(pb, f"Controller{method}Request")(sandbox_id=id, sandboxer=sandboxer, **fields)
        return getattr(self._controller, method)(request, metadata=self._metadata, timeout=timeout)

    def future(self, method, id, **fields):
        request = getattr(pb, f"Controller{method}Request")(sandbox_id=id, **fields)
        return getattr(self._controller, method).future(request, metadata=self._metadata, timeout=30)

    def record(self, id, sandboxer, runtime="io.containerd.runc.v2", **spec):
        sandbox = types_pb2.Sandbox(sandbox_id=id, sandboxer=sandboxer)
        sandbox.runtime.name = runtime
        sandbox.spec.CopyFrom(Any(type_url=SPEC_TYPE, value=json.dumps(spec).encode()))
        self._store.Create(pb.StoreCreateRequest(sandbox=sandbox), metadata=self._metadata)

    def forget(self, id):
        self._store.Delete(pb.StoreDeleteRequest(sandbox_id=id), metadata=self._metadata)

    def wait(self, id):
        return self.future("Wait", id)


def code(call, *arguments, **fields):
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments, **fields)
    return raised.value.code().name


@pytest.fixture
def sandboxes(daemon):
    found = Sandboxes(daemon)
    yield found
    found.channel.close()


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory):
    return busybox_rootfs(tmp_path_factory.mktemp("rootfs") / "rootfs")


@pytest.fixture
def pause(daemon, sandboxes):
    """What the spec of a sandbox says, but for its root: the daemon's own pause."""
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": True},
        "process": {"cwd": "/", "args": ["/pause"], "user": {"uid": 65535, "gid": 65535}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "cgroupsPath": f"{daemon.cgroup_parent}/pod",
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }


@pytest.fixture
def shim(daemon):
    return shim_program(daemon)


def shim_program(daemon):
    """Return a runtime whose shim has the Sandbox API."""
    program = daemon.base / "containerd-shim-fake-v1"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPO} exec {sys.executable} {REPO}/tests/fakes/shim.py "$@"\n')
    program.chmod(0o755)
    return str(program)


def runs(pid: int, command: bytes) -> None:
    """Wait until a process that has been started has become *command*: its runtime goes on by itself."""
    limit = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").read_bytes() != command:
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_sandbox_is_held_by_a_pause_task(daemon, sandboxes, pause):
    sandboxes.record("pod", "pause", **pause)
    with daemon.events("topic~=^/sandboxes/") as events:
        assert sandboxes.call("Create", "pod").sandbox_id == "pod"
        assert sandboxes.call("Status", "pod").state == "SANDBOX_NOTREADY"
        started = sandboxes.call("Start", "pod")
        runs(started.pid, b"/pause\0")
        status = sandboxes.call("Status", "pod", verbose=True)
        assert (status.state, status.pid) == ("SANDBOX_READY", started.pid)
        assert status.created_at == started.created_at
        assert json.loads(status.info["spec"])["annotations"]["io.containerd.runc.v2.group"] == "pod"
        assert sandboxes.call("Platform", "pod").platform.os == "linux"
        metrics = sandboxes.call("Metrics", "pod").metrics
        assert (metrics.id, metrics.data.type_url[:22]) == ("pod", "io.containerd.cgroups.")
        assert sandboxes.call("Update", "pod", fields=["labels.a"]) == pb.ControllerUpdateResponse()

        waiting = sandboxes.wait("pod")
        sandboxes.call("Stop", "pod", timeout_secs=10)
        assert waiting.result().exit_status == 0  # pause takes SIGTERM as its end
        ended = sandboxes.call("Status", "pod")
        assert (ended.state, ended.exited_at) == ("SANDBOX_NOTREADY", waiting.result().exited_at)
        sandboxes.call("Stop", "pod")  # twice is fine
        told = [next(events) for _ in range(3)]
    assert [one.topic for one in told] == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]
    assert SandboxExit.FromString(told[2].event.value).sandbox_id == "pod"
    sandboxes.call("Shutdown", "pod")
    assert daemon.rctl("ps", "-aq").stdout == ""
    assert code(sandboxes.call, "Shutdown", "pod") == "NOT_FOUND"
    sandboxes.forget("pod")


def test_a_sandbox_is_joined_in_its_network_and_served_by_its_shim(daemon, sandboxes, pause, rootfs):
    sandbox = types_pb2.Sandbox(sandbox_id="pod", sandboxer="podsandbox")
    sandbox.spec.CopyFrom(Any(type_url=SPEC_TYPE, value=json.dumps(pause).encode()))
    # Without a record, as the request alone says; in a network namespace that is there.
    network = f"/proc/{os.getpid()}/ns/net"
    sandboxes.call("Create", "pod", "pause", sandbox=sandbox, netns_path=network, annotations={"a": "b"})
    pid = sandboxes.call("Start", "pod", "pause").pid
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path(network).readlink()
    spec = json.loads(sandboxes.call("Status", "pod", "pause", verbose=True).info["spec"])
    assert spec["annotations"]["a"] == "b"
    assert sandboxes.call("Status", "pod", "pause").state == "SANDBOX_READY"
    assert code(sandboxes.call, "Create", "pod", "pause", sandbox=sandbox) == "ALREADY_EXISTS"
    sandboxes.call("Shutdown", "pod", "pause")  # it is ended first
    assert not Path(f"/proc/{pid}").exists()


def test_a_sandbox_outlives_the_daemon_and_its_end_is_told(daemon, sandboxes, pause):
    sandboxes.record("pod", "pause", **pause)
    sandboxes.call("Create", "pod")
    pid = sandboxes.call("Start", "pod").pid
    daemon.stop()
    daemon.start()
    again = Sandboxes(daemon)
    status = again.call("Status", "pod")
    assert (status.state, status.pid) == ("SANDBOX_READY", pid)
    with daemon.events("topic==/sandboxes/exit") as events:
        again.call("Stop", "pod")
        assert SandboxExit.FromString(next(events).event.value).sandbox_id == "pod"
    again.call("Shutdown", "pod")
    again.forget("pod")
    again.channel.close()


def test_errors_of_the_controllers(daemon, sandboxes, pause):
    assert code(sandboxes.call, "Create", "nosuch", "pause") == "NOT_FOUND"  # it has no record
    assert code(sandboxes.call, "Create", "../x", "pause") == "INVALID_ARGUMENT"
    other = types_pb2.Sandbox(sandbox_id="other")
    assert code(sandboxes.call, "Create", "pod", "pause", sandbox=other) == "INVALID_ARGUMENT"
    bad = types_pb2.Sandbox(sandbox_id="pod")
    bad.spec.value = b"[]"
    assert code(sandboxes.call, "Create", "pod", "pause", sandbox=bad) == "INVALID_ARGUMENT"
    own = types_pb2.Sandbox(sandbox_id="pod")
    assert code(sandboxes.call, "Create", "pod", "shim", sandbox=own) == "UNIMPLEMENTED"  # our shim has no such API
    for method in ("Start", "Platform", "Wait", "Shutdown", "Metrics", "Update"):
        for sandboxer in ("pause", "shim", ""):
            assert code(sandboxes.call, method, "nosuch", sandboxer) == "NOT_FOUND"
    assert code(sandboxes.call, "Start", "pod", "nosuch") == "NOT_FOUND"
    assert code(sandboxes.call, "Update", "pod", "pause", fields=["created_at"]) == "INVALID_ARGUMENT"
    sandboxes.call("Stop", "nosuch", "pause")
    status = sandboxes.call("Status", "nosuch", "shim")
    assert (status.state, status.HasField("exited_at")) == ("SANDBOX_NOTREADY", True)
    with pytest.raises(grpc.RpcError, match="namespace is required"):
        ControllerStub(sandboxes.channel).Stop(pb.ControllerStopRequest(sandbox_id="x"))


def test_a_container_that_is_no_sandbox_is_none(daemon, sandboxes, rootfs):
    client = Client(daemon)
    client.record("plain", rootfs)
    assert code(sandboxes.call, "Shutdown", "plain", "pause") == "NOT_FOUND"
    daemon.rctl("rm", "plain")


def test_a_shim_with_the_sandbox_api_serves_the_tasks_of_its_sandbox(daemon, sandboxes, shim):
    sandboxes.record("vm", "shim", runtime=shim, fake={})
    with daemon.events("topic~=^/sandboxes/") as events:
        sandboxes.call("Create", "vm", netns_path="/run/netns/x", annotations={"a": "b"})
        started = sandboxes.call("Start", "vm")
        assert started.address.startswith("unix://")
        assert started.version == 3
        status = sandboxes.call("Status", "vm", verbose=True)
        assert (status.state, status.pid, status.address) == ("SANDBOX_READY", started.pid, started.address)
        assert status.info["netns"] == "/run/netns/x"
        assert "/io.containerd.sandbox.controller.v1.shim/" in status.info["bundle"]
        assert sandboxes.call("Platform", "vm").platform.architecture == "fake"
        assert sandboxes.call("Metrics", "vm").metrics.id == "vm"

        tasks = TasksStub(sandboxes.channel)
        metadata = (("containerd-namespace", daemon.namespace),)
        for joins in ({"task_api_address": started.address, "task_api_version": 3}, {}):
            Client(daemon).containers.Create(_container("box", shim, "vm"), metadata=metadata)
            tasks.Create(tasks_pb2.CreateTaskRequest(container_id="box", **joins), metadata=metadata)
            tasks.Kill(tasks_pb2.KillRequest(container_id="box", signal=9), metadata=metadata)
            tasks.Wait(tasks_pb2.WaitRequest(container_id="box"), metadata=metadata, timeout=20)
            tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id="box"), metadata=metadata)
            assert sandboxes.call("Status", "vm").state == "SANDBOX_READY"  # the task that leaves does not end it
            daemon.rctl("rm", "box")

        os.kill(started.pid, signal.SIGSTOP)  # it keeps nobody else waiting
        daemon.stop()
        daemon.start()
        again = Sandboxes(daemon)
        assert code(again.call, "Status", "vm", timeout=1) == "DEADLINE_EXCEEDED"
        os.kill(started.pid, signal.SIGCONT)
        assert again.call("Status", "vm").pid == started.pid
    with daemon.events("topic==/sandboxes/exit") as events:
        again.call("Stop", "vm")
        assert SandboxExit.FromString(next(events).event.value).exit_status == 7
    shim_ends = os.pidfd_open(started.pid)
    again.call("Shutdown", "vm")
    assert select.select([shim_ends], [], [], 10)[0]
    os.close(shim_ends)
    assert code(again.call, "Start", "vm") == "NOT_FOUND"
    again.forget("vm")
    again.channel.close()


def test_a_shim_that_is_killed_ends_its_sandbox(daemon, shim):
    sandboxes = Sandboxes(daemon)
    sandboxes.record("vm", "shim", runtime=shim, fake={})
    sandboxes.call("Create", "vm")
    pid = sandboxes.call("Start", "vm").pid
    with daemon.events("topic==/sandboxes/exit") as events:
        os.kill(pid, signal.SIGKILL)
        assert SandboxExit.FromString(next(events).event.value).exit_status == 137
    assert sandboxes.call("Status", "vm").state == "SANDBOX_NOTREADY"
    assert code(sandboxes.call, "Platform", "vm") == "UNAVAILABLE"
    sandboxes.call("Shutdown", "vm")
    assert not list(daemon.state.glob("io.containerd.sandbox.controller.v1.shim/*/*"))
    sandboxes.forget("vm")


def test_a_shim_that_refuses_leaves_nothing(daemon, shim):
    sandboxes = Sandboxes(daemon)
    sandboxes.record("vm", "shim", runtime=shim, fake={"sandbox_error": "no memory for that"})
    with pytest.raises(grpc.RpcError, match="failed to create sandbox vm: no memory for that"):
        sandboxes.call("Create", "vm")
    assert not list(daemon.state.glob("io.containerd.sandbox.controller.v1.shim/*/*"))
    assert code(sandboxes.call, "Start", "vm") == "NOT_FOUND"
    sandboxes.forget("vm")


@pytest.mark.parametrize(("address", "version"), [("tcp://x", 3), ("relative", 3), ("unix:///x", 9)])
def test_an_address_that_is_no_shim_is_refused(daemon, address, version):
    tasks, metadata = TasksStub(Sandboxes(daemon).channel), (("containerd-namespace", daemon.namespace),)
    request = tasks_pb2.CreateTaskRequest(container_id="x", task_api_address=address, task_api_version=version)
    assert code(tasks.Create, request, metadata=metadata) == "INVALID_ARGUMENT"


def _container(id, runtime, sandbox):
    container = containers_pb2.Container(id=id, sandbox=sandbox)
    container.runtime.name = runtime
    container.spec.CopyFrom(Any(type_url=SPEC_TYPE, value=b"{}"))
    return containers_pb2.CreateContainerRequest(container=container)
