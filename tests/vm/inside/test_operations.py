"""The operations on a task where cgroup v2 is all there is, with runc and crun, by rctl and by the API itself."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import cgroups_v2_pb2, containers_pb2, events_pb2, runc_options_pb2, snapshots_pb2, types_pb2
from runtimed.api import leases_pb2 as leases
from runtimed.api import tasks_pb2 as pb
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.leases_pb2_grpc import LeasesStub
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import PrivateDaemon
from tests.vm.inside.conftest import cgroup_of

pytestmark = pytest.mark.root

EAT = "x=0123456789; while :; do x=$x$x; done"
COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.5; done"


@contextmanager
def container(daemon: PrivateDaemon, image: str, runtime: str, *command: str) -> Iterator[str]:
    daemon.run("-d", "--runtime", runtime, "--memory", "64m", "--pids-limit", "32", image, "box", *command)
    try:
        yield "box"
    finally:
        daemon.rctl("rm", "-f", "box")


@contextmanager
def api(daemon: PrivateDaemon) -> Iterator[Any]:
    """Call methods of the API as any client does: ``call(Stub, method, request)``."""
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:

        def call(stub: Any, method: str, request: Any, **metadata: str) -> Any:
            headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
            headers.append(("containerd-namespace", daemon.namespace))
            return getattr(stub(channel), method)(request, metadata=headers, timeout=120)

        yield call


def test_a_container_is_measured_changed_paused_and_resumed(daemon: PrivateDaemon, image, runtime):
    with container(daemon, image, runtime, "sleep", "600") as box:
        assert daemon.rctl("exec", box, "cat", "/proc/1/comm").stdout == "sleep\n"
        with api(daemon) as call:
            [metric] = call(TasksStub, "Metrics", pb.MetricsRequest(filters=[f"id=={box}"])).metrics
            assert metric.data.type_url == "io.containerd.cgroups.v2.Metrics"
            metrics = cgroups_v2_pb2.Metrics.FromString(metric.data.value)
            assert (metrics.pids.current, metrics.pids.limit) == (1, 32)
            assert metrics.cpu.usage_usec > 0
            assert 0 < metrics.memory.usage < metrics.memory.usage_limit == 64 << 20
            assert metrics.memory.anon > 0
            assert metrics.memory_events.oom_kill == 0
            pid = call(TasksStub, "Get", pb.GetRequest(container_id=box)).process.pid
        group = cgroup_of(pid)
        daemon.rctl("update", "--memory", "32m", "--cpus", "0.5", box)
        assert (group / "memory.max").read_text() == f"{32 << 20}\n"
        assert (group / "cpu.max").read_text() == "50000 100000\n"
        assert (group / "pids.max").read_text() == "32\n"
        daemon.rctl("pause", box)
        assert "frozen 1" in (group / "cgroup.events").read_text()
        daemon.rctl("resume", box)
        assert "frozen 0" in (group / "cgroup.events").read_text()


def test_the_end_for_want_of_memory_is_told_before_the_exit(daemon: PrivateDaemon, image, runtime):
    with daemon.events("topic~=^/tasks/(oom|exit)") as events:
        done = daemon.run("--rm", "--runtime", runtime, "--memory", "16m", image, "--", "sh", "-c", EAT, check=False)
        assert done.returncode == 137, done.stderr
        assert [next(events).topic, next(events).topic] == ["/tasks/oom", "/tasks/exit"]


def test_a_child_that_is_killed_for_want_of_memory_is_told_too(daemon: PrivateDaemon, image, runtime):
    with (
        daemon.events("topic==/tasks/oom") as events,
        container(daemon, image, runtime, "sh", "-c", f"sh -c '{EAT}'; sleep 600"),
    ):
        assert events_pb2.TaskOOM.FromString(next(events).event.value).container_id == "box"


def counted(path: Path) -> int:
    """Return the last number in a file, once there is another one: the container goes on counting."""
    deadline, first = time.monotonic() + 60, None
    while time.monotonic() < deadline:
        numbers = path.read_text().split("\n")[:-1]
        if numbers and first not in (None, numbers[-1]):
            return int(numbers[-1])
        first = numbers[-1] if numbers else None
        time.sleep(0.2)
    raise AssertionError(f"nothing was counted: {path.read_text()!r}")


def test_rctl_checkpoints_and_restores(daemon: PrivateDaemon, image, tmp_path):
    daemon.run("-d", image, "counts", "sh", "-c", COUNT)
    try:
        daemon.rctl("checkpoint", "counts", tmp_path / "first")  # and it goes on
        [found] = json.loads(daemon.rctl("-o", "json", "ps").stdout)
        assert found["status"] == "running"
        daemon.rctl("checkpoint", "--exit", "counts", tmp_path / "second")
        log = daemon.rctl("logs", "counts").stdout.split()
        last = int(log[-1])
        assert last > 1
        daemon.rctl("restore", "counts", tmp_path / "second")
        deadline = time.monotonic() + 60
        while int((daemon.rctl("logs", "counts").stdout.split() or ["0"])[-1]) <= last:
            assert time.monotonic() < deadline
        assert daemon.rctl("exec", "counts", "cat", "/proc/1/comm").stdout == "sh\n"
    finally:
        daemon.rctl("rm", "-f", "counts")


def test_a_runtime_without_checkpoints_is_named(daemon: PrivateDaemon, image, tmp_path):
    with container(daemon, image, "io.containerd.crun.v1", "sleep", "600") as box:
        done = daemon.rctl("checkpoint", box, tmp_path / "images", check=False)
        assert done.returncode == 1
        assert "'crun' was built without checkpoints" in done.stderr


def test_a_task_is_checkpointed_to_the_content_store_and_restored(daemon: PrivateDaemon, image, tmp_path):
    """As dockerd does it: the output goes to a FIFO of the client's, the task is paused, saved, ended and made anew."""
    options = runc_options_pb2.Options(binary_name="runc")
    with api(daemon) as call:
        call(LeasesStub, "Create", leases.CreateRequest(id="checkpoint"))
        daemon.ctr("containers", "create", "--", image, "counts", "sh", "-c", COUNT)
        key = call(ContainersStub, "Get", containers_pb2.GetContainerRequest(id="counts")).container.snapshot_key
        mounts = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=key)
        rootfs = call(SnapshotsStub, "Mounts", mounts).mounts

        def start(output: Path, checkpoint: types_pb2.Descriptor | None = None) -> subprocess.Popen[bytes]:
            fifo = tmp_path / f"{output.name}.fifo"
            subprocess.run(["mkfifo", fifo], check=True)
            reader = subprocess.Popen(["sh", "-c", f"exec cat {fifo} > {output}"])
            create = pb.CreateTaskRequest(container_id="counts", rootfs=rootfs, stdout=str(fifo), checkpoint=checkpoint)
            create.options.type_url = options.DESCRIPTOR.full_name
            create.options.value = options.SerializeToString()
            created = call(TasksStub, "Create", create).pid
            started = call(TasksStub, "Start", pb.StartRequest(container_id="counts")).pid
            assert created == (0 if checkpoint else started)
            assert started > 0
            return reader

        def end(reader: subprocess.Popen[bytes]) -> None:
            call(TasksStub, "Kill", pb.KillRequest(container_id="counts", signal=9))
            call(TasksStub, "Wait", pb.WaitRequest(container_id="counts"))
            call(TasksStub, "Delete", pb.DeleteTaskRequest(container_id="counts"))
            assert reader.wait(20) == 0

        reader = start(tmp_path / "before")
        counted(tmp_path / "before")
        call(TasksStub, "Pause", pb.PauseTaskRequest(container_id="counts"))
        with daemon.events("topic==/tasks/checkpointed") as events:
            request = pb.CheckpointTaskRequest(container_id="counts")
            images, spec = call(TasksStub, "Checkpoint", request, containerd_lease="checkpoint").descriptors
            assert events_pb2.TaskCheckpointed.FromString(next(events).event.value).container_id == "counts"
        assert images.media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
        assert spec.media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
        call(TasksStub, "Resume", pb.ResumeTaskRequest(container_id="counts"))
        end(reader)
        last = int((tmp_path / "before").read_text().split("\n")[-2])

        reader = start(tmp_path / "after", images)
        assert counted(tmp_path / "after") > 1
        first = int((tmp_path / "after").read_text().split("\n")[0])
        assert 1 < first <= last + 1, "it goes on where it was"
        end(reader)
        call(ContainersStub, "Delete", containers_pb2.DeleteContainerRequest(id="counts"))
        call(SnapshotsStub, "Remove", snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=key))
        call(LeasesStub, "Delete", leases.DeleteRequest(id="checkpoint", sync=True))
