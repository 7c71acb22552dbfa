"""Limits: from CRI's LinuxContainerResources and annotations to the OCI runtime spec's."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.namespaces import has_cgroup_v2
from runtimed.cri.request import ContainerSpecRequest
from runtimed.errors import FailedPrecondition, InvalidArgument
from runtimed.oci.runtime_spec import BlockIo, Cpu, HugepageLimit, IntelRdt, Limits, Memory

_CPUSET = re.compile(r"(?:[0-9]{1,6}(?:-[0-9]{1,6})?(?:,[0-9]{1,6}(?:-[0-9]{1,6})?)*)?")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,6}[KMG]B")
_UNIFIED = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def limits_of(resources: pb.LinuxContainerResources) -> Limits:
    """Return what a request sets; its zeros and empty strings mean "not set", or in an update "as before".

    Without a swap limit a memory limit is one of memory and swap together, where the kernel counts swap.

    Raises:
        InvalidArgument: what the kernel could not take, or v2's files on cgroup v1.
    """
    memory = None
    swap = resources.memory_swap_limit_in_bytes
    if resources.memory_limit_in_bytes or swap:
        limit = resources.memory_limit_in_bytes or None
        memory = Memory(limit=limit, swap=(swap or limit) if counts_swap() else None)
    cpu = Cpu(
        shares=resources.cpu_shares or None,
        quota=resources.cpu_quota or None,
        period=resources.cpu_period or None,
        cpus=_cpuset(resources.cpuset_cpus, "cpuset_cpus"),
        mems=_cpuset(resources.cpuset_mems, "cpuset_mems"),
    )
    for name in ("cpu_shares", "cpu_period"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{name} must not be negative")
    return Limits(
        memory=memory,
        cpu=cpu if cpu != Cpu() else None,
        hugepage_limits=_hugepages(resources),
        unified=_unified(resources.unified),
    )


def block_io(request: ContainerSpecRequest) -> BlockIo | None:
    """Return the settings of the block I/O class that annotations name. Raises InvalidArgument: not configured."""
    name = _class_of(request, "blockio", "io.kubernetes.cri.blockio-class")
    if not name:
        return None
    found = request.rules.block_io_classes.get(name)
    if found is None:
        raise InvalidArgument(f"block I/O class {name!r} is not configured")
    return found


def intel_rdt(request: ContainerSpecRequest) -> IntelRdt | None:
    """Return the RDT class (of cache and memory bandwidth) that annotations name.

    Raises:
        InvalidArgument: not a name.
        FailedPrecondition: /sys/fs/resctrl is not mounted, or has no such class.
    """
    name = _class_of(request, "rdt", "io.kubernetes.cri.rdt-class")
    if not name:
        return None
    if not _CLASS.fullmatch(name):
        raise InvalidArgument(f"RDT class {name[:64]!r} is not a name")
    if not Path("/sys/fs/resctrl", name).is_dir():
        raise FailedPrecondition(f"RDT class {name!r} does not exist in /sys/fs/resctrl")
    return IntelRdt(clos_id=name)


def oom_score_adj(resources: pb.LinuxContainerResources) -> int:
    """Return the score. Raises InvalidArgument."""
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"oom_score_adj {resources.oom_score_adj} is not between -1000 and 1000")
    return resources.oom_score_adj


@cache
def counts_swap() -> bool:
    """Say whether the kernel limits swap (CONFIG_MEMCG_SWAP and its boot parameter)."""
    if not has_cgroup_v2():
        return Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
    # The root group has no limits; our own, or the first one below, does.
    own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    return Path("/sys/fs/cgroup", own, "memory.swap.max").exists() or any(
        Path("/sys/fs/cgroup").glob("*/memory.swap.max")
    )


def _class_of(request: ContainerSpecRequest, kind: str, own_key: str) -> str:
    """Return the class: the container's own annotation, what the pod says of this container, what it says of all."""
    of_pod: Mapping[str, str] = request.sandbox_config.annotations
    prefix = f"{kind}.resources.beta.kubernetes.io"
    return (
        request.config.annotations.get(own_key)
        or of_pod.get(f"{prefix}/container.{request.config.metadata.name}")
        or of_pod.get(f"{prefix}/pod")
        or ""
    )


def _cpuset(text: str, name: str) -> str:
    if not _CPUSET.fullmatch(text):
        raise InvalidArgument(f"{name} {text[:64]!r} is not a list like 0-3,5")
    return text


def _hugepages(resources: pb.LinuxContainerResources) -> tuple[HugepageLimit, ...]:
    found = []
    for asked in resources.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(asked.page_size):
            raise InvalidArgument(f"huge page size {asked.page_size[:32]!r} is not one like 2MB")
        found.append(HugepageLimit(page_size=asked.page_size, limit=asked.limit))
    # A kubelet sends a limit of zero for every size of the node, also where the controller is missing.
    return tuple(found) if _limits_hugepages() else tuple(one for one in found if one.limit)


@cache
def _limits_hugepages() -> bool:
    if has_cgroup_v2():
        return "hugetlb" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    return Path("/sys/fs/cgroup/hugetlb").is_dir()


def _unified(asked: Mapping[str, str]) -> dict[str, str]:
    if not asked:
        return {}
    if not has_cgroup_v2():
        raise InvalidArgument("unified resources are of cgroup v2, and this machine has v1")
    for key, value in asked.items():
        if not _UNIFIED.fullmatch(key) or key.startswith("cgroup."):
            raise InvalidArgument(f"unified resource {key[:64]!r} is not a file of a cgroup controller")
        if "\0" in value:
            raise InvalidArgument(f"unified resource {key}: the value contains a NUL character")
    return dict(asked)
