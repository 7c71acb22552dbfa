"""The network of pods: a namespace pinned by a bind mount, and what CNI plugins put into it.

<state>/netns/<sandbox id>      a file that a network namespace is mounted on
<state>/userns/<sandbox id>     likewise the user namespace that it belongs to, of a pod that has one
"""

import asyncio
import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtimed import config
from runtimed.api import cri_pb2 as pb
from runtimed.cri import cni
from runtimed.cri.cni import Attachment, Json, NetworkList, Plugins
from runtimed.directories import make_private
from runtimed.errors import InvalidArgument, NotFound, RuntimedError, os_errors
from runtimed.linux import idmap, netns
from runtimed.linux.idmap import Range
from runtimed.mounts import unmount_all
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_STATUS_LIMIT_S = 5.0  # a kubelet takes a node without an answer for 30 s as not ready
_INGRESS = "kubernetes.io/ingress-bandwidth"
_EGRESS = "kubernetes.io/egress-bandwidth"
_LARGEST_BURST = 2**31 - 1  # bits, what the bandwidth plugin takes
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGTPE]i?|m)?")
_FACTORS = {"": 1, "m": 1e-3, **{unit: 1000**power for power, unit in enumerate("kMGTPE", 1)}}
_FACTORS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)} | {"ki": 1024}
_LEAST_BANDWIDTH, _MOST_BANDWIDTH = 1000, 10**15  # bits a second, as Kubernetes has it


class Network:
    """Makes namespaces, and attaches them to the network that is configured at that moment."""

    def __init__(self, settings: config.Cni, state: Path) -> None:
        self._directory = settings.conf_dir
        self._plugins = Plugins(settings.bin_dirs, settings.plugin_limit_s)
        self._probes = Plugins(settings.bin_dirs, _STATUS_LIMIT_S)
        self._namespaces = state / "netns"
        self._user_namespaces = state / "userns"
        self._pod_cidrs: tuple[str, ...] = ()
        self._collected = asyncio.Event()  # clear while plugins free what is in use no more
        self._collected.set()

    # What there is

    async def problem(self) -> str:
        """Return why pods cannot get a network now; "" if they can."""
        try:
            await self._probes.status(await self.configured())
        except RuntimedError as exc:
            return str(exc)
        return ""

    async def configured(self) -> NetworkList:
        """Return the network that pods get: read anew each time, so that a change counts at once.

        Raises NotFound, InvalidArgument.
        """
        return await blocking(cni.find, self._directory)

    def set_pod_cidr(self, text: str) -> None:
        """Take one address range, or several with commas between, for plugins that ask for ``ipRanges``.

        Raises InvalidArgument.
        """
        ranges = [part.strip() for part in text.split(",") if part.strip()]
        for one in ranges:
            try:
                ipaddress.ip_network(one, strict=False)
            except ValueError as exc:
                raise InvalidArgument(f"pod CIDR {one[:64]!r}: {exc}") from None
        self._pod_cidrs = tuple(ranges)

    # Namespaces

    def path(self, id: str) -> str:
        """Return where the network namespace of a sandbox is pinned."""
        return str(self._namespaces / id)

    def userns_path(self, id: str) -> str:
        """Return where the user namespace of a sandbox is pinned, if it has one of its own."""
        return str(self._user_namespaces / id)

    async def create_netns(self, id: str, userns: str = "") -> None:
        """Make a network namespace for a sandbox, pinned at :meth:`path`; it belongs to the one pinned at *userns*."""
        await blocking(_pin_new, Path(self.path(id)), lambda path: netns.pin_new(path, userns))

    async def create_userns(self, id: str, uids: Sequence[Range], gids: Sequence[Range]) -> None:
        """Make a user namespace for a sandbox, pinned at :meth:`userns_path`."""
        await blocking(_pin_new, Path(self.userns_path(id)), lambda path: idmap.pin_new(path, uids, gids))

    async def unpin(self, path: str) -> None:
        """Let go of a namespace of either kind; it ends with the last process in it. Fine if it is not there."""
        await blocking(unpin, Path(path))

    def namespaces(self) -> Sequence[str]:
        """Return the paths of what is pinned. Blocks."""
        found: list[str] = []
        for directory in (self._namespaces, self._user_namespaces):
            with suppress(FileNotFoundError):
                found += map(str, directory.iterdir())
        return found

    # Attaching

    async def attach(self, network: NetworkList, attachment: Attachment) -> Json:
        """Attach; return the result. What is left of a failure, :meth:`detach` removes."""
        await self._collected.wait()  # what is attached meanwhile would be freed with the rest
        return await self._plugins.add(network, attachment)

    async def detach(self, network: NetworkList, attachment: Attachment, result: Json | None) -> None:
        """Detach; also what was never or only half attached, and more than once."""
        if attachment.netns and not await blocking(netns.is_pinned, Path(attachment.netns)):
            attachment = Attachment(
                container_id=attachment.container_id,
                netns="",
                if_name=attachment.if_name,
                args=attachment.args,
                capabilities=attachment.capabilities,
            )
        await self._plugins.delete(network, attachment, result)

    async def check(self, network: NetworkList, attachment: Attachment, result: Json) -> str:
        """Return what the plugins find that is not as they made it; "" if nothing, or if they cannot tell."""
        try:
            await self._probes.check(network, attachment, result)
        except RuntimedError as exc:
            return str(exc)
        return ""

    async def collect(self, valid: Callable[[], Iterable[str]]) -> None:
        """Have the plugins of the network as it is now free what sandboxes had that are none of *valid*."""
        try:
            network = await self.configured()
            self._collected.clear()
            await self._plugins.gc(network, [(id, cni.IF_NAME) for id in valid()])
        except NotFound:
            return
        except RuntimedError as exc:
            log.warning("CNI garbage not collected", extra={"error": str(exc)})
        finally:
            self._collected.set()

    def attachment(self, id: str, netns: str, sandbox: pb.PodSandboxConfig, cgroup_parent: str) -> Attachment:
        """Return what plugins are told of a pod. Raises InvalidArgument."""
        metadata = sandbox.metadata
        args = (
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", metadata.namespace),
            ("K8S_POD_NAME", metadata.name),
            ("K8S_POD_INFRA_CONTAINER_ID", id),
            ("K8S_POD_UID", metadata.uid),
        )
        for key, value in args:  # separators of CNI_ARGS; and what cannot be in an environment
            if any(character in value for character in ";=\0\n"):
                raise InvalidArgument(f"pod: {key} {value[:64]!r} has characters that CNI_ARGS cannot hold")
        return Attachment(
            container_id=id, netns=netns, args=args, capabilities=self._capabilities(sandbox, cgroup_parent)
        )

    def _capabilities(self, sandbox: pb.PodSandboxConfig, cgroup_parent: str) -> dict[str, Any]:
        """Return the capability arguments (CNI CONVENTIONS.md, "Dynamic Plugin specific fields")."""
        found: dict[str, Any] = {}
        if ports := [_port(mapping) for mapping in sandbox.port_mappings if mapping.host_port > 0]:
            found["portMappings"] = ports
        if bandwidth := _bandwidth(sandbox.annotations.get(_INGRESS, ""), sandbox.annotations.get(_EGRESS, "")):
            found["bandwidth"] = bandwidth
        if self._pod_cidrs:
            found["ipRanges"] = [[{"subnet": one}] for one in self._pod_cidrs]
        dns = sandbox.dns_config
        if dns.servers or dns.searches or dns.options:
            found["dns"] = {
                "servers": list(dns.servers),
                "searches": list(dns.searches),
                "options": list(dns.options),
            }
        if sandbox.metadata.name:
            found["aliases"] = [sandbox.metadata.name]
        if cgroup_parent:
            found["cgroupPath"] = cgroup_parent
        return found


def _pin_new(path: Path, pin: Callable[[str], None]) -> None:
    make_private(path.parent, 0o711)
    with os_errors(f"namespace {path}"):
        path.touch(mode=0o444, exist_ok=False)
        try:
            pin(str(path))
        except BaseException:
            path.unlink()
            raise


def unpin(path: Path) -> None:
    """Let go of the namespace that is pinned at *path*. Fine if it is not there. Blocks."""
    with os_errors(f"namespace {path}"), suppress(FileNotFoundError):
        unmount_all(path)
        path.unlink()


def _port(mapping: pb.PortMapping) -> Json:
    for number in (mapping.host_port, mapping.container_port):
        if not 0 < number < 1 << 16:
            raise InvalidArgument(f"port mapping {mapping.host_port} to {mapping.container_port}: not a port: {number}")
    if mapping.host_ip:
        try:
            ipaddress.ip_address(mapping.host_ip)
        except ValueError as exc:
            raise InvalidArgument(f"port mapping {mapping.host_port}: host IP: {exc}") from None
    return {
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": pb.Protocol.Name(mapping.protocol).lower(),
        "hostIP": mapping.host_ip,
    }


def _bandwidth(ingress: str, egress: str) -> Json:
    """Return the bandwidth plugin's limits, in bits a second; {} if the pod has none."""
    found: Json = {}
    for name, text in (("ingress", ingress), ("egress", egress)):
        if text:
            found |= {f"{name}Rate": _bits(text), f"{name}Burst": _LARGEST_BURST}
    return found


def _bits(text: str) -> int:
    """Return a Kubernetes quantity. Raises InvalidArgument."""
    match = _QUANTITY.fullmatch(text[:64])
    bits = int(float(match[1]) * _FACTORS.get(match[2] or "", 0)) if match else 0
    if not _LEAST_BANDWIDTH <= bits <= _MOST_BANDWIDTH:
        raise InvalidArgument(f"bandwidth {text[:64]!r} is not between 1k and 1P (bits a second)")
    return bits
