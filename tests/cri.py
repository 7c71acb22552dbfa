"""A daemon with CRI to a test's own: its socket, its CNI configuration and bridge, and the stubs of both services."""

import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from runtimed.api import cri_pb2 as pb
from runtimed.api.cri_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.daemon import PrivateDaemon, private_daemon

TIMEOUT_S = 60.0


class Cri:
    """Both services of one daemon; ``reconnect`` after it was started anew."""

    def __init__(self, daemon: PrivateDaemon) -> None:
        self.daemon = daemon
        self.network = daemon.base / "net.d"
        self.logs = daemon.base / "logs"
        number = secrets.randbelow(1 << 16)
        self.bridge = f"rtd{number:04x}"
        self.image = ""  # for tests that have one for all
        self.subnet = f"10.{200 + number % 50}.{number >> 8 & 255}"
        self.connect()

    def connect(self) -> None:
        options = [
            ("grpc.max_receive_message_length", 16 << 20),  # what a kubelet takes
            ("grpc.use_local_subchannel_pool", 1),  # a new channel waits for no other's next try
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        self.channel = grpc.insecure_channel(f"unix:{self.daemon.address}", options=options)
        self.runtime = RuntimeServiceStub(self.channel)
        self.images = ImageServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def reconnect(self) -> None:
        self.close()
        self.connect()

    def write_network(self, *plugins: dict[str, Any], version: str = "1.0.0", name: str = "10-test.conflist") -> None:
        """Write a CNI configuration: a bridge with host ports, or other *plugins*."""
        chain = plugins or (self.bridge_plugin(), {"type": "portmap", "capabilities": {"portMappings": True}})
        self.network.mkdir(exist_ok=True)
        network = {"cniVersion": version, "name": self.bridge, "plugins": list(chain)}
        (self.network / name).write_text(json.dumps(network))

    def bridge_plugin(self) -> dict[str, Any]:
        leases = str(self.daemon.base / "ipam")
        return {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": leases,
                "ranges": [[{"subnet": f"{self.subnet}.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }

    def addresses(self) -> list[str]:
        """Return the addresses that are leased to pods."""
        return sorted(path.name for path in (self.daemon.base / "ipam").glob("*/10.*"))

    # Pods

    def pod_config(self, name: str, **options: Any) -> pb.PodSandboxConfig:
        """Return the configuration of a pod; *options* are fields of it or of what is in it."""
        modes = {mode: options.pop(mode, pb.POD) for mode in ("network", "pid", "ipc")}
        linux = pb.LinuxPodSandboxConfig(
            cgroup_parent=options.pop("cgroup_parent", self.daemon.cgroup_parent), sysctls=options.pop("sysctls", {})
        )
        namespaces = pb.NamespaceOption(**modes, userns_options=options.pop("userns", None))
        linux.security_context.namespace_options.CopyFrom(namespaces)
        linux.security_context.privileged = options.pop("privileged", False)
        metadata = pb.PodSandboxMetadata(
            name=name, uid=options.pop("uid", secrets.token_hex(4)), namespace="test", attempt=options.pop("attempt", 0)
        )
        return pb.PodSandboxConfig(metadata=metadata, log_directory=str(self.logs / name), linux=linux, **options)

    def run(self, config: pb.PodSandboxConfig, handler: str = "") -> str:
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(self.runtime.RunPodSandbox(request, timeout=TIMEOUT_S).pod_sandbox_id)

    def run_pod(self, name: str, handler: str = "", **options: Any) -> str:
        return self.run(self.pod_config(name, **options), handler)

    def stop_pod(self, id: str) -> None:
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=id), timeout=TIMEOUT_S)

    def remove_pod(self, id: str) -> None:
        self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=id), timeout=TIMEOUT_S)

    def pod_status(self, id: str, *, verbose: bool = False) -> pb.PodSandboxStatusResponse:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=id, verbose=verbose)
        found: pb.PodSandboxStatusResponse = self.runtime.PodSandboxStatus(request, timeout=TIMEOUT_S)
        return found

    def pods(self, **fields: Any) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**fields))
        return list(self.runtime.ListPodSandbox(request, timeout=TIMEOUT_S).items)

    # Containers

    def container_config(self, name: str, *command: str, image: str, **options: Any) -> pb.ContainerConfig:
        """Return the configuration of a container that runs *command* in a shell."""
        namespaces = pb.NamespaceOption(pid=options.pop("pid", pb.CONTAINER), target_id=options.pop("target", ""))
        security = pb.LinuxContainerSecurityContext(namespace_options=namespaces, **options.pop("security", {}))
        linux = pb.LinuxContainerConfig(resources=options.pop("resources", None), security_context=security)
        metadata = pb.ContainerMetadata(name=name, attempt=options.pop("attempt", 0))
        return pb.ContainerConfig(
            metadata=metadata,
            image=pb.ImageSpec(image=image),
            command=["/bin/sh", "-c", *command] if command else [],
            log_path=f"{name}.log",
            linux=linux,
            **options,
        )

    def create(self, pod: str, config: pb.ContainerConfig, sandbox: pb.PodSandboxConfig | None = None) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        return str(self.runtime.CreateContainer(request, timeout=TIMEOUT_S).container_id)

    def start(self, id: str) -> None:
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=id), timeout=TIMEOUT_S)

    def shell(self, id: str, command: str) -> str:
        """Run a shell command in a container; return what it writes to either stream, stdout first."""
        request = pb.ExecSyncRequest(container_id=id, cmd=["/bin/busybox", "sh", "-c", command], timeout=30)
        done = self.runtime.ExecSync(request, timeout=TIMEOUT_S)
        return str(done.stdout.decode() + done.stderr.decode())

    def stop(self, id: str, timeout: int = 0) -> None:
        self.runtime.StopContainer(pb.StopContainerRequest(container_id=id, timeout=timeout), timeout=TIMEOUT_S)

    def remove(self, id: str) -> None:
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id), timeout=TIMEOUT_S)

    def status(self, id: str, *, verbose: bool = False) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=id, verbose=verbose)
        found: pb.ContainerStatus = self.runtime.ContainerStatus(request, timeout=TIMEOUT_S).status
        return found

    def info(self, pod: str) -> dict[str, Any]:
        """Return what a verbose status says of a pod."""
        return dict(json.loads(self.pod_status(pod, verbose=True).info["info"]))

    def container_info(self, id: str) -> dict[str, Any]:
        """Return what a verbose status says of a container."""
        request = pb.ContainerStatusRequest(container_id=id, verbose=True)
        return dict(json.loads(self.runtime.ContainerStatus(request, timeout=TIMEOUT_S).info["info"]))

    def containers(self, **fields: Any) -> list[pb.Container]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**fields))
        return list(self.runtime.ListContainers(request, timeout=TIMEOUT_S).containers)

    def pull(self, image: str) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        return str(self.images.PullImage(request, timeout=TIMEOUT_S).image_ref)

    @contextmanager
    def events(self) -> Iterator[Iterator[pb.ContainerEventResponse]]:
        """Yield the container events from now on."""
        call = self.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=TIMEOUT_S)
        call.initial_metadata()  # the subscription stands
        try:
            yield call
        finally:
            call.cancel()

    def clear(self) -> None:
        """Remove every pod, and the bridge."""
        if self.daemon.process is not None:
            self.reconnect()
            for pod in self.pods():
                self.remove_pod(pod.id)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)


@contextmanager
def cri_daemon(settings: str = "", bin_dirs: Sequence[str] = ("/usr/lib/cni",)) -> Iterator[Cri]:
    """A daemon with CRI; at the end its pods are removed and nothing of them may be left.

    *settings* is appended to its configuration, at the end of the table ``[cri.cni]``.
    """
    with private_daemon(start=False) as daemon:
        daemon.base.chmod(0o711)  # as /run and /var/lib are: root of a pod's user namespace has to get to its files
        programs = json.dumps([*bin_dirs])
        daemon.config.write_text(
            f'version = 1\n[cri.cni]\nconf_dir = "{daemon.base}/net.d"\nbin_dirs = {programs}\n{settings}'
        )
        cri = Cri(daemon)
        try:
            daemon.start()
            yield cri
        finally:
            try:
                cri.clear()
            finally:
                cri.close()
        left = [*daemon.state.glob("*/k8s.io/*"), *daemon.state.glob("[nu]*ns/*"), *daemon.state.glob("cri/*/*")]
        assert not left, f"left behind: {left}"
        assert not cri.addresses()
