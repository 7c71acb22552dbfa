"""OCI runtime specs of the pause process and of containers: what every pod needs of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri.state import Sandbox
from runtimed.errors import InvalidArgument
from runtimed.oci.manifest import ImageConfig
from runtimed.oci.runtime_spec import DEFAULT_CAPABILITIES, DEFAULT_PATH, MASKED_PATHS, READONLY_PATHS, merged_env

Json = dict[str, Any]

_QUIET = ["nosuid", "noexec", "nodev"]
_DEV: Json = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755"],
}
_PAUSE_SHARES, _PAUSE_OOM_SCORE = 2, -998


def pause_spec(sandbox: Sandbox, image: ImageConfig, cgroup: str, least_oom_score: int) -> bytes:
    """Return the spec of the process that holds a pod's namespaces."""
    options = sandbox.config.linux.security_context.namespace_options
    run = image.config
    args = [*((run.entrypoint if run else None) or ()), *((run.cmd if run else None) or ())]
    namespaces: list[Json] = [{"type": "mount"}]
    if options.network != pb.NODE:
        namespaces += [{"type": "network", "path": sandbox.record.netns}, {"type": "uts"}]
    if options.pid != pb.NODE:
        namespaces.append({"type": "pid"})
    if options.ipc != pb.NODE:
        namespaces.append({"type": "ipc"})
    spec: Json = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65535, "gid": 65535},
            "args": args or ["/pause"],
            "env": list((run.env if run else None) or ()),
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
            "oomScoreAdj": max(_PAUSE_OOM_SCORE, least_oom_score),
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": _QUIET},
            _DEV,
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": _PAUSE_SHARES}},
            "sysctl": dict(sandbox.config.linux.sysctls),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
        "annotations": _annotations("sandbox", sandbox),
    }
    if options.network != pb.NODE and sandbox.config.hostname:
        spec["hostname"] = sandbox.config.hostname
    return msgspec.json.encode(spec)


def container_spec(
    config: pb.ContainerConfig, sandbox: Sandbox, image: ImageConfig, cgroup: str, files: Path, *, id: str
) -> bytes:
    """Return the spec of a container. Raises InvalidArgument."""
    security = config.linux.security_context
    run = image.config
    args = [*config.command, *config.args]
    if not config.command:
        args = [*((run.entrypoint if run else None) or ()), *(config.args or (run.cmd if run else None) or ())]
    if not args:
        raise InvalidArgument("the container has no command, and neither has the image")
    env = merged_env(
        [DEFAULT_PATH],
        (run.env if run else None) or (),
        [f"{one.key}={one.value.decode(errors='surrogateescape')}" for one in config.envs],
    )
    capabilities = list(DEFAULT_CAPABILITIES)
    process: Json = {
        "terminal": config.tty,
        "user": {"uid": security.run_as_user.value, "gid": security.run_as_group.value},
        "args": args,
        "env": env,
        "cwd": config.working_dir or (run.working_dir if run else "") or "/",
        "capabilities": {name: capabilities for name in ("bounding", "effective", "permitted")},
        "noNewPrivileges": security.no_new_privs,
    }
    if config.linux.resources.oom_score_adj:
        process["oomScoreAdj"] = config.linux.resources.oom_score_adj
    spec = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": _mounts(config, sandbox, files),
        "linux": {
            "namespaces": _namespaces(security.namespace_options, sandbox),
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}], **resources(config.linux.resources)},
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
        "annotations": _annotations("container", sandbox) | {"io.kubernetes.cri.container-name": config.metadata.name},
    }
    return msgspec.json.encode(spec)


def resources(given: pb.LinuxContainerResources) -> Json:
    """Return the OCI form of CRI's resources; what is 0 is not set."""
    cpu = {
        "shares": given.cpu_shares,
        "quota": given.cpu_quota,
        "period": given.cpu_period,
        "cpus": given.cpuset_cpus,
        "mems": given.cpuset_mems,
    }
    memory = {"limit": given.memory_limit_in_bytes, "swap": given.memory_swap_limit_in_bytes}
    pages = [{"pageSize": one.page_size, "limit": one.limit} for one in given.hugepage_limits]
    found = {
        "cpu": {name: value for name, value in cpu.items() if value},
        "memory": {name: value for name, value in memory.items() if value},
        "hugepageLimits": pages,
        "unified": dict(given.unified),
    }
    return {name: value for name, value in found.items() if value}


def _namespaces(options: pb.NamespaceOption, sandbox: Sandbox) -> list[Json]:
    joined = f"/proc/{sandbox.pid}/ns"
    namespaces: list[Json] = [{"type": "mount"}]
    if options.network != pb.NODE:
        namespaces += [{"type": "network", "path": sandbox.record.netns}, {"type": "uts", "path": f"{joined}/uts"}]
    if options.ipc != pb.NODE:
        namespaces.append({"type": "ipc", "path": f"{joined}/ipc"})
    if options.pid == pb.POD:
        namespaces.append({"type": "pid", "path": f"{joined}/pid"})
    elif options.pid == pb.CONTAINER:
        namespaces.append({"type": "pid"})
    return namespaces


def _mounts(config: pb.ContainerConfig, sandbox: Sandbox, files: Path) -> Sequence[Json]:
    is_host_ipc = config.linux.security_context.namespace_options.ipc == pb.NODE
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": _QUIET},
        _DEV,
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _QUIET},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_QUIET, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*_QUIET, "ro"]},
        _bind("/dev/shm", "/dev/shm" if is_host_ipc else str(files / "shm")),
    ]
    given = {mount.container_path for mount in config.mounts}
    shared = {"/etc/hostname": "hostname", "/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf"}
    mounts += [_bind(path, str(files / name)) for path, name in shared.items() if path not in given]
    for mount in config.mounts:
        mounts.append(_bind(mount.container_path, mount.host_path, "ro" if mount.readonly else "rw"))
    return mounts


def _bind(destination: str, source: str, access: str = "rw") -> Json:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]}


def _annotations(kind: str, sandbox: Sandbox) -> dict[str, str]:
    metadata = sandbox.config.metadata
    return {
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox.id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
    }
