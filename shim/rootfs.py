"""The root file system of a container: mounted, and taken off again."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runtimed.errors import InvalidArgument, os_errors
from runtimed.linux.mount import UMOUNT_NOFOLLOW, umount2
from runtimed.mounts import Mount, devices, mount_all, unmount_all
from shim import cgroup, files
from shim import messages as pb
from shim.options import Options

# In a bundle: the devices of what was busy and had to be detached, for the daemon to look after.
_DETACHED = "detached"


def prepare(options: Options, mounts: Sequence[pb.Mount], bundle: str) -> None:
    """Get *bundle* ready for the runtime: what is to be known afterwards, and the root. Raises RuntimedError."""
    with os_errors(f"bundle {bundle}"):
        cgroup.note_others(bundle)
    options.write(bundle)
    root = Path(bundle, "rootfs")
    mount_all([Mount(m.type, m.source, m.target, tuple(m.options)) for m in mounts], root)
    # runc makes /dev/fd and the like where a link leads, which may be on the host (CVE-2026-41579). No image needs it.
    for name in ("dev", "proc", "sys"):
        if os.path.islink(f"{root}/{name}"):  # noqa: PTH114 - a system call, and no object
            raise InvalidArgument(f"/{name} of the root file system is a symbolic link: no container is made of that")


def is_unmounted(path: str) -> bool:
    """Take what is mounted on *path* off it and return whether all is; one that is busy is left to :func:`unmount`."""
    try:
        while True:
            umount2(path, UMOUNT_NOFOLLOW)
    except OSError as exc:
        return exc.errno == errno.EINVAL


def unmount(bundle: str) -> None:
    """Take every mount off the rootfs of *bundle*. What stays busy is detached, and noted if nothing else shows it."""
    detached = unmount_all(Path(bundle, "rootfs"))
    if gone := sorted(set(detached) - devices()):
        with suppress(OSError):  # say, the disk is full: a container can be deleted all the same
            files.write(f"{bundle}/{_DETACHED}", " ".join(gone).encode())
