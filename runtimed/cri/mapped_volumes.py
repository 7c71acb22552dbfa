"""Volumes whose owners a pod with a user namespace sees as its own (CRI api.proto, Mount.uidMappings).

    <state>/cri/mapped/<container>/<number of the mount>     while the container is made

The kernel maps IDs for a mount, and for what is bound from it: so the runtime is given a mount that does, and needs to
know nothing of it. As soon as the container has its own it goes, for a volume must not be busy when its pod has ended.
What is mounted below a volume keeps its owners.
"""

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.core import Core
from runtimed.cri.mounts import host_path
from runtimed.cri.state import Container
from runtimed.errors import FailedPrecondition, InvalidArgument, os_errors
from runtimed.linux.idmap import Range, text
from runtimed.mounts import Mount, unmount_all
from runtimed.threads import blocking


def directory(core: Core, id: str) -> Path:
    """Return where the volumes of a container are mounted."""
    return core.directory / "mapped" / id


@asynccontextmanager
async def mapped_volumes(core: Core, container: Container) -> AsyncIterator[None]:
    """Hold the volumes that a container wants mapped in its :func:`directory`.

    Raises:
        FailedPrecondition: the file system of one has no ID-mapped mounts.
    """
    wanted = [(str(number), mount) for number, mount in enumerate(container.config.mounts) if mount.uidMappings]
    if not wanted:
        yield
        return
    place = directory(core, container.id)
    try:
        for name, mount in wanted:
            await blocking(_mount, mount, place / name)
        yield
    finally:
        await blocking(remove, place)


def remove(place: Path) -> None:
    """Take off and remove what is mounted below *place*; fine if there is nothing. Blocks."""
    with os_errors(f"volumes {place}"):
        for path in [*place.iterdir()] if place.exists() else []:
            unmount_all(path)
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()  # which says EBUSY of a mount point
        if place.exists():
            place.rmdir()


def _mount(mount: pb.Mount, place: Path) -> None:
    source = Path(host_path(mount.host_path))
    with os_errors(f"volume {place}"):
        place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        place.mkdir() if source.is_dir() else place.touch()
    maps = (f"uidmap={_map(mount.uidMappings)}", f"gidmap={_map(mount.gidMappings)}")
    try:
        Mount("bind", str(source), options=("rbind", *maps)).attach(place)
    except InvalidArgument as exc:
        if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EINVAL:
            raise FailedPrecondition(
                f"mount {mount.container_path}: the file system of {source} has no ID-mapped mounts on Linux"
                f" {os.uname().release}; a pod with a user namespace cannot have it as a volume"
            ) from exc
        raise


def _map(mappings: Sequence[pb.IDMapping]) -> str:
    return text([Range(one.container_id, one.host_id, one.length) for one in mappings])
