"""Where a container's cgroup is, in the form that the runtime's cgroup driver takes."""

from runtimed.errors import InvalidArgument


def cgroups_path(parent: str, id: str, *, systemd: bool) -> str:
    """Return ``linux.cgroupsPath`` of container or pod *id* below *parent*, a kubelet's ``cgroup_parent``.

    With systemd that is ``<slice>:cri-containerd:<id>``; the prefix is what tools look for that read cgroups.

    Raises:
        InvalidArgument: *parent* is of the other driver, or not a path.
    """
    parts = [part for part in parent.split("/") if part]
    if "\0" in parent or ":" in parent or any(part in {".", ".."} for part in parts):
        raise InvalidArgument(f"cgroup parent {parent[:128]!r} is not a path")
    is_slice = bool(parts) and parts[-1].endswith(".slice")
    if systemd:
        if parts and not is_slice:
            raise InvalidArgument(
                f"cgroup parent {parent[:128]!r} is not a slice, and the runtime handler uses systemd; "
                "the kubelet's cgroupDriver and the runtime's systemd_cgroup must agree"
            )
        return f"{parts[-1] if parts else ''}:cri-containerd:{id}"
    if is_slice:
        raise InvalidArgument(
            f"cgroup parent {parent[:128]!r} is a slice of systemd, and the runtime handler uses cgroupfs; "
            "the kubelet's cgroupDriver and the runtime's systemd_cgroup must agree"
        )
    return "/" + "/".join([*(parts or ["k8s.io"]), id])
