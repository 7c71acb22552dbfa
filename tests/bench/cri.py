"""Suite ``cri``: pods and containers as a kubelet makes them, one and four at a time, and lists of many containers."""

import argparse
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from runtimed.api import cri_pb2 as pb
from runtimed.api.cri_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from runtimed.embedded import images as embedded
from tests.bench.commands import pulled
from tests.bench.fleet import at_rest, memory
from tests.bench.samples import GO, OURS, Row, alternate, progress
from tests.bench.sides import Ours, Theirs, run, side

_AT_ONCE = 4
_MANY = 500
_PODS = 50  # whose memory is measured, with two containers each
_TIMEOUT_S = 120.0
_PAUSE = "runtimed.io/pause:latest"
_NAMES = ("RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox",
          "RemovePodSandbox", "pod and container, start to end")  # fmt: skip
_MEMORY = f"PSS of the shims of {_PODS} pods of 2 containers"

_CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{conf}"
"""


class _Client:
    """CRI of one side, whose pods are on a bridge of its own."""

    def __init__(self, of: Ours | Theirs, address: str, image: str, cgroups: str) -> None:
        options = [("grpc.max_receive_message_length", 16 << 20)]
        self.channel = grpc.insecure_channel(f"unix:{address}", options=options)
        self.runtime = RuntimeServiceStub(self.channel)
        self.images = ImageServiceStub(self.channel)
        self.side = of
        self.image = image
        self.cgroups = cgroups

    def pod(self) -> tuple[str, pb.PodSandboxConfig]:
        metadata = pb.PodSandboxMetadata(name=f"p{secrets.token_hex(6)}", uid=secrets.token_hex(6), namespace="bench")
        config = pb.PodSandboxConfig(
            metadata=metadata,
            hostname="bench",
            log_directory=str(self.side.base / "logs"),
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=self.cgroups),
        )
        return self._call("RunPodSandbox", pb.RunPodSandboxRequest(config=config)).pod_sandbox_id, config

    def container(self, pod: str, sandbox: pb.PodSandboxConfig) -> str:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"c{secrets.token_hex(6)}"),
            image=pb.ImageSpec(image=self.image),
            command=["/bin/sleep", "1000"],
            log_path=f"{secrets.token_hex(6)}.log",
            linux=pb.LinuxContainerConfig(),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        return str(self._call("CreateContainer", request).container_id)

    def life(self) -> list[float]:
        """Return how long each step of a pod with a container took, in seconds, and all of them."""
        times = [time.perf_counter()]
        pod, sandbox = self.pod()
        times.append(time.perf_counter())
        id = self.container(pod, sandbox)
        times.append(time.perf_counter())
        for name, request in (
            ("StartContainer", pb.StartContainerRequest(container_id=id)),
            ("StopContainer", pb.StopContainerRequest(container_id=id, timeout=0)),
            ("RemoveContainer", pb.RemoveContainerRequest(container_id=id)),
            ("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod)),
            ("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod)),
        ):
            self._call(name, request)
            times.append(time.perf_counter())
        return [end - begin for begin, end in zip(times, times[1:], strict=False)] + [times[-1] - times[0]]

    def lives(self) -> float:
        """Return how long several pods with a container took, begun at once."""
        began = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for done in [threads.submit(self.life) for _ in range(_AT_ONCE)]:
                done.result()
        return time.perf_counter() - began

    def timed(self, name: str, request: Any) -> float:
        began = time.perf_counter()
        self._call(name, request)
        return time.perf_counter() - began

    def clear(self) -> None:
        for pod in self._call("ListPodSandbox", pb.ListPodSandboxRequest()).items:
            self._call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            self._call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        self.channel.close()

    def _call(self, name: str, request: Any) -> Any:
        return getattr(self.runtime, name)(request, timeout=_TIMEOUT_S)


class _Go(Theirs):
    """containerd with its CRI; the pause image is ours."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        (base / "config.toml").write_text(_CONTAINERD.format(pause=_PAUSE, conf=base / "net.d"))

    def ctr(self, *arguments: object) -> list[str]:
        return super().ctr("--namespace", "k8s.io", *arguments)


class _Our(Ours):
    """This daemon; its pods get the network that is configured beside it."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, settings=f'[cri.cni]\nconf_dir = "{base}/net.d"\nbin_dirs = ["/usr/lib/cni"]')

    def rctl(self, *arguments: object) -> list[str]:
        return super().rctl("--namespace", "k8s.io", *arguments)


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of pods' lives, of lists, and of memory; ``--only`` names one of these three."""
    parts: dict[str, Callable[[dict[str, _Client], int], list[Row]]]
    parts = {"lives": _lives, "lists": _lists, "memory": _memory}
    rows: list[Row] = []
    for name, part in parts.items():
        if args.only in name:
            with _clients() as clients:
                rows += part(clients, args.runs)
    return rows


def _lives(clients: dict[str, _Client], runs: int) -> list[Row]:
    for client in clients.values():  # once for what is only slow the first time
        client.life()
    lives = alternate("pod", runs, {who: client.life for who, client in clients.items()})
    rows = [
        _row(name, who, [times[number] for times in found], "0.80")
        for number, name in enumerate(_NAMES)
        for who, found in lives.items()
    ]
    for who, found in lives.items():  # what a container has left goes in the one call or in the other
        both = [times[_NAMES.index("StopContainer")] + times[_NAMES.index("RemoveContainer")] for times in found]
        rows.append(_row("StopContainer and RemoveContainer", who, both, "0.80"))
    fours = alternate("pods at once", max(runs // 3, 1), {who: c.lives for who, c in clients.items()})
    rows += [_row(f"{_AT_ONCE} pods with a container at once", who, walls, "0.80") for who, walls in fours.items()]
    return rows


def _lists(clients: dict[str, _Client], runs: int) -> list[Row]:
    for client in clients.values():
        pod, sandbox = client.pod()
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(client.container, pod, sandbox) for _ in range(_MANY)]:
                done.result()
    rows = []
    for name, request in (
        ("ListContainers", pb.ListContainersRequest()),
        ("ListPodSandbox", pb.ListPodSandboxRequest()),
    ):
        ways = {who: partial(client.timed, name, request) for who, client in clients.items()}
        for who, walls in alternate(name, runs, ways).items():
            rows.append(_row(f"{name} with {_MANY} containers", who, walls, "10 ms"))
    return rows


def _memory(clients: dict[str, _Client], _: int) -> list[Row]:
    """Measure once what pods at rest take: all their shims, and these with the daemon and what it has started."""
    rows = []
    for who, client in clients.items():
        progress(f"memory: {_PODS} pods, {who}")

        def pod(client: _Client = client) -> None:
            id, sandbox = client.pod()
            for _ in range(2):
                started = pb.StartContainerRequest(container_id=client.container(id, sandbox))
                client.timed("StartContainer", started)

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for done in [threads.submit(pod) for _ in range(_PODS)]:
                done.result()
        shims = sum(pss for _, pss in map(memory, at_rest(client.side.state, _PODS)))
        every = sum(pss for _, pss in map(memory, client.side.account.pids()))
        rows.append(Row(_MEMORY, who, [shims], unit="MB", aim="0.40" if who == OURS else ""))
        rows.append(Row(f"{_MEMORY}, with the daemon", who, [every], unit="MB"))
    return sorted(rows, key=lambda row: row.what)


def _row(name: str, who: str, walls: Sequence[float], aim: str) -> Row:
    return Row(name, who, [wall * 1e3 for wall in walls], aim=aim if who == OURS else "")


@contextmanager
def _clients() -> Iterator[dict[str, _Client]]:
    with side(_Go) as theirs, side(_Our) as ours:
        bridges = [_network(one) for one in (theirs, ours)]
        image = pulled(theirs, ours)
        _import_pause(theirs)
        clients = {
            GO: _Client(theirs, str(theirs.address), image, theirs.account.containers),
            OURS: _Client(ours, str(ours.daemon.address), image, ours.account.containers),
        }
        try:
            yield clients
        finally:
            for client in clients.values():
                client.clear()
            for bridge in bridges:
                subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def _network(of: Ours | Theirs) -> str:
    """Configure a bridge for the pods of one side; return its name."""
    number = secrets.randbelow(1 << 16)
    bridge = f"rtd{number:04x}"
    ranges = [[{"subnet": f"10.{150 + number % 50}.{number >> 8 & 255}.0/24"}]]
    plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(of.base / "ipam"),
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {"cniVersion": "1.0.0", "name": bridge, "plugins": [plugin, portmap]}
    (of.base / "net.d").mkdir(exist_ok=True)
    (of.base / "net.d/10-bench.conflist").write_text(json.dumps(network))
    return bridge


def _import_pause(theirs: Theirs) -> None:
    """Give containerd the image of the pause process, by an archive whose index says the whole name."""
    layout = embedded.layout()
    with tempfile.TemporaryDirectory(prefix="rtd-") as directory:
        index = json.loads((layout / "index.json").read_text())
        for entry in index["manifests"]:
            name = entry["annotations"]["org.opencontainers.image.ref.name"]
            entry["annotations"]["io.containerd.image.name"] = name
        (Path(directory) / "index.json").write_text(json.dumps(index))
        archive = Path(directory) / "pause.tar"
        subprocess.run(
            ["tar", "-cf", archive, "-C", layout, "blobs", "oci-layout", "-C", directory, "index.json"], check=True
        )
        run(theirs.ctr("images", "import", archive), theirs)
