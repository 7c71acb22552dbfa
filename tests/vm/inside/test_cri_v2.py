"""Pods where cgroup v2 is all there is, with swap, pressure and AppArmor: what the machine's own kernel has not."""

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri, cri_daemon
from tests.vm.inside.conftest import cgroup_of, pushed

pytestmark = pytest.mark.root

PROFILE = """\
profile rtd-vm flags=(attach_disconnected) {
    file,
    capability,
    signal,
    deny /etc/motd r,
}
"""
KINDS = pb.SecurityProfile.ProfileType


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with cri_daemon() as running, pushed(tmp_path_factory.mktemp("image")) as image:
        running.write_network()
        running.pull(image)
        running.image = image
        yield running


@pytest.fixture(scope="module")
def pod(cri: Cri) -> str:
    return cri.run_pod("pod", network=pb.NODE, privileged=True)


@pytest.fixture
def start(cri: Cri, pod: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Start a container; it goes after the test."""
    made: list[str] = []

    def run(command: str = "sleep 1000", of: str = "", **options: Any) -> str:
        name = f"c{abs(hash(request.node.name)) & 0xFFFFFF}-{len(made)}"
        made.append(cri.create(of or pod, cri.container_config(name, command, image=cri.image, **options)))
        cri.start(made[-1])
        return made[-1]

    yield run
    for id in made:
        cri.remove(id)


def cgroup(id: str) -> Path:
    [path] = Path("/sys/fs/cgroup").glob(f"**/{id}")
    return path


def read(id: str, *names: str) -> list[str]:
    return [(cgroup(id) / name).read_text().strip() for name in names]


def test_limits_are_files_of_cgroup_v2_and_change_while_it_runs(cri: Cri, start: Callable[..., str]):
    first = pb.LinuxContainerResources(
        cpu_shares=1024,
        cpu_quota=50_000,
        cpu_period=100_000,
        cpuset_cpus="0",
        memory_limit_in_bytes=64 << 20,
        memory_swap_limit_in_bytes=96 << 20,
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4 << 20)],
        unified={"memory.high": str(48 << 20), "pids.max": "50"},
    )
    names = "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max", "memory.high", "hugetlb.2MB.max", "pids.max"
    id = start(resources=first)
    high = str(48 << 20)
    assert read(id, *names) == ["50000 100000", "0", str(64 << 20), str(32 << 20), high, str(4 << 20), "50"]
    weight = int(read(id, "cpu.weight")[0])
    assert weight == 39
    # It sees no other cgroup than its own.
    assert cri.shell(id, "cat /sys/fs/cgroup/memory.max /proc/self/cgroup") == f"{64 << 20}\n0::/\n"

    changed = pb.LinuxContainerResources(
        cpu_shares=2048,
        cpu_quota=20_000,
        cpu_period=100_000,
        memory_limit_in_bytes=80 << 20,
        memory_swap_limit_in_bytes=80 << 20,
        unified={"memory.high": "max"},
    )
    request = pb.UpdateContainerResourcesRequest(container_id=id, linux=changed)
    cri.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)
    assert read(id, *names) == ["20000 100000", "0", str(80 << 20), "0", "max", str(4 << 20), "50"]
    assert int(read(id, "cpu.weight")[0]) > weight
    told = cri.status(id).resources.linux
    assert (told.cpu_quota, told.memory_limit_in_bytes, told.cpuset_cpus) == (20_000, 80 << 20, "0")
    assert dict(told.unified) == {"memory.high": "max", "pids.max": "50"}


def test_what_is_no_file_of_a_controller_is_refused(cri: Cri, pod: str):
    for key in ("cgroup.procs", "../x.y", "memory", "memory.max/../x.y"):
        resources = pb.LinuxContainerResources(unified={key: "1"})
        with pytest.raises(grpc.RpcError, match="is not a file of a cgroup controller") as failed:
            cri.create(pod, cri.container_config("bad", "true", image=cri.image, resources=resources))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def swap() -> Iterator[None]:
    path = Path("/data/swap")
    with path.open("wb") as file:
        for _ in range(96):
            file.write(bytes(1 << 20))
    path.chmod(0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    subprocess.run(["swapon", path], check=True)
    yield
    subprocess.run(["swapoff", path], check=True)
    path.unlink()


def test_swap_and_pressure_are_measured(cri: Cri, pod: str, start: Callable[..., str], swap: None):
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=24 << 20, memory_swap_limit_in_bytes=88 << 20)
    id = start(resources=resources)
    assert cri.shell(id, "head -c 40000000 /dev/zero > /dev/shm/large && echo written") == "written\n"
    stats = cri.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=id), timeout=TIMEOUT_S).stats
    assert stats.swap.swap_usage_bytes.value > 8 << 20
    assert stats.swap.swap_usage_bytes.value + stats.swap.swap_available_bytes.value == 64 << 20
    assert stats.memory.usage_bytes.value <= 24 << 20
    assert stats.memory.psi.Some.Total > 0
    assert stats.cpu.psi.Some.Total > 0
    assert stats.io.HasField("psi")
    of_pod = cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S).stats
    assert of_pod.linux.memory.psi.Some.Total > 0
    cri.shell(id, "rm /dev/shm/large")


@pytest.fixture
def parent(cri: Cri) -> Iterator[Path]:
    """A pod's cgroup as a kubelet makes it, with limits."""
    top = Path("/sys/fs/cgroup") / cri.daemon.cgroup_parent.strip("/")
    made = top / "pod-limited"
    made.mkdir(parents=True)
    for path in (top, made):
        (path / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    yield made
    made.rmdir()


def test_limits_of_the_pod_hold_for_its_containers(cri: Cri, parent: Path, start: Callable[..., str]):
    (parent / "pids.max").write_text("12")
    (parent / "memory.max").write_text(str(48 << 20))
    (parent / "memory.swap.max").write_text("0")
    pod = cri.run_pod("limited", network=pb.NODE, cgroup_parent=f"{cri.daemon.cgroup_parent}/{parent.name}")
    id = start("head -c 1000 /dev/zero > /dev/shm/x; sleep 1000", of=pod)
    assert cgroup(id).parent == parent
    assert "fork" in cri.shell(id, "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 9 & done; true")
    stats = cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S).stats
    assert 2 <= stats.linux.process.process_count.value <= 12
    assert stats.linux.memory.available_bytes.value == (48 << 20) - stats.linux.memory.working_set_bytes.value
    (parent / "pids.max").write_text("max")
    with cri.events() as events:
        eater = start("x=x; while :; do x=$x$x; done", of=pod)  # it has no limit of its own
        if cri.status(eater).state != pb.CONTAINER_EXITED:
            next(
                one
                for one in events
                if one.container_id == eater and one.container_event_type == pb.CONTAINER_STOPPED_EVENT
            )
    assert cri.status(eater).exit_code == 137
    cri.remove_pod(pod)


# AppArmor


def profile_of(cri: Cri, id: str) -> str:
    return cri.shell(id, "cat /proc/self/attr/current").strip()


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "profile"
    path.write_text(PROFILE)
    subprocess.run(["apparmor_parser", "-Kr", path], check=True)
    yield "rtd-vm"
    subprocess.run(["apparmor_parser", "-R", path], check=True)


def test_the_default_profile_confines_whoever_asks_for_it_or_for_nothing(cri: Cri, pod: str, start: Callable[..., str]):
    able = {"capabilities": pb.Capability(add_capabilities=["SYS_ADMIN"])}
    for asked in ({}, {"apparmor": pb.SecurityProfile()}, {"apparmor_profile": "runtime/default"}):
        id = start(security={**able, **asked})
        assert profile_of(cri, id) == "runtimed-default (enforce)"
        assert "denied" in cri.shell(id, "mount -t tmpfs x /dev/shm 2>&1; true").lower()
        assert "denied" in cri.shell(id, "echo 1 > /proc/sysrq-trigger; true").lower()
    plain = cri.run_pod("plain", network=pb.NODE)
    pause = cri.info(plain)["pid"]
    assert Path(f"/proc/{pause}/attr/current").read_text().strip() == "runtimed-default (enforce)"
    cri.remove_pod(plain)


def test_unconfined_and_privileged_containers_have_no_profile(cri: Cri, start: Callable[..., str]):
    able = {"capabilities": pb.Capability(add_capabilities=["SYS_ADMIN"])}
    for asked in ({"apparmor": pb.SecurityProfile(profile_type=KINDS.Unconfined)}, {"apparmor_profile": "unconfined"}):
        id = start(security={**able, **asked})
        assert profile_of(cri, id) == "unconfined"
        assert cri.shell(id, "mount -t tmpfs x /dev/shm && echo mounted") == "mounted\n"
    assert profile_of(cri, start(security={"privileged": True})) == "unconfined"


def test_a_profile_of_the_machine_by_its_name(cri: Cri, pod: str, start: Callable[..., str], loaded: str):
    new = {"apparmor": pb.SecurityProfile(profile_type=KINDS.Localhost, localhost_ref=loaded)}
    for asked in (new, {"apparmor_profile": f"localhost/{loaded}"}):
        id = start(security=asked)
        assert profile_of(cri, id) == f"{loaded} (enforce)"
        assert "denied" in cri.shell(id, "cat /etc/motd 2>&1; true").lower()
    missing = {"apparmor": pb.SecurityProfile(profile_type=KINDS.Localhost, localhost_ref="not-there")}
    with pytest.raises(grpc.RpcError, match="'not-there' is not loaded") as failed:
        cri.create(pod, cri.container_config("missing", "true", image=cri.image, security=missing))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert not [one for one in cri.containers() if one.metadata.name == "missing"]


def test_user_namespaces_of_pods_are_offered_as_far_as_the_kernel_goes(cri: Cri, tmp_path: Path):
    ids = [pb.IDMapping(host_id=400000, container_id=0, length=65536)]
    pod = cri.run_pod("mapped", userns=pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids))
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("on a disk\n")

    def mount(path: Path) -> pb.Mount:
        return pb.Mount(host_path=str(path), container_path="/volume", uidMappings=ids, gidMappings=ids)

    config = functools.partial(cri.container_config, "volume", "sleep 1000", image=cri.image)
    id = cri.create(pod, config(mounts=[mount(tmp_path)]))
    cri.start(id)
    assert cri.shell(id, "id -u; stat -c %u /volume/file /bin/busybox; cat /volume/file") == "0\n0\n0\non a disk\n"
    assert cgroup_of(cri.container_info(id)["pid"]).name == id
    cri.remove(id)
    memory = cri.create(pod, config(mounts=[mount(Path("/dev/shm"))]))
    if not os.uname().release.startswith("6.1."):
        cri.start(memory)
    else:
        with pytest.raises(grpc.RpcError, match="the file system of /dev/shm has no ID-mapped mounts on Linux 6.1"):
            cri.start(memory)
        assert cri.status(memory).state == pb.CONTAINER_EXITED
    cri.remove_pod(pod)
