"""What all plugins together want of a container that is being made: one after the other, none against another."""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from runtimed.api import nri_pb2 as pb
from runtimed.nri import checks, resources
from runtimed.nri.hooks import HOOKS
from runtimed.nri.owners import Owners
from runtimed.nri.updates import Updates

_MARK = "-"  # before a key: it is taken away
_SCALARS = (
    (pb.OomScoreAdj, "oom_score_adj"),
    (pb.IoPriority, "io_priority"),
    (pb.SeccompPolicy, "seccomp_policy"),
    (pb.LinuxSched, "scheduler"),
    (pb.MemoryPolicy, "memory_policy"),
)
_RDT = ((pb.RdtClosID, "clos_id"), (pb.RdtSchemata, "schemata"), (pb.RdtEnableMonitoring, "enable_monitoring"))


class Adjusting:
    """One container; :meth:`add` what each plugin answers, in their order.

    ``container`` is what the next plugin is to see, ``result`` the sum of all wishes, ``updates`` those about others.
    """

    def __init__(self, container: pb.Container) -> None:
        self._before = container
        self._id = container.id
        self._entries: dict[int, dict[str, Any]] = {}  # by field and key; None: taken away
        self._rest = pb.ContainerAdjustment()  # what has no keys
        self.owners = Owners()
        self.updates = Updates(self.owners, container.id)
        self.container = pb.Container()
        self.container.CopyFrom(container)

    def add(self, plugin: str, answer: pb.CreateContainerResponse) -> None:
        """Put a plugin's wishes to those before.

        Raises:
            InvalidArgument: one that cannot be.
            FailedPrecondition: another plugin has set the same; or the container itself is to be updated.
        """
        if answer.HasField("adjust"):
            checks.check(answer.adjust, plugin)
            self._add(plugin, answer.adjust)
            self.container = self._seen()
        self.updates.add(plugin, answer.update, answer.evict)

    @property
    def result(self) -> pb.ContainerAdjustment:
        """What is to be changed in all; a key that begins with ``-`` is to be taken away."""
        total = pb.ContainerAdjustment()
        total.CopyFrom(self._rest)
        for field, (_, place) in _KEYED.items():
            found = place(total)
            for key, item in self._entries.get(field, {}).items():
                _put(found, _MARK + key if item is None else key, item, field)
        return total

    def _add(self, plugin: str, adjust: pb.ContainerAdjustment) -> None:
        for field, (key_of, place) in _KEYED.items():
            self._add_entries(plugin, field, _items(place(adjust), key_of))
        if adjust.args:
            args = list(adjust.args)
            if not args[0]:
                args = args[1:]
                self.owners.release(self._id, pb.Args)
            self.owners.claim(self._id, pb.Args, plugin)
            self._rest.args[:] = args
        for name in HOOKS:
            if getattr(adjust.hooks, name):
                self.owners.claim(self._id, pb.OciHooks, plugin)
                getattr(self._rest.hooks, name).extend(getattr(adjust.hooks, name))
        linux, total = adjust.linux, self._rest.linux
        if linux.HasField("resources"):
            own = pb.LinuxResources()
            own.CopyFrom(linux.resources)
            resources.claim(own, self.owners, self._id, plugin)
            resources.merge(total.resources, own)
        if linux.cgroups_path:
            self.owners.claim(self._id, pb.CgroupsPath, plugin)
            total.cgroups_path = linux.cgroups_path
        for field, name in _SCALARS:
            if linux.HasField(name):
                self.owners.claim(self._id, field, plugin)
                getattr(total, name).CopyFrom(getattr(linux, name))
        if linux.HasField("rdt"):
            self._add_rdt(plugin, linux.rdt)

    def _add_entries(self, plugin: str, field: int, items: Iterable[tuple[str, Any]]) -> None:
        given = list(items)
        entries = self._entries.setdefault(field, {})
        for key, _ in given:
            if key.startswith(_MARK):
                self.owners.release(self._id, field, key[1:])
                entries[key[1:]] = None
        for key, item in given:
            if not key.startswith(_MARK):
                self.owners.claim(self._id, field, plugin, key)
                entries.pop(key, None)  # it comes last then
                entries[key] = item

    def _add_rdt(self, plugin: str, rdt: pb.LinuxRdt) -> None:
        total = self._rest.linux.rdt
        if rdt.remove:
            for field, _ in _RDT:
                self.owners.release(self._id, field)
            total.Clear()
            total.remove = True
        for field, name in _RDT:
            if rdt.HasField(name):
                self.owners.claim(self._id, field, plugin)
                getattr(total, name).CopyFrom(getattr(rdt, name))

    def _seen(self) -> pb.Container:
        """Return the container with all wishes done, as far as its message has them."""
        seen = pb.Container()
        seen.CopyFrom(self._before)
        for field, (named, place) in _KEYED.items():
            entries = self._entries.get(field, {})
            found = place(seen)
            if isinstance(found, MutableMapping):
                for key, item in entries.items():
                    _drop(found, key)
                    if item is not None:
                        _put(found, key, item, field)
                continue
            key_of = _env_name if field == pb.Env else named
            kept = [item for item in found if key_of(item) not in entries]
            added = [item for item in entries.values() if item is not None]
            del found[:]
            found.extend([*kept, *map(_as_env, added)] if field == pb.Env else [*kept, *added])
        if self._rest.args:
            seen.args[:] = self._rest.args
        for name in HOOKS:
            getattr(seen.hooks, name).extend(getattr(self._rest.hooks, name))
        linux = self._rest.linux
        if linux.HasField("resources"):
            resources.merge(seen.linux.resources, linux.resources)
        seen.linux.cgroups_path = linux.cgroups_path or seen.linux.cgroups_path
        for _, name in _SCALARS:
            if name in seen.linux.DESCRIPTOR.fields_by_name and linux.HasField(name):
                getattr(seen.linux, name).CopyFrom(getattr(linux, name))
        if linux.HasField("rdt"):
            seen.linux.rdt.MergeFrom(linux.rdt)
        return seen


def _named(attribute: str) -> Callable[[Any], str]:
    return lambda item: str(getattr(item, attribute))


# What has keys: how an item says its own, and where the items are in an adjustment, and in a container.
_KEYED: dict[int, tuple[Callable[[Any], str], Callable[[Any], Any]]] = {
    pb.Annotations: (_named("key"), lambda one: one.annotations),
    pb.Mounts: (_named("destination"), lambda one: one.mounts),
    pb.Env: (_named("key"), lambda one: one.env),
    pb.Rlimits: (_named("type"), lambda one: one.rlimits),
    pb.CdiDevices: (_named("name"), lambda one: one.CDI_devices),
    pb.Devices: (_named("path"), lambda one: one.linux.devices),
    pb.Namespace: (_named("type"), lambda one: one.linux.namespaces),
    pb.Sysctl: (_named("key"), lambda one: one.linux.sysctl),
    pb.LinuxNetDevices: (_named("key"), lambda one: one.linux.net_devices),
}
_REMOVALS: dict[int, Callable[[str], Any]] = {
    pb.Mounts: lambda key: pb.Mount(destination=key),
    pb.Env: lambda key: pb.KeyValue(key=key),
    pb.Rlimits: lambda key: pb.POSIXRlimit(type=key),
    pb.CdiDevices: lambda key: pb.CDIDevice(name=key),
    pb.Devices: lambda key: pb.LinuxDevice(path=key),
    pb.Namespace: lambda key: pb.LinuxNamespace(type=key),
}


def _items(found: Any, key_of: Callable[[Any], str]) -> Iterable[tuple[str, Any]]:
    """Return keys and items of a map or list of a message."""
    return found.items() if isinstance(found, MutableMapping) else ((key_of(item), item) for item in found)


def _put(found: Any, key: str, item: Any, field: int) -> None:
    """Add to a map or list; *item* is None for a *key* that is to be taken away."""
    if not isinstance(found, MutableMapping):
        found.append(_REMOVALS[field](key) if item is None else item)
    elif field == pb.LinuxNetDevices:
        found[key].CopyFrom(item or pb.LinuxNetDevice())
    else:
        found[key] = item or ""


def _drop(found: Any, key: str) -> None:
    if key in found:
        del found[key]


def _env_name(entry: str) -> str:
    return entry.partition("=")[0]


def _as_env(item: pb.KeyValue) -> str:
    return f"{item.key}={item.value}"
