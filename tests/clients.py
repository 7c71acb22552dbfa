"""A client of the gRPC API as programs are: stubs, one connection, containers of a root file system in a directory."""

import json
import shutil
from pathlib import Path

import grpc

from runtimed.api import containers_pb2, tasks_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import PrivateDaemon

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def busybox_rootfs(directory: Path) -> Path:
    """Make a root file system that has busybox, and nothing else."""
    for name in ("bin", "proc", "dev"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    return directory


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
            "mounts": [  # /dev, so that several may share the rootfs
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
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

    def status(self, id: str, exec_id: str = "") -> int | None:
        try:
            request = tasks_pb2.GetRequest(container_id=id, exec_id=exec_id)
            found = self.tasks.Get(request, metadata=self._metadata, timeout=10)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return int(found.process.status)

    def kill(self, id: str, exec_id: str = "") -> int:
        """Kill a process and return the exit status it had."""
        request = tasks_pb2.KillRequest(container_id=id, exec_id=exec_id, signal=9)
        self.tasks.Kill(request, metadata=self._metadata, timeout=10)
        wait = tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)
        return int(self.tasks.Wait(wait, metadata=self._metadata, timeout=10).exit_status)

    def exec(self, id: str, exec_id: str) -> None:
        request = tasks_pb2.ExecProcessRequest(container_id=id, exec_id=exec_id)
        request.spec.type_url = SPEC_TYPE.replace("Spec", "Process")
        request.spec.value = json.dumps(
            {"cwd": "/", "args": ["/bin/busybox", "sleep", "1000"], "user": {"uid": 0, "gid": 0}}
        ).encode()
        self.tasks.Exec(request, metadata=self._metadata, timeout=10)

    def start_exec(self, id: str, exec_id: str) -> None:
        request = tasks_pb2.StartRequest(container_id=id, exec_id=exec_id)
        self.tasks.Start(request, metadata=self._metadata, timeout=10)

    def delete_exec(self, id: str, exec_id: str) -> None:
        request = tasks_pb2.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        self.tasks.DeleteProcess(request, metadata=self._metadata, timeout=10)

    def lived(self, id: str, rootfs: Path) -> None:
        """Make a container and its record, run it, and remove both."""
        self.record(id, rootfs)
        self.create(id)
        self.start(id)
        self.kill(id)
        self.delete(id)
        request = containers_pb2.DeleteContainerRequest(id=id)
        self.containers.Delete(request, metadata=self._metadata, timeout=10)

    def delete(self, id: str) -> None:
        self.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=id), metadata=self._metadata, timeout=10)


def unwarned(stderr: str) -> str:
    """Return what ctr has written without the deprecations it was told of, which it repeats since 1.7."""
    return "".join(line for line in stderr.splitlines(keepends=True) if "DEPRECATION: " not in line)
