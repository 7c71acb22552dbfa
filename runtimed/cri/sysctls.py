"""Kernel parameters of a pod: only those that belong to a namespace which the pod has of its own.

runc writes them by name below /proc/sys, so a name is a strict thing (CVE-2022-0811), and a parameter of a namespace
that the pod shares with the host would be the host's (CVE-2022-0532).
"""

import re

from runtimed.api import cri_pb2 as pb
from runtimed.cri.namespaces import NODE, user_mappings
from runtimed.cri.request import SandboxSpecRequest
from runtimed.errors import InvalidArgument

_NAME = re.compile(r"[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?(?:[./][a-zA-Z0-9_](?:[-_a-zA-Z0-9]*[a-zA-Z0-9_])?)+")
_IPC = {"kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
_IPC_PREFIXES = ("kernel.msg", "fs.mqueue.")
_MAX_VALUE = 1024  # characters


def of_sandbox(request: SandboxSpecRequest) -> dict[str, str]:
    """Return the parameters of a pod, with those that let it use low ports and ping unless it says otherwise.

    Raises:
        InvalidArgument: a name or value that cannot be, or that would change the host.
    """
    options = request.config.linux.security_context.namespace_options
    found = {}
    for name, value in request.config.linux.sysctls.items():
        found[_checked(name, value, options)] = value
    if options.network != NODE:
        if request.rules.unprivileged_ports:
            found.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        if request.rules.unprivileged_icmp and not user_mappings(options)[0]:  # there is no such high group
            found.setdefault("net.ipv4.ping_group_range", "0 2147483647")
    return found


def _checked(name: str, value: str, options: pb.NamespaceOption) -> str:
    """Return the name with dots, as runc compares it."""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise InvalidArgument(f"sysctl {name[:80]!r} is not a name")
    if len(value) > _MAX_VALUE or not value.isascii() or not value.replace("\t", " ").isprintable():
        raise InvalidArgument(f"sysctl {name}: {value[:80]!r} is not a value")
    # As sysctl(8): the first separator decides, so that an interface's name may have dots.
    if (separator := next(c for c in name if c in "./")) == "/":
        if "." in name:
            raise InvalidArgument(f"sysctl {name[:80]!r}: a name with dots in its parts is not supported")
        name = name.replace(separator, ".")
    elif "/" in name:
        raise InvalidArgument(f"sysctl {name[:80]!r} mixes '.' and '/'")
    if name.startswith("net."):
        if options.network == NODE:
            raise InvalidArgument(f"sysctl {name} would change the host: the pod uses the host's network")
    elif name in _IPC or name.startswith(_IPC_PREFIXES):
        if options.ipc == NODE:
            raise InvalidArgument(f"sysctl {name} would change the host: the pod uses the host's IPC namespace")
    else:
        raise InvalidArgument(f"sysctl {name} does not belong to a namespace of the pod; set it on the node")
    return name
