"""Pods and containers as NRI tells plugins of them, and limits between its words and CRI's."""

from typing import Any

from runtimed.api import cri_pb2
from runtimed.api import nri_pb2 as pb
from runtimed.cri.state import Container, Sandbox
from runtimed.nri import resources
from runtimed.nri.hooks import HOOKS

_STATES = {
    cri_pb2.CONTAINER_CREATED: pb.CONTAINER_CREATED,
    cri_pb2.CONTAINER_RUNNING: pb.CONTAINER_RUNNING,
    cri_pb2.CONTAINER_EXITED: pb.CONTAINER_STOPPED,
}
# What limits are called in CRI: group and field of NRI's message.
_NAMES = {
    "cpu_period": ("cpu", "period"),
    "cpu_quota": ("cpu", "quota"),
    "cpu_shares": ("cpu", "shares"),
    "memory_limit_in_bytes": ("memory", "limit"),
    "memory_swap_limit_in_bytes": ("memory", "swap"),
    "cpuset_cpus": ("cpu", "cpus"),
    "cpuset_mems": ("cpu", "mems"),
}
_OF_CRI = {
    "memory": {"limit", "swap"},
    "cpu": {"shares", "quota", "period", "cpus", "mems"},
}


def pod(sandbox: Sandbox) -> pb.PodSandbox:
    """Return a pod."""
    config, linux = sandbox.config, sandbox.config.linux
    told = pb.PodSandbox(
        id=sandbox.id,
        name=config.metadata.name,
        uid=config.metadata.uid,
        namespace=config.metadata.namespace,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=sandbox.record.handler,
        pid=sandbox.pid,
        ips=sandbox.record.ips,
    )
    told.linux.cgroup_parent = linux.cgroup_parent
    told.linux.pod_overhead.CopyFrom(from_cri(linux.overhead))
    told.linux.pod_resources.CopyFrom(from_cri(linux.resources))
    if sandbox.record.netns:
        told.linux.namespaces.add(type="network", path=sandbox.record.netns)
    return told


def container(one: Container, spec: dict[str, Any]) -> pb.Container:
    """Return a container whose OCI runtime spec is *spec*, as JSON has it."""
    record, process, linux = one.record, spec["process"], spec["linux"]
    told = pb.Container(
        id=one.id,
        pod_sandbox_id=one.sandbox.id,
        name=one.config.metadata.name,
        state=pb.ContainerState.Name(_STATES.get(one.state, pb.CONTAINER_UNKNOWN)),
        labels=one.config.labels,
        annotations=spec.get("annotations", {}) | dict(one.config.annotations),
        args=process.get("args", []),
        env=process.get("env", []),
        pid=one.pid,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        status_reason=record.reason,
        status_message=record.message,
    )
    user = process.get("user", {})
    told.user.uid, told.user.gid = user.get("uid", 0), user.get("gid", 0)
    told.user.additional_gids.extend(user.get("additionalGids", ()))
    told.image.name = one.config.image.user_specified_image or one.config.image.image
    told.image.config_digest = record.image
    if "@" in record.image_ref:
        told.image.digest = record.image_ref.partition("@")[2]
    for mount in spec.get("mounts", ()):
        told.mounts.add(**{name: mount[name] for name in ("destination", "type", "source", "options") if name in mount})
    for limit in process.get("rlimits", ()):
        told.rlimits.add(type=limit["type"], hard=limit["hard"], soft=limit["soft"])
    for device in one.config.CDI_devices:
        told.CDI_devices.add(name=device.name)
    for name, of_spec in HOOKS.items():
        for hook in spec.get("hooks", {}).get(of_spec, ()):
            found = getattr(told.hooks, name).add(path=hook["path"], args=hook.get("args", ()), env=hook.get("env", ()))
            if "timeout" in hook:
                found.timeout.value = hook["timeout"]
    _linux(told.linux, process, linux)
    return told


def _linux(told: pb.LinuxContainer, process: dict[str, Any], linux: dict[str, Any]) -> None:
    for namespace in linux.get("namespaces", ()):
        told.namespaces.add(type=namespace["type"], path=namespace.get("path", ""))
    for device in linux.get("devices", ()):
        found = told.devices.add(**{name: device[name] for name in ("path", "type", "major", "minor")})
        for name, theirs in (("fileMode", "file_mode"), ("uid", "uid"), ("gid", "gid")):
            if device.get(name) is not None:
                getattr(found, theirs).value = device[name]
    told.resources.CopyFrom(resources.from_oci(linux.get("resources", {})))
    if "oomScoreAdj" in process:
        told.oom_score_adj.value = process["oomScoreAdj"]
    told.cgroups_path = linux.get("cgroupsPath", "")
    told.sysctl.update(linux.get("sysctl", {}))
    if "closID" in linux.get("intelRdt", {}):
        told.rdt.clos_id.value = linux["intelRdt"]["closID"]
    seccomp = linux.get("seccomp")
    told.seccomp_profile.profile_type = (
        pb.SecurityProfile.UNCONFINED if seccomp is None else pb.SecurityProfile.RUNTIME_DEFAULT
    )
    if seccomp is not None:
        _seccomp(told.seccomp_policy, seccomp)


def _seccomp(told: pb.LinuxSeccomp, policy: dict[str, Any]) -> None:
    told.default_action = policy["defaultAction"]
    if policy.get("defaultErrnoRet") is not None:
        told.default_errno.value = policy["defaultErrnoRet"]
    told.architectures.extend(policy.get("architectures", ()))
    told.flags.extend(policy.get("flags", ()))
    told.listener_path = policy.get("listenerPath", "")
    told.listener_metadata = policy.get("listenerMetadata", "")
    for rule in policy.get("syscalls", ()):
        found = told.syscalls.add(names=rule["names"], action=rule["action"])
        if rule.get("errnoRet") is not None:
            found.errno_ret.value = rule["errnoRet"]
        for arg in rule.get("args", ()):
            found.args.add(index=arg["index"], value=arg["value"], value_two=arg.get("valueTwo", 0), op=arg["op"])


def from_cri(given: cri_pb2.LinuxContainerResources) -> pb.LinuxResources:
    """Return limits in NRI's words. What is zero in CRI's is not set."""
    told = pb.LinuxResources()
    for name, (group, theirs) in _NAMES.items():
        if not (value := getattr(given, name)):
            continue
        if isinstance(value, str):
            setattr(getattr(told, group), theirs, value)
        elif value > 0 or theirs in ("quota", "limit", "swap"):
            getattr(getattr(told, group), theirs).value = value
    for limit in given.hugepage_limits:
        told.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    told.unified.update(given.unified)
    return told


def to_cri(wanted: pb.LinuxResources) -> tuple[cri_pb2.LinuxContainerResources, dict[str, Any]]:
    """Return limits in CRI's words, and what those have not as ``linux.resources`` of the OCI runtime spec has it."""
    given = cri_pb2.LinuxContainerResources()
    for name, (group, theirs) in _NAMES.items():
        if wanted.HasField(group):
            value = getattr(getattr(wanted, group), theirs)
            setattr(given, name, value if isinstance(value, str) else value.value)
    for limit in wanted.hugepage_limits:
        given.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    given.unified.update(wanted.unified)
    extra = resources.to_oci(wanted)
    for name in ("hugepageLimits", "unified"):
        extra.pop(name, None)
    for group, names in _OF_CRI.items():
        left = {name: value for name, value in extra.pop(group, {}).items() if name not in names}
        if left:
            extra[group] = left
    return given, extra
