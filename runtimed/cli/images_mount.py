"""``rctl images mount`` and ``rctl images unmount``.

A mounted image is a snapshot that a lease holds; both are named after the directory, so that unmounting, perhaps after
a reboot, needs nothing but that. The mount itself is made here and not by the daemon: it is for who asks for it.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import click

from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.output import formatted, print_json, print_lines
from runtimed.client.create import defaults, remove_snapshot
from runtimed.client.documents import documents, find_image
from runtimed.client.records import Resource
from runtimed.client.unpack import ensure_unpacked
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, os_errors
from runtimed.mounts import Mount, mount_all, mounts_below, unmount_all
from runtimed.oci import platform as platforms
from runtimed.rollback import Rollback
from runtimed.threads import blocking


@click.command("mount", short_help="Mount an image's files on a directory.")
@formatted
@click.option("--rw", "is_writable", is_flag=True, help="What is written goes when it is unmounted.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Default: what this machine runs.")
@click.option("--snapshotter", help="Whose snapshot to mount.")
@click.argument("image", metavar="IMAGE", shell_complete=complete.images)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.pass_obj
def mount_command(
    settings: Settings,
    is_writable: bool,
    platform: str | None,
    snapshotter: str | None,
    image: str,
    directory: Path,
) -> int:
    """Mount an image's files on the directory DIR, for reading. As root.

    \b
    rctl images mount busybox /mnt && ls /mnt; rctl images unmount /mnt
    """
    wanted = platforms.parse(platform) if platform else platforms.host()
    where = _existing(directory)

    async def work(client: Client) -> int:
        if where in mounts_below(where):
            raise AlreadyExists(f"something is mounted on {where} already")
        place = snapshotter or (await defaults(client))[0]
        parts = await documents(client, await find_image(client, image), wanted)
        await ensure_unpacked(client, parts, place)
        key = _key(where)
        snapshots = client.snapshots(place)
        await _forget(client, key)  # of a mount that a reboot has ended
        async with Rollback() as steps:
            steps.undo("forget the mount", _forget, client, key)
            await client.leases.create(key, labels={"path": str(where)})
            await client.leases.add(key, Resource(type=f"snapshots/{place}", id=key))
            mounts = await (snapshots.prepare if is_writable else snapshots.view)(key, parts.chain_id)
            await blocking(mount_all, [Mount(one.type, one.source, one.target, one.options) for one in mounts], where)
            steps.commit()
        print_json({"image": image, "path": str(where)}) if settings.json else print_lines([str(where)])
        return 0

    return run(settings, work)


@click.command("unmount", short_help="Unmount images.")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_obj
def unmount_command(settings: Settings, directories: tuple[Path, ...]) -> int:
    """Unmount images, and forget what has been written to them.

    \b
    rctl images unmount /mnt
    """
    places = [_existing(directory) for directory in directories]

    async def work(client: Client) -> int:
        for where in places:
            key = _key(where)
            if not await _is_ours(client, key):
                raise NotFound(f"no image is mounted on {where} by rctl in namespace {client.namespace!r}")
            with os_errors(f"unmount {where}"):
                await blocking(unmount_all, where)
            await _forget(client, key)
            print_lines([str(where)])
        return 0

    return run(settings, work)


def _existing(directory: Path) -> Path:
    """Return the whole path of *directory*, free of links: what is mounted on. Raises InvalidArgument."""
    where = directory.resolve()
    if not where.is_dir():
        raise InvalidArgument(f"{directory} is not a directory; make it with: mkdir {directory}")
    return where


def _key(where: Path) -> str:
    """Return what the snapshot and the lease of a mount on *where* are called."""
    return f"rctl-mount-{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}"


async def _is_ours(client: Client, key: str) -> bool:
    return bool([lease async for lease in client.leases.list(f"id=={key}")])


async def _forget(client: Client, key: str) -> None:
    """Remove the snapshot of a mount, and its lease, as far as they are there."""
    with suppress(NotFound):
        async for resource in client.leases.resources(key):
            await remove_snapshot(client, resource.type.removeprefix("snapshots/"), key)
        await client.leases.delete(key)
