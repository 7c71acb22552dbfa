"""Devices of a container: nodes, and what its cgroup lets it do with them. CDI is in cdi.py."""

import posixpath
from pathlib import Path

import msgspec

from runtimed.cri.request import ContainerSpecRequest
from runtimed.errors import InvalidArgument, NotFound, os_errors
from runtimed.linux.devices import device_at, host_devices
from runtimed.oci.runtime_spec import Device, DeviceRule

Found = tuple[tuple[Device, ...], tuple[DeviceRule, ...]]


def devices_of(request: ContainerSpecRequest) -> Found:
    """Return the nodes to make and the rules of the cgroup: nothing is allowed but what is given. Blocks.

    A directory of the host stands for all device nodes below it. The runtime adds the standard ones (null, tty, ...).

    Raises:
        InvalidArgument: permissions, a path, or what is not a device.
        NotFound: the host has no such path.
    """
    privileged = request.config.linux.security_context.privileged
    found: dict[str, Device] = {}
    rules = [DeviceRule(allow=privileged, access="rwm")]
    if privileged and request.rules.host_devices:
        with os_errors("/dev"):
            found = {device.path: device for device in host_devices()}
    for asked in request.config.devices:
        if not asked.permissions or set(asked.permissions) - set("rwm"):
            raise InvalidArgument(
                f"device {asked.host_path!r}: permissions {asked.permissions!r} are not of r, w and m"
            )
        inside = _inside(asked.container_path or asked.host_path)
        for device in _below(asked.host_path, inside):
            found[device.path] = device
            rules.append(rule(device, asked.permissions))
    return tuple(found.values()), tuple(rules)


def rule(device: Device, access: str) -> DeviceRule:
    """Return the rule that lets a container use *device*."""
    return DeviceRule(allow=True, type=device.type, major=device.major, minor=device.minor, access=access)


def _inside(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"device path {path[:128]!r} is not absolute")
    return "/" + posixpath.normpath(path).lstrip("/")


def _below(host_path: str, inside: str) -> list[Device]:
    path = Path(host_path)
    if not path.is_absolute() or "\0" in host_path:
        raise InvalidArgument(f"device {host_path[:128]!r} is not an absolute path")
    with os_errors(f"device {host_path}"):
        if not path.exists():
            raise NotFound(f"device {host_path} does not exist")
        real = path.resolve()
        if real.is_dir():
            nodes = host_devices(real)
            moved = [inside + node.path.removeprefix(str(real)) for node in nodes]
            return [msgspec.structs.replace(node, path=path) for node, path in zip(nodes, moved, strict=True)]
        node = device_at(real, inside)
    if node is None:
        raise InvalidArgument(f"device {host_path} is not a device node")
    return [node]
