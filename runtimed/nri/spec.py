"""An adjustment done to an OCI runtime spec, as JSON has it: fields of it that the daemon itself never writes, too."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from runtimed.api import nri_pb2 as pb
from runtimed.nri import resources
from runtimed.nri.hooks import HOOKS
from runtimed.oci.limits import merged

Spec = dict[str, Any]

_PROPAGATION = {"shared": "shared", "rshared": "rshared", "slave": "rslave", "rslave": "rslave"}


def adjusted(spec: Spec, adjust: pb.ContainerAdjustment) -> Spec:
    """Return *spec* changed. CDI devices, and classes of block I/O and RDT, are the caller's to resolve."""
    spec = copy.deepcopy(spec)
    process, linux = spec["process"], spec["linux"]
    if adjust.args:
        process["args"] = list(adjust.args)
    if adjust.env:
        process["env"] = _list(
            process.get("env", []),
            lambda entry: entry.partition("=")[0],
            ((one.key, f"{one.key}={one.value}") for one in adjust.env),
        )
    if adjust.rlimits:
        process["rlimits"] = _list(
            process.get("rlimits", []),
            lambda limit: limit["type"],
            ((one.type, {"type": one.type, "hard": one.hard, "soft": one.soft}) for one in adjust.rlimits),
        )
    if adjust.annotations:
        spec["annotations"] = _map(spec.get("annotations", {}), adjust.annotations)
    if adjust.mounts:
        _mounts(spec, adjust.mounts)
    for name, ours in HOOKS.items():
        if added := [_hook(one) for one in getattr(adjust.hooks, name)]:
            hooks = spec.setdefault("hooks", {})
            hooks[ours] = [*hooks.get(ours, []), *added]
    if adjust.HasField("linux"):
        _linux(process, linux, adjust.linux)
    return spec


def _linux(process: Spec, linux: Spec, adjust: pb.LinuxContainerAdjustment) -> None:
    if adjust.devices:
        _devices(linux, adjust.devices)
    if adjust.HasField("resources"):
        linux["resources"] = merged(linux.get("resources", {}), resources.to_oci(adjust.resources))
    if adjust.cgroups_path:
        linux["cgroupsPath"] = adjust.cgroups_path
    if adjust.HasField("oom_score_adj"):
        process["oomScoreAdj"] = adjust.oom_score_adj.value
    if adjust.HasField("io_priority"):
        priority = adjust.io_priority
        name = pb.IOPrioClass.Name(getattr(priority, "class"))
        process["ioPriority"] = {"class": name, "priority": priority.priority}
        if name == "IOPRIO_CLASS_NONE":
            del process["ioPriority"]
    if adjust.HasField("scheduler"):
        _set(process, "scheduler", _scheduler(adjust.scheduler))
    if adjust.HasField("seccomp_policy"):
        linux["seccomp"] = _seccomp(adjust.seccomp_policy)
    if adjust.namespaces:
        linux["namespaces"] = _list(
            linux.get("namespaces", []),
            lambda one: one["type"],
            ((one.type, _without_empty({"type": one.type, "path": one.path})) for one in adjust.namespaces),
        )
    if adjust.sysctl:
        linux["sysctl"] = _map(linux.get("sysctl", {}), adjust.sysctl)
    if adjust.net_devices:
        given = {name: _without_empty({"name": one.name}) for name, one in adjust.net_devices.items()}
        linux["netDevices"] = _map(linux.get("netDevices", {}), given)
    if adjust.HasField("rdt"):
        _rdt(linux, adjust.rdt)
    if adjust.HasField("memory_policy"):
        policy = adjust.memory_policy
        flags = [pb.MpolFlag.Name(flag) for flag in policy.flags]
        mode: Spec = {"mode": pb.MpolMode.Name(policy.mode), "nodes": policy.nodes, "flags": flags}
        linux["memoryPolicy"] = _without_empty(mode)


def _list(current: Iterable[Any], key_of: Callable[[Any], str], changes: Iterable[tuple[str, Any]]) -> list[Any]:
    """Return *current* without what *changes* take away or replace, and what they add after it."""
    given = dict(changes)
    kept = [one for one in current if key_of(one) not in given and f"-{key_of(one)}" not in given]
    return [*kept, *(one for key, one in given.items() if not key.startswith("-"))]


def _map(current: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in current.items() if f"-{key}" not in changes}
    return {**kept, **{key: value for key, value in changes.items() if not key.startswith("-")}}


def _mounts(spec: Spec, given: Iterable[pb.Mount]) -> None:
    changes = [
        (one.destination, {"destination": one.destination, "type": one.type or "bind", "source": one.source,
                           "options": list(one.options)})
        for one in given
    ]  # fmt: skip
    mounts = _list(spec.get("mounts", []), lambda mount: mount["destination"].rstrip("/") or "/", changes)
    # What is mounted below another mount comes after it; the order is otherwise as it was.
    spec["mounts"] = sorted(mounts, key=lambda mount: mount["destination"].rstrip("/").count("/"))
    wanted = {_PROPAGATION[option] for _, mount in changes for option in mount["options"] if option in _PROPAGATION}
    current = spec["linux"].get("rootfsPropagation", "")
    if wanted & {"shared", "rshared"}:
        spec["linux"]["rootfsPropagation"] = "rshared"
    elif wanted and current not in ("shared", "rshared"):
        spec["linux"]["rootfsPropagation"] = "rslave"


def _devices(linux: Spec, given: Iterable[pb.LinuxDevice]) -> None:
    given = list(given)
    paths = {one.path.removeprefix("-") for one in given}
    gone = [one for one in linux.get("devices", []) if one["path"] in paths]
    linux["devices"] = _list(
        linux.get("devices", []), lambda one: one["path"], ((one.path, _device(one)) for one in given)
    )
    allowed = {(one["type"], one["major"], one["minor"]) for one in gone}
    group = linux.setdefault("resources", {})
    rules = [
        rule
        for rule in group.get("devices", [])
        if not rule["allow"] or (rule.get("type"), rule.get("major"), rule.get("minor")) not in allowed
    ]
    for one in given:
        if not one.path.startswith("-") and one.type != "p":
            kind = "c" if one.type == "u" else one.type
            rules.append({"allow": True, "type": kind, "major": one.major, "minor": one.minor, "access": "rwm"})
    group["devices"] = rules


def _device(one: pb.LinuxDevice) -> Spec:
    found: Spec = {"path": one.path, "type": one.type, "major": one.major, "minor": one.minor}
    for name, ours in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
        if one.HasField(name):
            found[ours] = getattr(one, name).value
    return found


def _hook(one: pb.Hook) -> Spec:
    found = _without_empty({"path": one.path, "args": list(one.args), "env": list(one.env)})
    if one.HasField("timeout"):
        found["timeout"] = one.timeout.value
    return found


def _scheduler(one: pb.LinuxScheduler) -> Spec:
    if one.policy == pb.SCHED_NONE:
        return {}
    found = {"nice": one.nice, "priority": one.priority, "runtime": one.runtime, "deadline": one.deadline,
             "period": one.period, "flags": [pb.LinuxSchedulerFlag.Name(flag) for flag in one.flags]}  # fmt: skip
    return {"policy": pb.LinuxSchedulerPolicy.Name(one.policy), **_without_empty(found)}


def _seccomp(policy: pb.LinuxSeccomp) -> Spec:
    found = _without_empty(
        {
            "architectures": list(policy.architectures),
            "flags": list(policy.flags),
            "listenerPath": policy.listener_path,
            "listenerMetadata": policy.listener_metadata,
        }
    )
    if policy.HasField("default_errno"):
        found["defaultErrnoRet"] = policy.default_errno.value
    rules = []
    for rule in policy.syscalls:
        made: Spec = {"names": list(rule.names), "action": rule.action}
        if rule.HasField("errno_ret"):
            made["errnoRet"] = rule.errno_ret.value
        if rule.args:
            made["args"] = [
                {"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op} for arg in rule.args
            ]
        rules.append(made)
    return {"defaultAction": policy.default_action, **found, "syscalls": rules}


def _rdt(linux: Spec, rdt: pb.LinuxRdt) -> None:
    found: Spec = {} if rdt.remove else dict(linux.get("intelRdt", {}))
    if rdt.HasField("clos_id"):
        found["closID"] = rdt.clos_id.value
    if rdt.HasField("schemata"):
        found["schemata"] = list(rdt.schemata.value)
    if rdt.HasField("enable_monitoring"):
        found["enableMonitoring"] = rdt.enable_monitoring.value
    _set(linux, "intelRdt", found)


def _set(holder: Spec, name: str, value: Any) -> None:
    """Set what is not empty, take away what is."""
    holder.pop(name, None)
    if value:
        holder[name] = value


def _without_empty(found: Spec) -> Spec:
    return {name: value for name, value in found.items() if value}
