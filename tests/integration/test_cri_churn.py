"""A kubelet-like driver: pods come and go, are listed, probed, retried; afterwards nothing of them is left.

``RUNTIMED_CHURN_S`` says how long, in seconds, where more than the few of the suite are wanted.
"""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri, cri_daemon
from tests.images.busybox import NAME
from tests.images.busybox import busybox as busybox_layout

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.slow]

_SECONDS = float(os.environ.get("RUNTIMED_CHURN_S", "4"))
_WORKERS = 4


@pytest.fixture
def image(registry, tmp_path):
    return registry.push(busybox_layout(tmp_path / "layout"), "churn/busybox:1", source=NAME)


class Kubelet:
    """Workers that each bring pods up and down, and one that lists, until the time is over."""

    def __init__(self, cri: Cri, image: str) -> None:
        self.cri = cri
        self.image = image
        self.ends_at = time.monotonic() + _SECONDS
        self.pods = self.relists = 0
        self.stopped = threading.Event()

    def work(self, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < self.ends_at:
            self.live(chance)
            self.pods += 1

    def live(self, chance: random.Random) -> None:
        cri = self.cri
        config = cri.pod_config(f"p{chance.randrange(1 << 30)}")
        if chance.random() < 0.3:  # gives up, and asks again
            with _GivingUp():
                cri.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config), timeout=chance.uniform(0.005, 0.1))
        pod = cri.run(config)
        status = cri.pod_status(pod).status
        assert status.state == pb.SANDBOX_READY
        assert status.network.ip
        containers = []
        for name in ("a", "b"):
            command = chance.choice(["sleep 1000", "exit 3", "trap 'exit 0' TERM; sleep 1000 & wait"])
            container = cri.container_config(name, command, image=self.image)
            containers.append(cri.create(pod, container))
            if chance.random() < 0.2:
                with _GivingUp():
                    cri.runtime.StartContainer(
                        pb.StartContainerRequest(container_id=containers[-1]), timeout=chance.uniform(0.005, 0.05)
                    )
                self.started(containers[-1])
            else:
                cri.start(containers[-1])
        probe = pb.ExecSyncRequest(container_id=containers[0], cmd=["true"], timeout=10)
        try:
            assert cri.runtime.ExecSync(probe, timeout=TIMEOUT_S).exit_code == 0
        except grpc.RpcError:
            assert cri.status(containers[0]).state == pb.CONTAINER_EXITED
        if chance.random() < 0.5:
            for id in containers:
                cri.stop(id, chance.choice([0, 1]))
                assert cri.status(id).state == pb.CONTAINER_EXITED
        cri.stop_pod(pod)
        if chance.random() < 0.5:
            for id in containers:
                cri.remove(id)
        cri.remove_pod(pod)

    def started(self, id: str) -> None:
        """Start once more what may have been started: by then it has."""
        try:
            self.cri.start(id)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            assert self.cri.status(id).state != pb.CONTAINER_CREATED

    def relist(self) -> None:
        while not self.stopped.wait(0.2):
            pods = {one.id for one in self.cri.pods()}
            self.cri.containers()
            self.cri.runtime.ListContainerStats(pb.ListContainerStatsRequest(), timeout=TIMEOUT_S)
            self.cri.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest(), timeout=TIMEOUT_S)
            assert len(pods) <= _WORKERS
            self.relists += 1


class _GivingUp:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: object, traceback: object) -> bool:
        return isinstance(exc, grpc.RpcError) and exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_pods_come_and_go_and_nothing_of_them_stays(image):
    with cri_daemon() as cri:
        cri.write_network()
        cri.pull(image)
        cri.remove_pod(cri.run_pod("first"))  # what is only done once
        before = _descriptors(cri), _shims(cri)
        kubelet = Kubelet(cri, image)
        with ThreadPoolExecutor(_WORKERS + 1) as threads:
            listing = threads.submit(kubelet.relist)
            working = [threads.submit(kubelet.work, number) for number in range(_WORKERS)]
            for one in working:
                one.exception()
            kubelet.stopped.set()
            for one in [*working, listing]:
                one.result()
        assert kubelet.pods >= _WORKERS
        assert kubelet.relists > 0
        print(f"{kubelet.pods} pods in {_SECONDS:g} s, {kubelet.relists} relists")
        assert not cri.pods()
        assert not cri.containers()
        assert cri.addresses() == []
        state = cri.daemon.state
        left = [*state.glob("netns/*"), *state.glob("cri/*/*"), *state.glob("io.containerd*/k8s.io/*")]
        assert not left
        assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{state}/cri" in line]
        cri.daemon.namespace, own = "k8s.io", cri.daemon.namespace
        try:
            for what in ("containers", "tasks", "leases"):
                assert cri.daemon.ctr(what, "ls", "-q").stdout == "", what
            keys = [line.split()[0] for line in cri.daemon.ctr("snapshots", "ls").stdout.splitlines()[1:]]
            assert all(key.startswith("sha256:") for key in keys)
        finally:
            cri.daemon.namespace = own
        after = _descriptors(cri), _shims(cri)
        assert after[0] <= before[0] + 40, (before, after)  # connections of clients and of the database, by thread
        assert after[1] == before[1]


def _descriptors(cri: Cri) -> int:
    return len(list(Path(f"/proc/{cri.daemon.pid}/fd").iterdir()))


def _shims(cri: Cri) -> int:
    return len(list((cri.daemon.state / "s").iterdir()))
