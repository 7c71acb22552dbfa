"""Which cgroup a pod or container gets (OCI runtime-spec config-linux.md, "Cgroups Path")."""

from runtimed.cri.handlers import Handler
from runtimed.errors import InvalidArgument

DEFAULT_PARENT = "/k8s.io"
_DEFAULT_SLICE = "system.slice"
_PREFIX = "cri-containerd"  # of the scope's name; what tools for containerd look for


def path_of(handler: Handler, parent: str, id: str) -> str:
    """Return the cgroups path of *id* below the pod's *parent*, in the form that the handler's driver takes.

    Raises:
        InvalidArgument: a parent that leaves the hierarchy, or is not one of the driver's.
    """
    if any(part == ".." for part in parent.split("/")) or not parent.isprintable():
        raise InvalidArgument(f"cgroup parent {parent[:80]!r} is not a path within the hierarchy")
    if not handler.runtime.systemd_cgroup:
        return f"{(parent or DEFAULT_PARENT).rstrip('/')}/{id}"
    slice = (parent or _DEFAULT_SLICE).rstrip("/").rpartition("/")[2]
    if not slice.endswith(".slice") or ":" in slice:
        raise InvalidArgument(f"cgroup parent {parent[:80]!r} is not a slice, and the cgroup driver is systemd")
    return f"{slice}:{_PREFIX}:{id}"
