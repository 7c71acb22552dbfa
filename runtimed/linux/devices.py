"""Device nodes of the host, as config.json has them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runtimed.oci.runtime_spec import Device

# Directories of /dev that are mounts of their own, and the links and terminals that each container has its own of.
_NOT_DEVICES = {"pts", "shm", "mqueue", "fd", "hugepages", "console", "core", "stdin", "stdout", "stderr"}


def device_at(path: Path, container_path: str = "") -> Device | None:
    """Return the device node *path* (a link is followed), in the container at *container_path* or the same path.

    None: it is something else. Raises OSError.
    """
    status = path.stat()
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return None
    return Device(
        path=container_path or str(path),
        type="c" if stat.S_ISCHR(status.st_mode) else "b",
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        file_mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )


def host_devices(directory: Path = Path("/dev")) -> list[Device]:
    """Return the device nodes below *directory*: for a privileged container. Links are left out. Raises OSError."""
    return list(_below(directory))


def _below(directory: Path) -> Iterator[Device]:
    for path in sorted(directory.iterdir()):
        if path.name in _NOT_DEVICES or path.is_symlink() or path.is_mount():
            continue
        if path.is_dir():
            yield from _below(path)
        elif (device := device_at(path)) is not None:
            yield device
