"""What a pod's configuration may be."""

import re
from collections.abc import Mapping

from runtimed.api import cri_pb2 as pb
from runtimed.cri import sandbox_files
from runtimed.errors import InvalidArgument, Unimplemented

_SYSCTL = re.compile(r"[a-zA-Z0-9_-]+(?:[./][a-zA-Z0-9_-]+)+")
_IPC = ("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")


def check(config: pb.PodSandboxConfig) -> None:
    """Refuse a configuration that cannot be. Raises InvalidArgument."""
    metadata = config.metadata
    if not metadata.name or not metadata.namespace:
        raise InvalidArgument("pod: its metadata must have a name and a namespace")
    sandbox_files.check(config)
    options = config.linux.security_context.namespace_options
    for what, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (pb.POD, pb.NODE):
            raise InvalidArgument(f"pod: namespace mode {pb.NamespaceMode.Name(mode)} for {what}: must be POD or NODE")
    if options.pid == pb.TARGET:
        raise InvalidArgument("pod: namespace mode TARGET for pid is a container's, not a pod's")
    _check_user_namespace(options)
    _check_sysctls(config.linux.sysctls, options)


def _check_user_namespace(options: pb.NamespaceOption) -> None:
    users = options.userns_options
    if users.mode == pb.NODE or not options.HasField("userns_options"):
        if users.uids or users.gids:
            raise InvalidArgument("pod: a user namespace's mappings, but the mode is NODE")
        return
    if users.mode != pb.POD:
        raise InvalidArgument(f"pod: user namespace mode {pb.NamespaceMode.Name(users.mode)}: must be POD or NODE")
    for what, mappings in (("uid", users.uids), ("gid", users.gids)):
        if len(mappings) != 1:
            raise InvalidArgument(f"pod: a user namespace takes one {what} mapping, not {len(mappings)}")
        if mappings[0].container_id != 0 or mappings[0].length == 0:
            raise InvalidArgument(f"pod: the user namespace's {what} mapping must begin at 0 and not be empty")
    raise Unimplemented("pod: user namespaces are not implemented yet")


def _check_sysctls(sysctls: Mapping[str, str], options: pb.NamespaceOption) -> None:
    """Let only what belongs to namespaces of the pod's own be set; the rest is the machine's."""
    for name, value in sysctls.items():
        if not _SYSCTL.fullmatch(name[:256]) or any(character in value for character in "\0\n"):
            raise InvalidArgument(f"sysctl {name[:80]!r}: not a name and value of a sysctl")
        dotted = name.replace("/", ".")
        if dotted.startswith("net."):
            is_own = options.network != pb.NODE
        elif dotted.startswith(_IPC):
            is_own = options.ipc != pb.NODE
        else:
            is_own = False
        if not is_own:
            raise InvalidArgument(f"sysctl {name!r} is not in a namespace of the pod's own; set it on the machine")
