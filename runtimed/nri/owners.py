"""Which plugin has set what of a container: two that want to set the same are a conflict, and both are named."""

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition

# Fields that plugins add to: no other plugin's entry is replaced.
_SHARED = {pb.OciHooks}


class Owners:
    """Of any number of containers, by ID."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int, str | None], str] = {}

    def claim(self, id: str, field: int, plugin: str, key: str | None = None) -> None:
        """Take *field*, or its entry *key*, for *plugin*. Raises FailedPrecondition: it is another plugin's."""
        owner = self._owners.setdefault((id, field, key), plugin)
        if owner != plugin and field not in _SHARED:
            what = label(field) if key is None else f"{label(field)} {key[:128]!r}"
            raise FailedPrecondition(f"NRI plugins {owner} and {plugin} both set {what} of container {id}")

    def release(self, id: str, field: int, key: str | None = None) -> None:
        """Let another plugin set what has been taken away."""
        self._owners.pop((id, field, key), None)

    def message(self) -> pb.OwningPlugins:
        """Return it as plugins that validate are told."""
        told = pb.OwningPlugins()
        for (id, field, key), plugin in self._owners.items():
            if key is None:
                told.owners[id].simple[field] = plugin
            else:
                told.owners[id].compound[field].owners[key] = plugin
        return told


def label(field: int) -> str:
    """Return a field's name as errors have it."""
    return _LABELS[field]


_LABELS: dict[int, str] = {
    pb.Annotations: "annotation",
    pb.Mounts: "mount",
    pb.OciHooks: "hooks",
    pb.Devices: "device",
    pb.CdiDevices: "CDI device",
    pb.Env: "environment variable",
    pb.Args: "args",
    pb.MemLimit: "memory limit",
    pb.MemReservation: "memory reservation",
    pb.MemSwapLimit: "memory swap limit",
    pb.MemKernelLimit: "kernel memory limit",
    pb.MemTCPLimit: "kernel TCP memory limit",
    pb.MemSwappiness: "swappiness",
    pb.MemDisableOomKiller: "memory disable_oom_killer",
    pb.MemUseHierarchy: "memory use_hierarchy",
    pb.CPUShares: "CPU shares",
    pb.CPUQuota: "CPU quota",
    pb.CPUPeriod: "CPU period",
    pb.CPURealtimeRuntime: "realtime runtime",
    pb.CPURealtimePeriod: "realtime period",
    pb.CPUSetCPUs: "cpuset CPUs",
    pb.CPUSetMems: "cpuset memory nodes",
    pb.PidsLimit: "pids limit",
    pb.HugepageLimits: "huge page limit",
    pb.BlockioClass: "block I/O class",
    pb.RdtClass: "RDT class",
    pb.CgroupsUnified: "unified cgroup value",
    pb.CgroupsPath: "cgroups path",
    pb.OomScoreAdj: "OOM score",
    pb.Rlimits: "rlimit",
    pb.IoPriority: "I/O priority",
    pb.SeccompPolicy: "seccomp policy",
    pb.Namespace: "namespace",
    pb.Sysctl: "sysctl",
    pb.LinuxNetDevices: "network device",
    pb.LinuxSched: "scheduler",
    pb.RdtClosID: "RDT closID",
    pb.RdtSchemata: "RDT schemata",
    pb.RdtEnableMonitoring: "RDT monitoring",
    pb.MemoryPolicy: "memory policy",
}
