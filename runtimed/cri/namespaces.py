"""Namespaces of pods and their containers, and the ID mappings of their user namespaces."""

from collections.abc import Sequence
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest
from runtimed.errors import InvalidArgument
from runtimed.labels import SNAPSHOT_GID_MAPPING, SNAPSHOT_UID_MAPPING
from runtimed.linux import idmap
from runtimed.linux.idmap import Range
from runtimed.oci.runtime_spec import IdMapping, Namespace

POD, CONTAINER, NODE, TARGET = (
    pb.NamespaceMode.POD,
    pb.NamespaceMode.CONTAINER,
    pb.NamespaceMode.NODE,
    pb.NamespaceMode.TARGET,
)


def check_sandbox(options: pb.NamespaceOption) -> None:
    """Refuse what no pod can be. Raises InvalidArgument."""
    for name in ("network", "ipc"):
        if getattr(options, name) not in (POD, NODE):
            raise InvalidArgument(f"a pod's {name} namespace mode must be POD or NODE")
    if options.pid == TARGET:
        raise InvalidArgument("a pod's pid namespace mode cannot be TARGET")
    if user_mappings(options)[0]:
        for name in ("pid", "ipc"):  # whose file systems, proc and mqueue, its root could not mount
            if getattr(options, name) == NODE:
                raise InvalidArgument(f"a pod with a user namespace cannot use the host's {name} namespace")


def of_sandbox(request: SandboxSpecRequest) -> tuple[Namespace, ...]:
    """Return pause's namespaces: each is its own, unless the pod is to use the host's. Raises InvalidArgument."""
    options = request.config.linux.security_context.namespace_options
    check_sandbox(options)
    namespaces = [Namespace(type="mount")]
    if options.network != NODE:
        namespaces += [Namespace(type="network", path=request.netns), Namespace(type="uts")]
    if options.ipc != NODE:
        namespaces.append(Namespace(type="ipc"))
    if options.pid != NODE:
        namespaces.append(Namespace(type="pid"))
    if user_mappings(options)[0]:
        namespaces.append(Namespace(type="user", path=request.userns))
    return (*namespaces, *_cgroup(request.config.linux.security_context.privileged))


def of_container(request: ContainerSpecRequest) -> tuple[Namespace, ...]:
    """Return a container's namespaces: pause's, but for its own mount and, in mode CONTAINER, pid namespace.

    Raises:
        InvalidArgument: another mode or other ID mappings than the pod's, or TARGET without a target.
    """
    context = request.config.linux.security_context
    options = context.namespace_options
    of_pod = request.sandbox_config.linux.security_context.namespace_options
    if options.HasField("userns_options") and user_mappings(options) != user_mappings(of_pod):
        raise InvalidArgument("the container's user namespace is not the pod's: userns_options must be the same")
    pause = f"/proc/{request.sandbox_pid}/ns"
    namespaces = [Namespace(type="mount")]
    if of_pod.network != NODE:
        path = request.netns or f"{pause}/net"
        namespaces += [Namespace(type="network", path=path), Namespace(type="uts", path=f"{pause}/uts")]
    if of_pod.ipc != NODE:
        namespaces.append(Namespace(type="ipc", path=f"{pause}/ipc"))
    match options.pid:
        case pb.NamespaceMode.POD:
            if of_pod.pid == NODE:
                raise InvalidArgument("pid namespace mode POD in a pod that uses the host's; ask for NODE")
            namespaces.append(Namespace(type="pid", path=f"{pause}/pid"))
        case pb.NamespaceMode.TARGET:
            if request.target_pid is None:
                raise InvalidArgument("pid namespace mode TARGET needs target_id, a running container of the pod")
            namespaces.append(Namespace(type="pid", path=f"/proc/{request.target_pid}/ns/pid"))
        case pb.NamespaceMode.NODE:
            if of_pod.pid != NODE:
                raise InvalidArgument("pid namespace mode NODE in a pod that does not use the host's")
        case _:
            namespaces.append(Namespace(type="pid"))
    if user_mappings(of_pod)[0]:
        namespaces.append(Namespace(type="user", path=f"{pause}/user"))
    return (*namespaces, *_cgroup(context.privileged))


def user_mappings(options: pb.NamespaceOption) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Return a pod's mappings of uids and gids; none when it shares the host's user namespace.

    Raises:
        InvalidArgument: a mode other than POD and NODE, or what is not one mapping, the same for both, from ID 0 on.
    """
    if not options.HasField("userns_options"):
        return (), ()
    asked = options.userns_options
    if asked.mode == NODE:
        if asked.uids or asked.gids:
            raise InvalidArgument("user namespace mode NODE takes no ID mappings")
        return (), ()
    if asked.mode != POD:
        raise InvalidArgument(f"user namespace mode {pb.NamespaceMode.Name(asked.mode)} is not supported; use POD")
    uids, gids = _mapping(asked.uids, "uid"), _mapping(asked.gids, "gid")
    if uids != gids:
        raise InvalidArgument("a pod's user namespace must map uids and gids alike")
    return (uids,), (gids,)


def id_ranges(options: pb.NamespaceOption) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Return :func:`user_mappings` as what a user namespace is made with."""
    uids, gids = ([Range(one.container_id, one.host_id, one.size) for one in ids] for ids in user_mappings(options))
    return tuple(uids), tuple(gids)


def root_of(options: pb.NamespaceOption) -> int:
    """Return who root in a pod is outside, user and group."""
    uids, _ = user_mappings(options)
    return uids[0].host_id if uids else 0


def snapshot_labels(options: pb.NamespaceOption) -> dict[str, str]:
    """Return the labels by which a snapshot shows its owners as those of a pod."""
    uids, gids = id_ranges(options)
    return {SNAPSHOT_UID_MAPPING: idmap.text(uids), SNAPSHOT_GID_MAPPING: idmap.text(gids)} if uids else {}


def _mapping(mappings: Sequence[pb.IDMapping], what: str) -> IdMapping:
    if len(mappings) != 1:
        raise InvalidArgument(f"a pod's user namespace needs one {what} mapping, not {len(mappings)}")
    only = mappings[0]
    if only.container_id != 0:
        raise InvalidArgument(f"the {what} mapping of a pod's user namespace must begin at container ID 0")
    if not only.length or only.host_id + only.length > 2**32 - 1:
        raise InvalidArgument(f"{what} mapping from {only.host_id} of length {only.length} is not a range of IDs")
    return IdMapping(container_id=0, host_id=only.host_id, size=only.length)


def has_cgroup_v2() -> bool:
    """Say whether /sys/fs/cgroup is the unified hierarchy (cgroups(7))."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _cgroup(privileged: bool) -> tuple[Namespace, ...]:
    """On version 1 a container sees only its own directories anyway."""
    return (Namespace(type="cgroup"),) if has_cgroup_v2() and not privileged else ()
