"""Checkpoints of containers by where their streams lead, and of one that has further processes."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import containers_pb2, types_pb2
from runtimed.api import leases_pb2 as leases
from runtimed.api import tasks_pb2 as pb
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.leases_pb2_grpc import LeasesStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import PrivateDaemon
from tests.dockerd import IMAGE, private_dockerd

pytestmark = pytest.mark.root

TYPES = "types.containerd.io/opencontainers/runtime-spec/1/"
COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.3; done"
LOGGER = '#!/bin/sh\nexec 5>&-\nexec /bin/busybox cat <&3 >> "$1"\n'


class Box:
    """One container of busybox that counts, with its rootfs, by the API."""

    def __init__(self, daemon: PrivateDaemon, call: Callable[..., Any], rootfs: Path, *, terminal: bool) -> None:
        self.id = f"box-{secrets.token_hex(4)}"
        self._call = call
        self._rootfs = rootfs
        self._terminal = terminal
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {
                "terminal": terminal,
                "cwd": "/",
                "args": ["/bin/sh", "-c", COUNT],
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "cgroupsPath": f"{daemon.cgroup_parent}/{self.id}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            },
        }
        container = containers_pb2.Container(id=self.id)
        container.runtime.name = "io.containerd.runc.v2"
        container.spec.type_url, container.spec.value = f"{TYPES}Spec", json.dumps(spec).encode()
        call(ContainersStub, "Create", containers_pb2.CreateContainerRequest(container=container))

    def start(self, stdout: str, checkpoint: types_pb2.Descriptor | None = None) -> None:
        create = pb.CreateTaskRequest(
            container_id=self.id, terminal=self._terminal, stdout=stdout, checkpoint=checkpoint
        )
        create.rootfs.add(type="bind", source=str(self._rootfs), options=["rbind", "rw"])
        self._call(TasksStub, "Create", create)
        self._call(TasksStub, "Start", pb.StartRequest(container_id=self.id))

    def checkpoint(self) -> types_pb2.Descriptor:
        request = pb.CheckpointTaskRequest(container_id=self.id)
        images: types_pb2.Descriptor
        images, _ = self._call(TasksStub, "Checkpoint", request, containerd_lease="images").descriptors
        return images

    def exec(self, id: str, *args: str) -> None:
        request = pb.ExecProcessRequest(container_id=self.id, exec_id=id)
        process = {"cwd": "/", "args": list(args), "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        request.spec.type_url, request.spec.value = f"{TYPES}Process", json.dumps(process).encode()
        self._call(TasksStub, "Exec", request)
        self._call(TasksStub, "Start", pb.StartRequest(container_id=self.id, exec_id=id))

    def end(self, id: str = "") -> int:
        self._call(TasksStub, "Kill", pb.KillRequest(container_id=self.id, exec_id=id, signal=9))
        return int(self._call(TasksStub, "Wait", pb.WaitRequest(container_id=self.id, exec_id=id)).exit_status)

    def delete(self) -> None:
        self._call(TasksStub, "Delete", pb.DeleteTaskRequest(container_id=self.id))

    def forget(self) -> None:
        self._call(ContainersStub, "Delete", containers_pb2.DeleteContainerRequest(id=self.id))


@pytest.fixture(scope="module")
def call(daemon: PrivateDaemon) -> Iterator[Callable[..., Any]]:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:

        def call(stub: Any, method: str, request: Any, **metadata: str) -> Any:
            headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
            headers.append(("containerd-namespace", daemon.namespace))
            return getattr(stub(channel), method)(request, metadata=headers, timeout=120)

        call(LeasesStub, "Create", leases.CreateRequest(id="images"))
        yield call
        call(LeasesStub, "Delete", leases.DeleteRequest(id="images", sync=True))


@pytest.fixture(scope="module")
def rootfs(daemon: PrivateDaemon) -> Path:
    """A tree with busybox, which the containers share."""
    rootfs = daemon.base / "tree"
    for name in ("bin", "proc", "dev", "tmp"):
        (rootfs / name).mkdir(parents=True)
    for name in ("sh", "sleep"):
        shutil.copy("/bin/busybox", rootfs / "bin" / name)
    return rootfs


@pytest.fixture
def box(daemon, call, rootfs, request) -> Iterator[Box]:
    box = Box(daemon, call, rootfs, terminal=request.node.name.endswith("[terminal]"))
    yield box
    box.forget()


@pytest.fixture
def fifo(tmp_path) -> Iterator[Callable[[Path, int], str]]:
    """Make a FIFO that a client reads to a file."""
    with ExitStack() as held:

        def make(target: Path, mode: int) -> str:
            path = target.with_suffix(".fifo")
            os.mkfifo(path, mode)
            held.enter_context(subprocess.Popen(["sh", "-c", f"exec cat {path} > {target}"]))
            return str(path)

        yield make


def numbers(path: Path) -> list[int]:
    """Return the numbers in an output of any of these kinds, of those lines that are whole."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [int(line.split()[-1]) for line in lines if line.split()]


def more_than(path: Path, least: int) -> list[int]:
    """Wait until it has counted further than *least*; return the numbers."""
    deadline = time.monotonic() + 60
    while not (found := numbers(path)) or found[-1] <= least:
        assert time.monotonic() < deadline, f"it is {found}"
        time.sleep(0.1)
    return found


def end(box: Box) -> None:
    assert box.end() == 137
    box.delete()


@pytest.mark.parametrize("stream", ["terminal", "cri", "binary", "file"])
def test_a_container_is_checkpointed_and_goes_on_in_a_new_task(box, stream, tmp_path):
    logger = tmp_path / "logger"
    logger.write_text(LOGGER)
    logger.chmod(0o755)
    uris = {"cri": "cri://{}", "binary": f"binary://{logger}?{{}}="}
    uri = uris.get(stream, "file://{}")
    before, after = tmp_path / "before", tmp_path / "after"
    box.start(uri.format(before))
    more_than(before, 1)
    images = box.checkpoint()
    last = numbers(before)[-1]
    more_than(before, last)  # it goes on
    end(box)
    box.start(uri.format(after), images)
    found = more_than(after, last)
    assert 1 < found[0] <= last + 2, "it goes on where it was"
    end(box)


def test_a_stream_may_become_another_of_its_kind_and_one_that_is_never_restored_can_be_ended(box, fifo, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    box.start(fifo(before, 0o600))
    more_than(before, 1)
    images = box.checkpoint()
    last = numbers(before)[-1]
    end(box)
    with pytest.raises(grpc.RpcError, match="descriptor 1 was a FIFO or pipe cannot be restored on a file"):
        box.start(f"file://{after}", images)
    end(box)
    box.start(fifo(after, 0o640), images)
    assert 1 < more_than(after, last)[0] <= last + 2
    end(box)


def test_a_further_process_is_no_part_of_a_checkpoint_and_goes_on(box, call, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    box.start(f"file://{before}")
    box.exec("e1", "sleep", "600")
    images = box.checkpoint()
    last = numbers(before)[-1]
    more_than(before, last)
    assert box.end("e1") == 137
    end(box)
    box.start(f"file://{after}", images)
    more_than(after, last)
    listed = call(TasksStub, "ListPids", pb.ListPidsRequest(container_id=box.id)).processes
    commands = [Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[1] for process in listed]
    assert commands.count(b"600") == 0
    end(box)


def test_ctr_checkpoints_to_an_image_with_what_was_written_and_restores_from_it(daemon: PrivateDaemon, image):
    """The image has the checkpoint, the container's record, its image and a layer of what it has written."""

    def counted(container: str) -> int:
        # Nothing while there is no such task, or none that runs, or no such file.
        done = daemon.ctr("tasks", "exec", "--exec-id", "e", container, "cat", "/count", check=False)
        return int(done.stdout or 0)

    count = "n=0; while :; do n=$((n+1)); echo $n > /new; /bin/busybox mv /new /count; sleep 0.3; done"
    daemon.ctr("run", "-d", image, "counts", "sh", "-c", count)
    deadline = time.monotonic() + 60
    while not counted("counts"):
        assert time.monotonic() < deadline
    name = daemon.ctr("tasks", "checkpoint", "counts").stdout.strip()
    assert name.startswith("containerd.io/checkpoint/counts:")
    daemon.ctr("containers", "checkpoint", "--task", "--image", "--rw", "counts", "example.org/saved:1")
    last = counted("counts")
    assert last > 0
    daemon.ctr("tasks", "kill", "-s", "9", "counts")
    daemon.ctr("tasks", "rm", "counts")
    daemon.ctr("containers", "rm", "counts")
    daemon.ctr("snapshots", "rm", "counts", check=False)
    daemon.ctr("containers", "restore", "--rw", "--live", "again", "example.org/saved:1")
    assert counted("again") >= last  # what it had written is there at once
    deadline = time.monotonic() + 60
    while counted("again") <= last + 1:
        assert time.monotonic() < deadline
    daemon.ctr("tasks", "kill", "-s", "9", "again")
    daemon.ctr("tasks", "rm", "again")
    daemon.ctr("containers", "rm", "again")
    for reference in (name, "example.org/saved:1"):
        daemon.ctr("images", "rm", reference)


def test_docker_checkpoints_and_starts_from_a_checkpoint(daemon: PrivateDaemon, tmp_path):
    unconfined = ("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")
    with private_dockerd(daemon, tmp_path / "docker", "--experimental", "--bridge=none") as docker:

        def lines() -> list[str]:
            return docker.out("logs", "counts").split()

        try:
            docker("run", "-d", "--name", "counts", "--network", "host", *unconfined, IMAGE, "sh", "-c", COUNT)
            docker("checkpoint", "create", "counts", "one")
            docker("wait", "counts")
            last = int(lines()[-1])
            docker("start", "--checkpoint", "one", "counts")
            deadline = time.monotonic() + 60
            while int(lines()[-1]) <= last:
                assert time.monotonic() < deadline
            assert int(lines()[lines().index(str(last)) + 1]) > 1
            docker("rm", "-f", "counts")
        except BaseException:
            print(docker.log.read_text()[-5000:])
            raise
