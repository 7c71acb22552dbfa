"""What a plugin must not ask for: a wish that cannot be is refused with the plugin's name and the field's."""

import re
from collections.abc import Iterable

from runtimed.api import nri_pb2 as pb
from runtimed.errors import InvalidArgument
from runtimed.nri import resources
from runtimed.nri.hooks import HOOKS

_MAX_ENTRY = 128 << 10  # bytes of one argument or variable: MAX_ARG_STRLEN, execve(2)
_RLIMIT = re.compile(r"RLIMIT_[A-Z]{2,16}")
_SYSCTL = re.compile(r"[a-z0-9_]+(?:[./][A-Za-z0-9_:-]+)+")
_ACTION = re.compile(r"SCMP_ACT_[A-Z_]{2,20}")
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9]{2,16}")
_FLAG = re.compile(r"SECCOMP_FILTER_FLAG_[A-Z_]{2,32}")
_OPERATOR = re.compile(r"SCMP_CMP_[A-Z_]{2,16}")
_NETWORK_DEVICE = re.compile(r"[^/\s\0]{1,15}")
_NAMESPACES = {"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"}


def check(adjust: pb.ContainerAdjustment, plugin: str) -> None:
    """Raise InvalidArgument if a container cannot be changed so."""
    _Check(f"NRI plugin {plugin}, adjustment").adjustment(adjust)


class _Check:
    def __init__(self, subject: str) -> None:
        self._subject = subject

    def _fail(self, field: str, problem: str) -> InvalidArgument:
        return InvalidArgument(f"{self._subject}: {field}: {problem}")

    def adjustment(self, adjust: pb.ContainerAdjustment) -> None:
        for key in adjust.annotations:
            if not key.removeprefix("-"):
                raise self._fail("annotations", "a key is empty")
        for variable in adjust.env:
            name = variable.key.removeprefix("-")
            if not name or "=" in name:
                raise self._fail("env", f"{variable.key[:64]!r} is not a name")
            self._entries("env", [variable.key, variable.value])
        if adjust.args and not any(adjust.args):
            raise self._fail("args", "there is no command")
        self._entries("args", adjust.args)
        for mount in adjust.mounts:
            self._mount(mount)
        for name in HOOKS:
            for hook in getattr(adjust.hooks, name):
                self._hook(f"hooks.{name}", hook)
        for limit in adjust.rlimits:
            if not _RLIMIT.fullmatch(limit.type.removeprefix("-")):
                raise self._fail("rlimits", f"{limit.type[:32]!r} is not one like RLIMIT_NOFILE")
            if limit.soft > limit.hard:
                raise self._fail("rlimits", f"{limit.type}: soft {limit.soft} is above hard {limit.hard}")
        for device in adjust.CDI_devices:
            if not device.name:
                raise self._fail("CDI_devices", "a name is empty")
        self._linux(adjust.linux)

    def _entries(self, field: str, entries: Iterable[str]) -> None:
        for entry in entries:
            if "\0" in entry:
                raise self._fail(field, f"{entry[:64]!r} contains a NUL character")
            if len(entry.encode()) >= _MAX_ENTRY:
                raise self._fail(field, f"{entry[:64]!r} is longer than {_MAX_ENTRY} bytes")

    def _path(self, field: str, path: str) -> None:
        if not path.startswith("/") or any(ord(character) < 32 for character in path) or ".." in path.split("/"):
            raise self._fail(field, f"{path[:128]!r} is not an absolute path")

    def _mount(self, mount: pb.Mount) -> None:
        self._path("mounts.destination", mount.destination.removeprefix("-"))
        if mount.destination.startswith("-"):
            return
        self._entries("mounts", [mount.type, mount.source, *mount.options])
        if "bind" in mount.options or "rbind" in mount.options or mount.type == "bind":
            self._path("mounts.source", mount.source)

    def _hook(self, field: str, hook: pb.Hook) -> None:
        self._path(f"{field}.path", hook.path)
        self._entries(field, [*hook.args, *hook.env])
        if any("=" not in variable for variable in hook.env):
            raise self._fail(f"{field}.env", "a variable is not of the form KEY=VALUE")
        if hook.HasField("timeout") and hook.timeout.value <= 0:
            raise self._fail(f"{field}.timeout", f"{hook.timeout.value} must be above 0 seconds")

    def _linux(self, linux: pb.LinuxContainerAdjustment) -> None:
        for device in linux.devices:
            self._path("linux.devices.path", device.path.removeprefix("-"))
            if not device.path.startswith("-") and device.type not in ("b", "c", "u", "p"):
                raise self._fail("linux.devices.type", f"{device.type[:8]!r} of {device.path} is not b, c, u or p")
            if device.major < 0 or device.minor < 0:
                raise self._fail("linux.devices", f"{device.path}: its numbers must not be negative")
        if linux.HasField("resources"):
            resources.check(linux.resources, f"{self._subject}: linux.resources")
        if "\0" in linux.cgroups_path or ".." in linux.cgroups_path.split("/"):
            raise self._fail("linux.cgroups_path", f"{linux.cgroups_path[:128]!r} is not a path of a cgroup")
        if linux.HasField("oom_score_adj") and not -1000 <= linux.oom_score_adj.value <= 1000:
            raise self._fail("linux.oom_score_adj", f"{linux.oom_score_adj.value} is not between -1000 and 1000")
        if linux.HasField("io_priority") and not 0 <= linux.io_priority.priority <= 7:
            raise self._fail("linux.io_priority", f"priority {linux.io_priority.priority} is not between 0 and 7")
        for namespace in linux.namespaces:
            if namespace.type.removeprefix("-") not in _NAMESPACES:
                raise self._fail("linux.namespaces", f"{namespace.type[:32]!r} is none of {', '.join(_NAMESPACES)}")
            if namespace.path:
                self._path("linux.namespaces.path", namespace.path)
        for key, value in linux.sysctl.items():
            if not _SYSCTL.fullmatch(key.removeprefix("-")) or "\0" in value:
                raise self._fail("linux.sysctl", f"{key[:64]!r} is not one like net.core.somaxconn")
        for name, device_ in linux.net_devices.items():
            for one in (name.removeprefix("-"), device_.name or "eth0"):
                if not _NETWORK_DEVICE.fullmatch(one) or one in (".", ".."):
                    raise self._fail("linux.net_devices", f"{one[:32]!r} is not the name of a network device")
        if linux.HasField("seccomp_policy"):
            self._seccomp(linux.seccomp_policy)
        for field, kind, values in (
            ("io_priority.class", pb.IOPrioClass, [getattr(linux.io_priority, "class")]),
            ("scheduler.policy", pb.LinuxSchedulerPolicy, [linux.scheduler.policy]),
            ("scheduler.flags", pb.LinuxSchedulerFlag, linux.scheduler.flags),
            ("memory_policy.mode", pb.MpolMode, [linux.memory_policy.mode]),
            ("memory_policy.flags", pb.MpolFlag, linux.memory_policy.flags),
        ):
            if unknown := [value for value in values if value not in kind.values()]:
                raise self._fail(f"linux.{field}", f"{unknown[0]} is none of {', '.join(kind.keys())}")

    def _seccomp(self, policy: pb.LinuxSeccomp) -> None:
        for pattern, found in (
            (_ACTION, [policy.default_action, *(rule.action for rule in policy.syscalls)]),
            (_ARCHITECTURE, policy.architectures),
            (_FLAG, policy.flags),
            (_OPERATOR, [arg.op for rule in policy.syscalls for arg in rule.args]),
        ):
            for value in found:
                if not pattern.fullmatch(value):
                    raise self._fail("linux.seccomp_policy", f"{value[:64]!r} is not one of seccomp's names")
        if any(not rule.names for rule in policy.syscalls):
            raise self._fail("linux.seccomp_policy", "a rule names no system call")
