"""Mounts of a container: the kernel's file systems, the pod's files, the request's mounts, the image's volumes."""

import os
import posixpath
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri import selinux, volumes
from runtimed.cri.namespaces import NODE, user_mappings
from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest
from runtimed.errors import InvalidArgument, NotFound, os_errors
from runtimed.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from runtimed.oci.container_spec import default_mounts
from runtimed.oci.runtime_spec import Mount

PRIVATE, SLAVE, SHARED = (
    pb.MountPropagation.PROPAGATION_PRIVATE,
    pb.MountPropagation.PROPAGATION_HOST_TO_CONTAINER,
    pb.MountPropagation.PROPAGATION_BIDIRECTIONAL,
)
_PROPAGATION = {PRIVATE: "rprivate", SLAVE: "rslave", SHARED: "rshared"}
_POD_FILES = {"hostname": "/etc/hostname", "hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}
_ESCAPE = re.compile(r"\\([0-7]{3})")


def of_sandbox(request: SandboxSpecRequest) -> tuple[Mount, ...]:
    """Return pause's mounts: it does nothing, so it needs next to none."""
    wanted = {"/proc", "/dev"}
    return tuple(mount for mount in default_mounts(False) if mount.destination in wanted)


def of_container(request: ContainerSpecRequest, mount_label: str = "") -> tuple[Mount, ...]:
    """Return a container's mounts, each after those it lies below. Blocks.

    A mount of the request replaces one of ours at the same place. A missing path of the host is made, as a directory.
    The content of the image's volumes is copied.

    Raises:
        InvalidArgument: a path, propagation or option that cannot be; an image mount whose sub-path is not there.
    """
    given = [_given(request, mount, number, mount_label) for number, mount in enumerate(request.config.mounts)]
    taken = {mount.destination for mount in given}
    given += [mount for mount in _pod_mounts(request) if mount.destination not in taken]
    taken = {mount.destination for mount in given}
    given += _volumes(request, taken)
    taken = {mount.destination for mount in given}
    ours = [
        mount
        for mount in _kernel_mounts(request)
        if mount.destination not in taken and not any(_is_below(mount.destination, path) for path in taken)
    ]
    # Stable: of two at the same depth the order of the request decides.
    return (*ours, *sorted(given, key=lambda mount: len(_parts(mount.destination))))


def rootfs_propagation(mounts: Iterable[pb.Mount]) -> str:
    """Return how the root itself must propagate so that the mounts below can; "" for the runtime's default."""
    asked = {mount.propagation for mount in mounts}
    return "rshared" if SHARED in asked else "rslave" if SLAVE in asked else ""


def destination(path: str) -> str:
    """Return a path in a container, normalised. Raises InvalidArgument: the root itself, or a NUL."""
    clean = "/" + posixpath.normpath(f"/{path}").lstrip("/")
    if "\0" in path or clean == "/":
        raise InvalidArgument(f"nothing can be mounted on {path[:128]!r} in a container")
    return clean


def _kernel_mounts(request: ContainerSpecRequest) -> tuple[Mount, ...]:
    context = request.config.linux.security_context
    mounts = default_mounts(context.privileged)
    of_pod = request.sandbox_config.linux.security_context.namespace_options
    if of_pod.network == NODE and user_mappings(of_pod)[0]:
        # sysfs belongs to the network namespace, which is not this user namespace's: it can only be the host's.
        bound = Mount(
            destination="/sys", type="bind", source="/sys", options=("rbind", "nosuid", "noexec", "nodev", "ro")
        )
        mounts = tuple(bound if mount.destination == "/sys" else mount for mount in mounts)
        mounts = tuple(mount for mount in mounts if mount.destination != "/sys/fs/cgroup")
    return mounts


def _pod_mounts(request: ContainerSpecRequest) -> list[Mount]:
    """Return the files of the pod that are there, and its /dev/shm."""
    access = "ro" if request.config.linux.security_context.readonly_rootfs else "rw"
    options = ("rbind", "rprivate", access)
    found = []
    for name, path in _POD_FILES.items():
        source = request.sandbox_directory / name
        if source.exists():
            found.append(Mount(destination=path, type="bind", source=str(source), options=options))
    of_pod = request.sandbox_config.linux.security_context.namespace_options
    shm = Path("/dev/shm") if of_pod.ipc == NODE else request.sandbox_directory / "shm"
    if shm.exists():
        found.append(Mount(destination="/dev/shm", type="bind", source=str(shm), options=("rbind", "rprivate", "rw")))
    return found


def _given(request: ContainerSpecRequest, mount: pb.Mount, number: int, mount_label: str) -> Mount:
    where = destination(mount.container_path)
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidArgument(f"mount {where}: recursive_read_only needs readonly")
        if mount.propagation != PRIVATE:
            raise InvalidArgument(f"mount {where}: recursive_read_only goes with private propagation only")
        if not request.rules.recursive_read_only:
            raise InvalidArgument(f"mount {where}: the runtime handler knows no recursive read-only mounts")
    if mount.image.image or mount.image_sub_path:
        return _image_mount(request, mount, where)
    is_mapped = _is_mapped(request, mount, where)
    source = host_path(mount.host_path)
    _check_propagation(mount, source, where)
    if mount.selinux_relabel and mount_label:
        selinux.relabel(Path(source), mount_label)
    access = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    options = ("rbind", _PROPAGATION[mount.propagation], access)
    if is_mapped:
        source = str(request.mapped_volumes / str(number))
    return Mount(destination=where, type="bind", source=source, options=options)


def _image_mount(request: ContainerSpecRequest, mount: pb.Mount, where: str) -> Mount:
    if not mount.readonly:
        raise InvalidArgument(f"mount {where}: an image is mounted read-only; set readonly")
    if mount.host_path:
        raise InvalidArgument(f"mount {where}: an image and a host path at once")
    root = request.image_mounts.get(mount.container_path)
    if root is None:
        raise NotFound(f"mount {where}: image {mount.image.image!r} is not mounted")
    source = below_image(root, mount.image_sub_path, where)
    access = "rro" if mount.recursive_read_only else "ro"
    return Mount(destination=where, type="bind", source=source, options=("rbind", "rprivate", access))


def below_image(root: Path, sub_path: str, where: str) -> str:
    """Return the path *sub_path* of the image mounted at *root*; links lead where they would with *root* as the root.

    Raises:
        InvalidArgument: not a relative path without ``..``, or not there.
    """
    if not sub_path:
        return str(root)
    if sub_path.startswith("/") or ".." in sub_path.split("/") or "\0" in sub_path:
        raise InvalidArgument(f"mount {where}: image_sub_path {sub_path[:128]!r} must be relative and without '..'")
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        fd = openat2(os.fsencode(sub_path), os.O_PATH, dir_fd=root_fd, resolve=resolve)
    except OSError as exc:
        message = f"mount {where}: image_sub_path {sub_path[:128]!r} of the image: {exc.strerror}"
        raise InvalidArgument(message) from None
    finally:
        os.close(root_fd)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode) and not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"mount {where}: image_sub_path {sub_path[:128]!r} is neither a directory nor a file")
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)


def host_path(path: str) -> str:
    """Return *path* of the host without links; what is missing is made as a directory. Blocks.

    Raises:
        InvalidArgument: relative.
    """
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"host path {path[:128]!r} is not absolute")
    with os_errors(f"host path {path[:256]}"):
        found = Path(path)
        if not found.exists():
            if found.is_symlink():
                raise NotFound(f"host path {path[:256]} is a link to nothing")
            found.mkdir(mode=0o755, parents=True, exist_ok=True)
        return str(found.resolve(strict=True))


def _is_mapped(request: ContainerSpecRequest, mount: pb.Mount, where: str) -> bool:
    """Say whether the volume's owners are to be shown as others. Raises InvalidArgument."""
    if bool(mount.uidMappings) != bool(mount.gidMappings):
        raise InvalidArgument(f"mount {where}: uid and gid mappings go together")
    if mount.uidMappings and not request.rules.idmapped_mounts:
        raise InvalidArgument(f"mount {where}: the runtime handler's shim knows no ID-mapped mounts")
    return bool(mount.uidMappings)


def _check_propagation(mount: pb.Mount, source: str, where: str) -> None:
    """Refuse what the kernel would quietly not do: what happens below a private mount reaches nobody."""
    if mount.propagation == PRIVATE:
        return
    shared, slave = _propagation_of(source)
    if mount.propagation == SHARED and not shared:
        raise InvalidArgument(f"mount {where}: bidirectional propagation needs {source} on a shared mount")
    if mount.propagation == SLAVE and not (shared or slave):
        raise InvalidArgument(f"mount {where}: propagation from the host needs {source} on a shared or slave mount")


def _propagation_of(path: str) -> tuple[bool, bool]:
    """Return whether the mount that *path* lies on is shared, and whether it is a slave (proc_pid_mountinfo(5))."""
    best, fields = "", [""]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), words[4])
        if (path == point or _is_below(path, point)) and len(point) >= len(best):  # the last one is on top
            best, fields = point, words[6 : words.index("-")]
    kinds = {field.partition(":")[0] for field in fields}
    return "shared" in kinds, "master" in kinds


def _volumes(request: ContainerSpecRequest, taken: set[str]) -> list[Mount]:
    found: list[Mount] = []
    for number, path in enumerate(sorted(request.image.volumes or ())):
        where = destination(path)
        if where in taken or any(mount.destination == where for mount in found):
            continue
        source = volumes.make(
            request.rootfs.path(), where, request.directory / "volumes" / str(number), request.sandbox_config
        )
        found.append(Mount(destination=where, type="bind", source=str(source), options=("rbind", "rprivate", "rw")))
    return found


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
