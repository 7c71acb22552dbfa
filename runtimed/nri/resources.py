"""LinuxResources of NRI: field by field, checked, claimed, put together, and as the OCI runtime spec has them."""

import re
from collections.abc import Iterator
from typing import Any

from runtimed.api import nri_pb2 as pb
from runtimed.errors import InvalidArgument
from runtimed.nri.owners import Owners

_CPUSET = re.compile(r"[0-9]{1,6}(?:-[0-9]{1,6})?(?:,[0-9]{1,6}(?:-[0-9]{1,6})?)*")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,6}[KMG]B")
_UNIFIED = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Where a simple field is in the message; and its name in the OCI runtime spec, "" if it is not in it.
_SIMPLE: tuple[tuple[int, str, str, str], ...] = (
    (pb.MemLimit, "memory", "limit", "limit"),
    (pb.MemReservation, "memory", "reservation", "reservation"),
    (pb.MemSwapLimit, "memory", "swap", "swap"),
    (pb.MemKernelLimit, "memory", "kernel", "kernel"),
    (pb.MemTCPLimit, "memory", "kernel_tcp", "kernelTCP"),
    (pb.MemSwappiness, "memory", "swappiness", "swappiness"),
    (pb.MemDisableOomKiller, "memory", "disable_oom_killer", "disableOOMKiller"),
    (pb.MemUseHierarchy, "memory", "use_hierarchy", "useHierarchy"),
    (pb.CPUShares, "cpu", "shares", "shares"),
    (pb.CPUQuota, "cpu", "quota", "quota"),
    (pb.CPUPeriod, "cpu", "period", "period"),
    (pb.CPURealtimeRuntime, "cpu", "realtime_runtime", "realtimeRuntime"),
    (pb.CPURealtimePeriod, "cpu", "realtime_period", "realtimePeriod"),
    (pb.CPUSetCPUs, "cpu", "cpus", "cpus"),
    (pb.CPUSetMems, "cpu", "mems", "mems"),
    (pb.PidsLimit, "pids", "limit", "limit"),
    (pb.BlockioClass, "", "blockio_class", ""),
    (pb.RdtClass, "", "rdt_class", ""),
)


def simple_fields(resources: pb.LinuxResources) -> Iterator[tuple[int, Any]]:
    """Yield the simple fields that are set, by their numbers in ``Field``, with their values."""
    for field, group, name, _ in _SIMPLE:
        holder: Any = resources
        if group:
            if not resources.HasField(group):
                continue
            holder = getattr(resources, group)
        value = getattr(holder, name)
        if isinstance(value, str):
            if value:
                yield field, value
        elif field == pb.PidsLimit:
            yield field, value
        elif holder.HasField(name):
            yield field, value.value


def check(resources: pb.LinuxResources, subject: str) -> None:
    """Raise InvalidArgument if the kernel could not take it; *subject* says whose wish it is."""
    for field, value in simple_fields(resources):
        name = next(f"{group}.{name}" if group else name for number, group, name, _ in _SIMPLE if number == field)
        if field in (pb.CPUSetCPUs, pb.CPUSetMems) and not _CPUSET.fullmatch(value):
            raise InvalidArgument(f"{subject}: {name} {value[:64]!r} is not a list like 0-3,5")
        if field in (pb.BlockioClass, pb.RdtClass) and value and not _CLASS.fullmatch(value):
            raise InvalidArgument(f"{subject}: {name} {value[:64]!r} is not a name")
        if isinstance(value, int) and value < -1:
            raise InvalidArgument(f"{subject}: {name} {value} must not be below -1")
        if isinstance(value, int) and value >= 1 << 63:
            raise InvalidArgument(f"{subject}: {name} {value} must be below 2^63")
        if field == pb.MemSwappiness and value > 200:
            raise InvalidArgument(f"{subject}: {name} {value} is not between 0 and 200")
    for limit in resources.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            raise InvalidArgument(f"{subject}: hugepage_limits {limit.page_size[:32]!r} is not a size like 2MB")
    for key, value in resources.unified.items():
        if not _UNIFIED.fullmatch(key) or key.startswith("cgroup.") or "\0" in value:
            raise InvalidArgument(f"{subject}: unified {key[:64]!r} is not a file of a cgroup controller")


def claim(resources: pb.LinuxResources, owners: Owners, id: str, plugin: str) -> None:
    """Take all that is set for *plugin*. Raises FailedPrecondition: another plugin has set it."""
    for field, _ in simple_fields(resources):
        owners.claim(id, field, plugin)
    for limit in resources.hugepage_limits:
        owners.claim(id, pb.HugepageLimits, plugin, limit.page_size)
    for key in resources.unified:
        owners.claim(id, pb.CgroupsUnified, plugin, key)


def merge(current: pb.LinuxResources, over: pb.LinuxResources) -> None:
    """Put *over* over *current*; what it leaves out stays. Devices are no resource that a plugin may set."""
    changed = pb.LinuxResources()
    changed.CopyFrom(over)
    sizes = {limit.page_size for limit in over.hugepage_limits}
    kept = [limit for limit in current.hugepage_limits if limit.page_size not in sizes]
    del changed.devices[:]
    for group in ("memory", "cpu"):
        mine, theirs = getattr(current, group), getattr(changed, group)
        for field, value in theirs.ListFields():
            if field.message_type is None:
                setattr(mine, field.name, value)
            else:
                getattr(mine, field.name).CopyFrom(value)
        changed.ClearField(group)
    for name in ("pids", "blockio_class", "rdt_class"):
        if changed.HasField(name):
            getattr(current, name).CopyFrom(getattr(changed, name))
    current.unified.update(changed.unified)
    del current.hugepage_limits[:]
    current.hugepage_limits.extend([*kept, *changed.hugepage_limits])


def to_oci(resources: pb.LinuxResources) -> dict[str, Any]:
    """Return ``linux.resources`` of the runtime spec, without what is not set. Classes are not in it."""
    spec: dict[str, Any] = {}
    by_number = {field: (group, oci) for field, group, _, oci in _SIMPLE}
    for field, value in simple_fields(resources):
        group, name = by_number[field]
        if group:
            spec.setdefault(group, {})[name] = value
    if resources.hugepage_limits:
        spec["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in resources.hugepage_limits]
    if resources.unified:
        spec["unified"] = dict(resources.unified)
    return spec


def from_oci(spec: dict[str, Any]) -> pb.LinuxResources:
    """Return what plugins are told of ``linux.resources``."""
    told = pb.LinuxResources()
    for field, group, name, oci in _SIMPLE:
        value = spec.get(group, {}).get(oci) if group else None
        if value is None or value == "":
            continue
        if field in (pb.CPUSetCPUs, pb.CPUSetMems, pb.PidsLimit):
            setattr(getattr(told, group), name, value)
        else:
            getattr(getattr(told, group), name).value = value
    for limit in spec.get("hugepageLimits", ()):
        told.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    told.unified.update(spec.get("unified", {}))
    for rule in spec.get("devices", ()):
        found = told.devices.add(allow=rule["allow"], type=rule.get("type", ""), access=rule.get("access", ""))
        for number in ("major", "minor"):
            if rule.get(number) is not None:
                getattr(found, number).value = rule[number]
    return told
