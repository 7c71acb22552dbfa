"""A daemon with CRI to a test's own: its socket, its CNI configuration and bridge, and the stubs of both services."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

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
        self.subnet = f"10.{200 + number % 50}.{number >> 8 & 255}"
        self.connect()

    def connect(self) -> None:
        self.channel = grpc.insecure_channel(f"unix:{self.daemon.address}")
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

    def clear(self) -> None:
        """Remove the bridge."""
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)


@contextmanager
def cri_daemon(settings: str = "") -> Iterator[Cri]:
    """A daemon with CRI; at the end its pods are removed and nothing of them may be left.

    *settings* is appended to its configuration.
    """
    with private_daemon(start=False) as daemon:
        daemon.config.write_text(
            f'version = 1\n[cri.cni]\nconf_dir = "{daemon.base}/net.d"\nbin_dirs = ["/usr/lib/cni"]\n{settings}'
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
        left = [*daemon.state.glob("*/k8s.io/*"), *daemon.state.glob("netns/*"), *daemon.state.glob("cri/*/*")]
        assert not left, f"left behind: {left}"
        assert not cri.addresses()
