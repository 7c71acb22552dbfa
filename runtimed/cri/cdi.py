"""Devices by name: the Container Device Interface (CDI specification 0.3 to 1.1).

Vendors' files in /etc/cdi and /var/run/cdi say what a name such as ``vendor.com/gpu=0`` adds to a container's spec:
device nodes, mounts, environment, hooks. Who can write there is root. The files are read for each container.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri.annotations import CDI_PREFIX
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, os_errors
from runtimed.linux.devices import device_at
from runtimed.oci.container_spec import merged_env
from runtimed.oci.runtime_spec import Device, DeviceRule, Hook, Hooks, IntelRdt, Mount, Spec

_VERSIONS = {"0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"}
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_.-]*)=([A-Za-z0-9][A-Za-z0-9_.:-]*)")
_MAX_FILE = 4 << 20  # bytes
_HOOKS = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class _Node(_Part, frozen=True, kw_only=True):
    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class _Mount(_Part, frozen=True, kw_only=True):
    host_path: str
    container_path: str
    type: str = "bind"
    options: tuple[str, ...] = ()


class _Hook(_Part, frozen=True, kw_only=True):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class _Rdt(_Part, frozen=True, kw_only=True):
    clos_id: str = msgspec.field(default="", name="closID")


class Edits(_Part, frozen=True, kw_only=True):
    """What a device, or any device of a file, adds to a container (CDI SPEC.md, "ContainerEdits")."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[_Node, ...] = ()
    mounts: tuple[_Mount, ...] = ()
    hooks: tuple[_Hook, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")
    intel_rdt: _Rdt | None = None


class _Device(_Part, frozen=True, kw_only=True):
    name: str
    container_edits: Edits = Edits()


class _File(_Part, frozen=True, kw_only=True):
    cdi_version: str
    kind: str
    devices: tuple[_Device, ...]
    container_edits: Edits = Edits()


def names_of(config: pb.ContainerConfig) -> list[str]:
    """Return the names of a request's devices, then those of its annotations; each once. Raises InvalidArgument."""
    names = [device.name for device in config.CDI_devices]
    for key in sorted(config.annotations):
        if key.startswith(CDI_PREFIX):
            names += config.annotations[key].split(",")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"CDI device {name[:128]!r} is not of the form vendor/class=name")
    return list(dict.fromkeys(names))


def inject(spec: Spec, names: Sequence[str], directories: Iterable[Path]) -> Spec:
    """Return *spec* with the devices *names* added to it. Blocks.

    Raises:
        InvalidArgument: a file that is wanted is not a CDI spec.
        NotFound: no such device.
        FailedPrecondition: two files of one directory define the same device.
    """
    if not names:
        return spec
    files = list(_files(directories, {name.partition("=")[0] for name in names}))
    shared: list[int] = []
    for name in names:
        number, device = _find(name, files)
        if number not in shared:
            shared.append(number)
            spec = _edited(spec, files[number][2].container_edits, name)
        spec = _edited(spec, device.container_edits, name)
    return spec


def _find(name: str, files: Sequence[tuple[int, Path, _File]]) -> tuple[int, _Device]:
    """Return the device and the number of its file: the one in the last directory that has it."""
    kind, _, own = name.partition("=")
    found = [
        (priority, number, device)
        for number, (priority, _, file) in enumerate(files)
        if file.kind == kind
        for device in file.devices
        if device.name == own
    ]
    if not found:
        raise NotFound(f"CDI device {name!r} is not defined")
    best = max(priority for priority, _, _ in found)
    winners = [(number, device) for priority, number, device in found if priority == best]
    if len(winners) > 1:
        paths = ", ".join(str(files[number][1]) for number, _ in winners)
        raise FailedPrecondition(f"CDI device {name!r} is defined several times: {paths}")
    return winners[0]


def _files(directories: Iterable[Path], kinds: set[str]) -> Iterator[tuple[int, Path, _File]]:
    """Return the files of *kinds*, each with its directory's priority. One that does not concern us may be broken."""
    for priority, directory in enumerate(directories):
        for path in sorted(directory.glob("*")):
            if path.suffix not in {".json", ".yaml", ".yml"} or not path.is_file():
                continue
            table = _table(path)
            if not isinstance(table, dict) or table.get("kind") not in kinds:
                continue
            try:
                file = msgspec.convert(table, _File)
            except msgspec.ValidationError as exc:
                raise InvalidArgument(f"CDI file {path}: {exc}") from None
            if file.cdi_version.removeprefix("v") not in _VERSIONS:
                raise InvalidArgument(f"CDI file {path}: version {file.cdi_version[:32]!r} is not supported")
            yield priority, path, file


def _table(path: Path) -> Any:
    """Return what the file holds; None for what is neither JSON nor YAML."""
    with os_errors(f"CDI file {path}"), path.open("rb") as opened:
        data = opened.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise InvalidArgument(f"CDI file {path} is larger than {_MAX_FILE} bytes")
    try:
        if path.suffix == ".json":
            return msgspec.json.decode(data)
        import yaml  # here: few machines have such files

        try:
            return yaml.safe_load(data)
        except yaml.YAMLError:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _edited(spec: Spec, edits: Edits, name: str) -> Spec:
    replace = msgspec.structs.replace
    user = spec.process.user
    gids = dict.fromkeys([*user.additional_gids, *(gid for gid in edits.additional_gids if gid)])
    user = replace(user, additional_gids=tuple(gids))
    process = replace(spec.process, env=merged_env(spec.process.env, edits.env), user=user)
    nodes = [_node(node, spec, name) for node in edits.device_nodes]
    linux = spec.linux
    taken = {device.path for device, _ in nodes}
    devices = (*(one for one in linux.devices if one.path not in taken), *(device for device, _ in nodes))
    rules = (*linux.resources.devices, *(rule for _, rule in nodes))
    rdt = IntelRdt(clos_id=edits.intel_rdt.clos_id) if edits.intel_rdt else linux.intel_rdt
    linux = replace(linux, devices=devices, resources=replace(linux.resources, devices=rules), intel_rdt=rdt)
    added = [
        Mount(destination=one.container_path, type=one.type, source=one.host_path, options=one.options)
        for one in edits.mounts
    ]
    places = {mount.destination for mount in added}
    mounts = (*(one for one in spec.mounts if one.destination not in places), *added)
    return replace(spec, process=process, linux=linux, mounts=mounts, hooks=_hooks(spec.hooks, edits.hooks, name))


def _node(node: _Node, spec: Spec, name: str) -> tuple[Device, DeviceRule]:
    """Return the node and its rule; what the file leaves out is the host's, an owner is the container's user."""
    with os_errors(f"CDI device {name!r}: {node.host_path or node.path}"):
        host = None if node.type and node.major else device_at(Path(node.host_path or node.path), node.path)
    if host is None and not (node.type and node.major):
        raise InvalidArgument(f"CDI device {name!r}: {node.host_path or node.path} is not a device node")
    user = spec.process.user
    mode = node.file_mode if node.file_mode is not None else host.file_mode if host else 0o660
    device = Device(
        path=node.path,
        type=node.type or (host.type if host else ""),
        major=node.major or (host.major if host else 0),
        minor=node.minor or (host.minor if host else 0),
        file_mode=mode,
        uid=node.uid if node.uid is not None else user.uid or (host.uid if host else 0),
        gid=node.gid if node.gid is not None else (user.gid if user.uid else host.gid if host else 0),
    )
    access = node.permissions or "rwm"
    rule = DeviceRule(allow=True, type=device.type, major=device.major, minor=device.minor, access=access)
    return device, rule


def _hooks(hooks: Hooks | None, added: Sequence[_Hook], name: str) -> Hooks | None:
    if not added:
        return hooks
    found = hooks or Hooks()
    for one in added:
        field = _HOOKS.get(one.hook_name)
        if field is None:
            raise InvalidArgument(f"CDI device {name!r}: there is no hook {one.hook_name[:64]!r}")
        hook = Hook(path=one.path, args=one.args, env=one.env, timeout=one.timeout)
        found = msgspec.structs.replace(found, **{field: (*getattr(found, field), hook)})
    return found
