"""What a container may do: capabilities, kernel paths, AppArmor, SELinux. For system calls see seccomp.py."""

from collections.abc import Iterable

from runtimed.api import cri_pb2 as pb
from runtimed.cri import apparmor, selinux
from runtimed.errors import InvalidArgument, PermissionDenied
from runtimed.linux.capabilities import permitted
from runtimed.oci.container_spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES, MASKED_PATHS, READONLY_PATHS
from runtimed.oci.runtime_spec import Capabilities


def check_privileged(config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig) -> bool:
    """Return whether the container is privileged. Raises PermissionDenied: in a pod that is not."""
    privileged = config.linux.security_context.privileged
    if privileged and not sandbox_config.linux.security_context.privileged:
        raise PermissionDenied("no privileged container in a pod that is not privileged itself")
    return privileged


def capabilities(context: pb.LinuxContainerSecurityContext) -> Capabilities:
    """Return the capabilities: the default ones and what is added, less what is dropped; ALL of either goes first.

    Of those that this process does not have, none can be given. A privileged container has all the others.

    Raises:
        InvalidArgument: no such capability.
    """
    possible = own_capabilities()
    if context.privileged:
        held = set(possible)
    else:
        added, dropped = _names(context.capabilities.add_capabilities), _names(context.capabilities.drop_capabilities)
        held = set(DEFAULT_CAPABILITIES)
        if "CAP_ALL" in added:
            held = set(ALL_CAPABILITIES)
        if "CAP_ALL" in dropped:
            held = set()
        held = (held | added) - dropped
    ambient = _names(context.capabilities.add_ambient_capabilities)
    if "CAP_ALL" in ambient:
        ambient = held
    held |= ambient
    ordered = tuple(name for name in possible if name in held)
    raised = tuple(name for name in possible if name in ambient)
    return Capabilities(bounding=ordered, effective=ordered, permitted=ordered, inheritable=raised, ambient=raised)


def own_capabilities() -> tuple[str, ...]:
    """Return the capabilities of this process, in the kernel's order."""
    own = permitted()
    return tuple(name for bit, name in enumerate(ALL_CAPABILITIES) if bit in own)


def hidden_paths(config: pb.ContainerConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths that are masked and those that are read-only.

    They are the request's, as it gives them: none is what a kubelet sends for ``procMount: Unmasked``. Who says nothing
    at all about security gets the usual ones.

    Raises:
        InvalidArgument: a relative path.
    """
    context = config.linux.security_context
    if context.privileged:
        return (), ()
    if not config.HasField("linux") or not config.linux.HasField("security_context"):
        return MASKED_PATHS, READONLY_PATHS
    for path in (*context.masked_paths, *context.readonly_paths):
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise InvalidArgument(f"masked or read-only path {path[:128]!r} is not absolute and without '..'")
    return tuple(context.masked_paths), tuple(context.readonly_paths)


def apparmor_profile(context: pb.LinuxContainerSecurityContext | pb.LinuxSandboxSecurityContext) -> str:
    """Return the profile's name, loaded; "" where the kernel has no AppArmor, or who asks for nothing gets nothing.

    That is a privileged container, and any on a machine that has no program to load the default profile.

    Raises:
        InvalidArgument, FailedPrecondition: a profile that is not loaded, or AppArmor that is not there.
    """
    profile = _profile(context)
    if profile is None:
        has_none = context.privileged or not apparmor.is_enabled() or not apparmor.can_load()
        return "" if has_none else apparmor.default()
    if profile.profile_type == pb.SecurityProfile.ProfileType.Unconfined:
        return "unconfined" if apparmor.is_enabled() else ""
    if profile.profile_type == pb.SecurityProfile.ProfileType.Localhost:
        return apparmor.loaded(profile.localhost_ref.removeprefix("localhost/"))
    return "" if context.privileged or not apparmor.is_enabled() else apparmor.default()


def selinux_labels(
    options: pb.SELinuxOption, of_pod: pb.SELinuxOption, sandbox_id: str, *, privileged: bool
) -> tuple[str, str]:
    """Return the labels of the process and of its files; "" where the kernel has no SELinux."""
    if not selinux.is_enabled():
        return "", ""
    asked = options if options.ByteSize() else of_pod
    return selinux.labels(asked.user, asked.role, asked.type, asked.level, sandbox_id, privileged=privileged)


def _profile(
    context: pb.LinuxContainerSecurityContext | pb.LinuxSandboxSecurityContext,
) -> pb.SecurityProfile | None:
    if context.HasField("apparmor"):
        return context.apparmor
    old = context.apparmor_profile if isinstance(context, pb.LinuxContainerSecurityContext) else ""
    kinds = pb.SecurityProfile.ProfileType
    match old:
        case "":
            return None
        case "runtime/default":
            return pb.SecurityProfile(profile_type=kinds.RuntimeDefault)
        case "unconfined":
            return pb.SecurityProfile(profile_type=kinds.Unconfined)
    if old.startswith("localhost/"):
        return pb.SecurityProfile(profile_type=kinds.Localhost, localhost_ref=old)
    raise InvalidArgument(f"AppArmor profile {old[:128]!r} is not runtime/default, unconfined or localhost/NAME")


def _names(given: Iterable[str]) -> set[str]:
    names = set()
    for name in given:
        full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        if full not in ALL_CAPABILITIES and full != "CAP_ALL":
            raise InvalidArgument(f"there is no capability {name[:64]!r}")
        names.add(full)
    return names
