"""Pods whose cgroups systemd makes: the runtime asks it over D-Bus."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri, cri_daemon
from tests.vm.inside.conftest import cgroup_of, pushed

pytestmark = pytest.mark.root

SLICE = "rtdvm.slice"
CONFIG = '[runtimes."io.containerd.runc.v2"]\nsystemd_cgroup = true\n'


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with cri_daemon(CONFIG) as running, pushed(tmp_path_factory.mktemp("image")) as image:
        running.write_network()
        running.pull(image)
        running.image = image
        yield running
        running.clear()
        # The slices are the kubelet's.
        subprocess.run(["systemctl", "stop", SLICE], check=True)


def properties(unit: str, *names: str) -> dict[str, str]:
    shown = subprocess.run(
        ["systemctl", "show", unit, *(f"--property={name}" for name in names)],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def test_systemd_makes_and_limits_the_cgroups_of_pods(cri: Cri):
    driver = cri.runtime.RuntimeConfig(pb.RuntimeConfigRequest(), timeout=TIMEOUT_S).linux.cgroup_driver
    assert driver == pb.SYSTEMD
    parent = f"/{SLICE}/rtdvm-pod1.slice"
    pod = cri.run_pod("pod", cgroup_parent=parent)
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_quota=50_000, cpu_period=100_000)
    id = cri.create(pod, cri.container_config("one", "sleep 1000", image=cri.image, resources=resources))
    cri.start(id)
    scope = f"cri-containerd-{id}.scope"
    assert cgroup_of(cri.container_info(id)["pid"]) == Path("/sys/fs/cgroup", parent.lstrip("/"), scope)
    assert cgroup_of(cri.info(pod)["pid"]).name == f"cri-containerd-{pod}.scope"
    found = properties(scope, "ActiveState", "Slice", "MemoryMax")
    assert found == {"ActiveState": "active", "Slice": "rtdvm-pod1.slice", "MemoryMax": str(64 << 20)}

    changed = pb.LinuxContainerResources(memory_limit_in_bytes=80 << 20)
    request = pb.UpdateContainerResourcesRequest(container_id=id, linux=changed)
    cri.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)
    assert properties(scope, "MemoryMax") == {"MemoryMax": str(80 << 20)}

    stats = cri.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=id), timeout=TIMEOUT_S).stats
    assert stats.memory.usage_bytes.value > 0
    of_pod = cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S).stats
    assert of_pod.linux.process.process_count.value >= 2
    cri.remove_pod(pod)
    assert properties(scope, "ActiveState") == {"ActiveState": "inactive"}
    assert not Path("/sys/fs/cgroup", parent.lstrip("/"), scope).exists()


def test_a_parent_of_the_other_driver_is_refused(cri: Cri):
    with pytest.raises(grpc.RpcError, match="is not a slice") as failed:
        cri.run_pod("other", cgroup_parent="/kubepods/pod1")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_daemon_that_is_restarted_finds_the_containers_in_their_scopes(cri: Cri):
    pod = cri.run_pod("restarted", cgroup_parent=f"/{SLICE}/rtdvm-pod2.slice", network=pb.NODE)
    id = cri.create(pod, cri.container_config("two", "exec sleep 1000", image=cri.image))
    cri.start(id)
    cri.daemon.kill()
    cri.daemon.start()
    cri.reconnect()
    assert cri.status(id).state == pb.CONTAINER_RUNNING
    cri.stop(id)
    assert (cri.status(id).state, cri.status(id).exit_code) == (pb.CONTAINER_EXITED, 137)
    cri.remove_pod(pod)
