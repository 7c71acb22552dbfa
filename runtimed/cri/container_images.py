"""Images that containers have mounted (CRI api.proto, Mount.image).

    <state>/cri/containers/<id>/<number>     a view of an image, for as long as the container is there

The snapshots are named after the container, and held as its own one is.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.core import Core
from runtimed.cri.state import Container
from runtimed.errors import os_errors
from runtimed.mounts import Mount, mount_all, unmount_all
from runtimed.threads import blocking


async def mount_images(core: Core, container: Container) -> Mapping[str, Path]:
    """Mount the images that a container asks for; return where, by their paths in the container.

    Raises:
        NotFound: an image is not here.
    """
    found: dict[str, Path] = {}
    for number, mount in enumerate(_wanted(container.config)):
        image = await core.images.get(mount.image.image)
        container.record.image_mounts[mount.container_path] = image.id
        view = await core.prepare(container.sandbox, _key(container.id, number), image, view=True)
        place = _directory(core, container.id) / str(number)
        await blocking(_mount, view, place)
        found[mount.container_path] = place
    return found


async def unmount_images(core: Core, container: Container) -> None:
    """Take them off and remove the snapshots; fine if there are none."""
    wanted = _wanted(container.config)
    if not wanted:
        return
    await blocking(unmount, _directory(core, container.id))
    for number in range(len(wanted)):
        await core.remove_snapshot(container.sandbox.snapshotter, _key(container.id, number), container.sandbox.id)


def _wanted(config: pb.ContainerConfig) -> list[pb.Mount]:
    return [mount for mount in config.mounts if mount.image.image]


def _key(id: str, number: int) -> str:
    return f"{id}/image/{number}"


def _directory(core: Core, id: str) -> Path:
    return core.directory / "containers" / id


def _mount(view: Sequence[Mount], place: Path) -> None:
    with os_errors(f"image mount {place}"):
        place.mkdir(mode=0o755, parents=True)
    mount_all(view, place)


def unmount(directory: Path) -> None:
    """Take all images off a container's directory, and remove it if it is there. Blocks."""
    # Only empty directories are removed: never what is below a mount.
    with os_errors(f"image mounts {directory}"):
        for place in [*directory.iterdir()] if directory.exists() else []:
            unmount_all(place)
            place.rmdir()
        if directory.exists():
            os.rmdir(directory)  # noqa: PTH106
