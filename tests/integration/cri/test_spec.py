"""Produced specs, run by the real runc: a pod's pause and a container that joins it."""

import shutil
import subprocess
import tempfile
import uuid
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest
from runtimed.cri.rootfs import Rootfs
from runtimed.cri.spec import container_spec, sandbox_spec
from runtimed.oci.manifest import Execution

pytestmark = pytest.mark.root

BUSYBOX = Path("/bin/busybox")


class Runc:
    def __init__(self, base):
        self.base = base
        self.cgroup_parent = f"/rtd-test-{uuid.uuid4().hex[:8]}"

    def bundle(self, id, spec):
        root = self.base / id / "rootfs"
        root.mkdir(parents=True, exist_ok=True)
        (root.parent / "config.json").write_bytes(spec.encode())
        return root.parent

    def __call__(self, *args):
        argv = ["runc", "--root", str(self.base / "state"), *args]
        # Files, not pipes: what runs on would keep a pipe open.
        with (self.base / "out").open("w+") as out, (self.base / "err").open("w+") as err:
            code = subprocess.run(argv, stdout=out, stderr=err, stdin=subprocess.DEVNULL).returncode
        return subprocess.CompletedProcess(argv, code, (self.base / "out").read_text(), (self.base / "err").read_text())


def rootfs(path):
    (path / "bin").mkdir(parents=True)
    for name in ("proc", "sys", "dev", "etc", "data"):
        (path / name).mkdir()
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for name in ("sh", "sleep", "id", "hostname", "cat", "chroot", "unshare", "mount"):
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc/passwd").write_text("alice:x:1000:1001::/:/bin/sh\n")
    (path / "data/file").write_text("from the image")


@pytest.fixture
def directory():
    """A directory that users of a user namespace can pass through."""
    path = Path(tempfile.mkdtemp(prefix="rtd-spec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def runc(directory):
    runc = Runc(directory)
    yield runc
    for id in ("container", "pause"):
        runc("delete", "--force", id)
    root = Path("/sys/fs/cgroup")
    for path in [*root.glob(f"*{runc.cgroup_parent}"), *root.glob(runc.cgroup_parent.strip("/"))]:
        path.rmdir()


@pytest.mark.parametrize("user_namespace", [False, True])
def test_a_container_runs_in_its_pod_as_asked(runc, directory, user_namespace):
    parent = runc.cgroup_parent
    options = pb.NamespaceOption()
    if user_namespace:
        ids = [pb.IDMapping(container_id=0, host_id=200000, length=65536)]
        options.userns_options.CopyFrom(pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids))
    pod = pb.PodSandboxConfig(
        hostname="pod-1",
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=parent, security_context=pb.LinuxSandboxSecurityContext(namespace_options=options)
        ),
    )
    sandbox = directory / "sandbox"
    sandbox.mkdir()
    (sandbox / "hosts").write_text("10.0.0.1 pod-1\n")
    rootfs(directory / "pause/rootfs")
    image = Execution(cmd=("/bin/sleep", "60"))
    request = SandboxSpecRequest(sandbox_id="pause", config=pod, image=image, directory=sandbox)
    pid_file = directory / "pid"
    made = _run(runc, "pause", sandbox_spec(request), "--detach", "--pid-file", str(pid_file))
    assert made.returncode == 0, made.stderr

    command = "id -u; id -g; hostname; cat /etc/hosts /vol/file /proc/1/comm; "
    command += "busybox grep Seccomp: /proc/self/status; unshare -m true || echo denied"
    config = pb.ContainerConfig(
        command=["/bin/sh", "-c", command],
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=100),
            security_context=pb.LinuxContainerSecurityContext(
                namespace_options=options, run_as_username="alice", seccomp=pb.SecurityProfile(), no_new_privs=True
            ),
        ),
    )
    rootfs(directory / "container/rootfs")
    if user_namespace:  # stands for a root file system that is mounted ID-mapped
        subprocess.run(["chown", "-R", "200000:200000", directory / "container/rootfs"], check=True)
    (directory / "container/rootfs/data").rename(directory / "container/rootfs/vol")
    spec = container_spec(
        ContainerSpecRequest(
            container_id="container",
            sandbox_id="pause",
            sandbox_pid=int(pid_file.read_text()),
            config=config,
            sandbox_config=pod,
            image=Execution(volumes={"/vol": msgspec.Raw(b"{}")}),
            rootfs=Rootfs(nullcontext(directory / "container/rootfs")),
            directory=directory / "own",
            mapped_volumes=directory / "mapped",
            sandbox_directory=sandbox,
        )
    )
    ran = _run(runc, "container", spec)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:6] == [
        "1000",
        "1001",
        "pod-1",
        "10.0.0.1 pod-1",
        "from the imagesleep",
        "Seccomp:\t2",
    ]
    assert "denied" in ran.stdout


def _run(runc, id, spec, *options):
    bundle = runc.bundle(id, spec)
    bundle.chmod(0o755)
    return runc("run", *options, "--bundle", str(bundle), id)
