"""A kubelet as a runtime sees it: pods come and go, are listed, probed, retried; it and the daemon are restarted."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri

_COMMANDS = ("sleep 1000", "sleep 0.5; exit 3", "trap 'exit 0' TERM; sleep 1000 & wait")


class Died(Exception):
    """The kubelet was restarted: what was under way is cancelled, and what it knew it has to find out."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many pods, for how long; how often this and that happens, in seconds. 0: never."""

    pods: int
    seconds: float
    pod_lives: float = 8.0  # on average
    relist: float = 1.0
    probe: float = 1.0
    kubelet_restart: float = 0.0
    daemon_restart: float = 0.0


@dataclass
class _Pod:
    """What the kubelet knows of a pod that it wants."""

    config: pb.PodSandboxConfig
    id: str = ""
    containers: dict[str, str] = field(default_factory=dict)  # name -> ID
    attempts: Counter[str] = field(default_factory=Counter)
    is_ending: bool = False


class Kubelet:
    """Has pods made and ended until the time is over; :attr:`failures` says what failed that need not."""

    def __init__(self, cri: Cri, image: str, plan: Plan) -> None:
        self.cri = cri
        self.image = image
        self.plan = plan
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self._over = threading.Event()
        self._pods: dict[str, _Pod] = {}  # by UID
        self._exited: dict[str, set[str]] = {}  # pods' UIDs -> containers that the last relist saw ended
        self._life = 0
        self._ends_at = 0.0

    def run(self) -> None:
        """Do it, and end with no pods."""
        self._ends_at = time.monotonic() + self.plan.seconds
        loops = [
            (self._relist, self.plan.relist),
            (self._probe, self.plan.probe),
            (self._look_around, 5.0),
            (self._clean_up, 5.0),
        ]
        restarts = [
            (self._restart_itself, self.plan.kubelet_restart),
            (self._restart_daemon, self.plan.daemon_restart),
        ]
        with ThreadPoolExecutor(self.plan.pods + len(loops) + len(restarts)) as threads:
            beside = [threads.submit(self._every, period, work) for work, period in loops if period]
            beside += [threads.submit(self._every, period, self._in_time(work)) for work, period in restarts if period]
            workers = [threads.submit(self._work, number) for number in range(self.plan.pods)]
            try:
                for worker in workers:
                    worker.exception()
            finally:  # also of an interrupt
                self._ends_at = 0.0
                self._over.set()
            for one in (*workers, *beside):
                one.result()
        self._pods.clear()
        while self.cri.pods():  # an operation whose caller was cancelled may end now
            self._clean_up()

    def call(self, name: str, request: Any, timeout: float = TIMEOUT_S) -> Any:
        """Make a call, again while the daemon is away, and when *timeout* was too short. Raises Died, grpc.RpcError."""
        stubs: Any = self.cri.images if name == "ImageFsInfo" else self.cri.runtime
        life, began = self._life, time.monotonic()
        while True:
            try:
                answer = getattr(stubs, name)(request, timeout=timeout)
            except ValueError:  # of grpc: the channel is closed
                raise Died from None
            except grpc.RpcError as exc:
                if life != self._life:
                    raise Died from None
                if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout < TIMEOUT_S:
                    self.counts["asked again"] += 1
                    timeout = TIMEOUT_S
                elif exc.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
                    self.counts["daemon away"] += 1
                    time.sleep(0.1)  # as a kubelet does: nobody tells it when the runtime is back
                else:
                    raise
            else:
                self.counts[name] += 1
                self.slowest[name] = max(self.slowest.get(name, 0), time.monotonic() - began)
                return answer

    # A pod's life

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        is_done = False  # a pod has had its whole life, however slow the machine is
        while time.monotonic() < self._ends_at or not is_done:
            config = self.cri.pod_config(f"p{number}-{chance.randrange(1 << 30)}")
            pod = _Pod(config)
            self._pods[config.metadata.uid] = pod
            try:
                self._live(pod, chance)
                self.counts["pods"] += 1
                is_done = True
            except Died:
                self.counts["pods found again"] += 1
            except (grpc.RpcError, AssertionError) as exc:
                said = f"{exc.code()} {exc.details()}" if isinstance(exc, grpc.RpcError) else repr(exc)
                self.failures.append(f"pod {config.metadata.name}: {said}")
                is_done = True
            finally:
                self._pods.pop(config.metadata.uid, None)  # cleaning up ends what there still is of it

    def _live(self, pod: _Pod, chance: random.Random) -> None:
        impatient = chance.uniform(0.005, 0.2) if chance.random() < 0.3 else TIMEOUT_S
        pod.id = self.call("RunPodSandbox", pb.RunPodSandboxRequest(config=pod.config), impatient).pod_sandbox_id
        status = self.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)).status
        assert status.network.ip, status
        for name in ("a", "b"):
            self._begin(pod, name, chance)
        ends_at = min(self._ends_at, time.monotonic() + chance.expovariate(1 / self.plan.pod_lives))
        while not self._over.wait(min(0.2, max(0.0, ends_at - time.monotonic()))) and time.monotonic() < ends_at:
            for id in self._exited.get(pod.config.metadata.uid, set()) & {*pod.containers.values()}:
                name = next(key for key, value in pod.containers.items() if value == id)
                self._begin(pod, name, chance)  # as restartPolicy Always has it
                self.call("RemoveContainer", pb.RemoveContainerRequest(container_id=id))
        pod.is_ending = True
        if chance.random() < 0.7:
            for id in pod.containers.values():
                self.call("StopContainer", pb.StopContainerRequest(container_id=id, timeout=chance.choice([0, 1])))
                found = self.call("ContainerStatus", pb.ContainerStatusRequest(container_id=id)).status
                assert found.state == pb.CONTAINER_EXITED, found
        self.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        self.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))

    def _begin(self, pod: _Pod, name: str, chance: random.Random) -> None:
        attempt = pod.attempts[name]
        pod.attempts[name] += 1
        config = self.cri.container_config(name, chance.choice(_COMMANDS), image=self.image, attempt=attempt)
        request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        impatient = chance.uniform(0.002, 0.05) if chance.random() < 0.2 else TIMEOUT_S
        id = self.call("CreateContainer", request, impatient).container_id
        impatient = chance.uniform(0.005, 0.05) if chance.random() < 0.2 else TIMEOUT_S
        try:
            self.call("StartContainer", pb.StartContainerRequest(container_id=id), impatient)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            # Asked for once more: by now it has been started.
            found = self.call("ContainerStatus", pb.ContainerStatusRequest(container_id=id)).status
            assert found.started_at > 0, f"{exc.details()}: {found}"  # noqa: PT017 - and not that it failed
        pod.containers[name] = id  # and from now on it is probed

    # What goes on beside

    def _every(self, period: float, work: Callable[[], None]) -> None:
        while not self._over.wait(period):
            try:
                work()
            except Died:
                pass
            except (grpc.RpcError, AssertionError) as exc:
                said = f"{exc.code()} {exc.details()}" if isinstance(exc, grpc.RpcError) else repr(exc)
                self.failures.append(f"beside: {said}")

    def _in_time(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: work() if time.monotonic() < self._ends_at else None

    def _relist(self) -> None:
        pods = {one.id: one.metadata.uid for one in self.call("ListPodSandbox", pb.ListPodSandboxRequest()).items}
        exited: dict[str, set[str]] = {}
        for one in self.call("ListContainers", pb.ListContainersRequest()).containers:
            assert one.pod_sandbox_id in pods or not self._wanted(one.pod_sandbox_id), f"container without pod: {one}"
            if one.state == pb.CONTAINER_EXITED:
                exited.setdefault(pods.get(one.pod_sandbox_id, ""), set()).add(one.id)
        for uid in exited.keys() - self._exited.keys():  # something has changed: ask for all of it
            for id in (id for id, of in pods.items() if of == uid):
                with _ignored(grpc.StatusCode.NOT_FOUND):
                    self.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=id))
        self._exited = exited

    def _wanted(self, id: str) -> bool:
        return any(pod.id == id and not pod.is_ending for pod in list(self._pods.values()))

    def _probe(self) -> None:
        """Probe a container of each pod, as many at once as there are pods."""
        targets = [
            (pod, id) for pod in list(self._pods.values()) if not pod.is_ending for id in [*pod.containers.values()][:1]
        ]
        with ThreadPoolExecutor(max(1, len(targets))) as threads:
            for probed in [threads.submit(self._probe_one, pod, id) for pod, id in targets]:
                with suppress(Died):
                    probed.result()

    def _probe_one(self, pod: _Pod, id: str) -> None:
        request = pb.ExecSyncRequest(container_id=id, cmd=["true"], timeout=20)
        try:
            answer = self.call("ExecSync", request)
        except grpc.RpcError as exc:
            with _ignored(grpc.StatusCode.NOT_FOUND):
                state = self.call("ContainerStatus", pb.ContainerStatusRequest(container_id=id)).status.state
                if state == pb.CONTAINER_RUNNING and not pod.is_ending:
                    raise AssertionError(f"probe of {id}: {exc.code()} {exc.details()}") from None
        else:
            assert answer.exit_code in {0, 137}, answer  # 137: killed with its container

    def _look_around(self) -> None:
        conditions = self.call("Status", pb.StatusRequest()).status.conditions
        assert all(one.status for one in conditions), conditions
        self.call("Version", pb.VersionRequest())
        self.call("ListContainerStats", pb.ListContainerStatsRequest())
        self.call("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest())
        self.call("ImageFsInfo", pb.ImageFsInfoRequest())

    def _clean_up(self) -> None:
        """End pods that are not wanted: of an operation that went on after the kubelet's restart."""
        for pod in self.call("ListPodSandbox", pb.ListPodSandboxRequest()).items:
            if pod.metadata.uid not in self._pods:
                self.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
                self.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))

    def _restart_itself(self) -> None:
        self.counts["restarts of the kubelet"] += 1
        self._life += 1
        self.cri.reconnect()

    def _restart_daemon(self) -> None:
        """Stop the daemon, or kill it, in turn."""
        name = "restarts of the daemon"
        self.counts[name] += 1
        began = time.monotonic()
        if self.counts[name] % 2:
            self.cri.daemon.kill()
        else:
            self.cri.daemon.stop()
        self.cri.daemon.start()
        self.slowest[name] = max(self.slowest.get(name, 0), time.monotonic() - began)


@contextmanager
def _ignored(code: grpc.StatusCode) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as exc:
        if exc.code() is not code:
            raise
