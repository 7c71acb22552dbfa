"""Limits: from CRI's LinuxContainerResources to the OCI runtime spec's."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.namespaces import has_cgroup_v2
from runtimed.errors import InvalidArgument
from runtimed.oci.runtime_spec import Cpu, HugepageLimit, Limits, Memory

_CPUSET = re.compile(r"(?:[0-9]{1,6}(?:-[0-9]{1,6})?(?:,[0-9]{1,6}(?:-[0-9]{1,6})?)*)?")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,6}[KMG]B")
_UNIFIED = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")


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
