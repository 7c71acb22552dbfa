"""``rctl cri images``, ``inspecti``, ``pull``, ``rmi`` and ``imagefsinfo``."""

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import IMAGES, as_json, verbose
from runtimed.cli.each import each
from runtimed.errors import NotFound

_SHORT = 13  # characters of a digest


@click.command("images", short_help="List images.")
@output.formatted
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("-q", "--quiet", is_flag=True, help="Only the IDs.")
@click.argument("name", required=False, metavar="[IMAGE]", shell_complete=complete.node_images)
@click.pass_obj
def images_command(settings: Settings, no_trunc: bool, quiet: bool, name: str | None) -> int:
    """List the images that pods can use, or one. PINNED ones no kubelet removes.

    \b
    rctl cri images
    rctl cri images -q
    """

    async def work(client: Client) -> int:
        wanted = pb.ImageFilter(image=pb.ImageSpec(image=name or ""))
        answer = await client.call(IMAGES.ListImages, pb.ListImagesRequest(filter=wanted))
        found = sorted(answer.images, key=lambda one: (list(one.repo_tags), list(one.repo_digests)))
        if settings.json:
            output.print_json([as_json(one) for one in found])
        elif quiet:
            output.print_lines(one.id for one in found)
        else:
            rows = [row for one in found for row in _rows(one, None if no_trunc else _SHORT)]
            output.print_table(("NAME", "IMAGE", "SIZE", "PINNED"), rows)
        return 0

    return run(settings, work)


def _rows(one: pb.Image, length: int | None) -> list[tuple[str, ...]]:
    """Return a row for each name; an image without a tag goes by its digests."""
    id = one.id.rpartition(":")[2][:length] if length else one.id
    names = [*one.repo_tags] or [*one.repo_digests] or [""]
    return [(name, id, output.size(one.size), "yes" if one.pinned else "") for name in names]


@click.command("inspecti", short_help="Show images in full.")
@output.formatted
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete.node_images)
@click.pass_obj
def inspecti_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Show images in full, as JSON.

    \b
    rctl cri inspecti busybox | jq .image.id
    """

    async def inspect(client: Client, name: str) -> None:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
        answer = await client.call(IMAGES.ImageStatus, request)
        if not answer.HasField("image"):
            raise NotFound(f"image {name!r} is not here; 'rctl cri pull {name}' pulls it")
        output.print_json(verbose(answer))

    return each(settings, names, inspect)


@click.command("pull", short_help="Pull an image for pods.")
@output.formatted
@click.option("-u", "--user", "--creds", metavar="USER[:SECRET]",
              help="Credentials for the registry; asks for a missing secret.")  # fmt: skip
@click.option("--runtime", "handler", default="", metavar="NAME", help="For pods of this handler.")
@click.argument("name", metavar="REF")
@click.pass_obj
def pull_command(settings: Settings, user: str | None, handler: str, name: str) -> int:
    """Pull an image as a kubelet does; print its ID. 'rctl -n k8s.io pull' shows how it goes on.

    \b
    rctl cri pull busybox
    """
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name, runtime_handler=handler))
    if user:
        from runtimed.cli.pull import ask_credentials

        credentials = ask_credentials(user)
        request.auth.username, request.auth.password = credentials.username, credentials.secret

    async def work(client: Client) -> int:
        answer = await client.call(IMAGES.PullImage, request)
        output.print_json(as_json(answer)) if settings.json else output.print_lines([answer.image_ref])
        return 0

    return run(settings, work)


@click.command("rmi", short_help="Remove images, under all their names.")
@click.option("--prune", is_flag=True, help="All that no container uses and that are not pinned.")
@click.argument("names", nargs=-1, metavar="IMAGE...", shell_complete=complete.node_images)
@click.pass_obj
def rmi_command(settings: Settings, prune: bool, names: tuple[str, ...]) -> int:
    """Remove images, each under all its names.

    \b
    rctl cri rmi busybox
    rctl cri rmi --prune
    """
    if prune == bool(names):
        raise click.UsageError("name images, or say --prune")

    async def remove(client: Client, name: str) -> str:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name))
        found = await client.call(IMAGES.ImageStatus, request)
        if not found.HasField("image"):  # of which the call says nothing
            raise NotFound(f"image {name!r} is not here; see 'rctl cri images'")
        await client.call(IMAGES.RemoveImage, pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))
        return name

    async def unused(client: Client) -> int:
        from runtimed.cli.cri.find import list_containers

        images = (await client.call(IMAGES.ListImages, pb.ListImagesRequest())).images
        used = {id for one in await list_containers(client) for id in (one.image_id, one.image_ref, one.image.image)}
        found.extend(one.id for one in images if one.id not in used and not one.pinned)
        return 0

    found: list[str] = [*names]
    return (run(settings, unused) if prune else 0) or each(settings, found, remove)


@click.command("imagefsinfo", short_help="Show how much of the disk images take.")
@output.formatted
@click.pass_obj
def imagefsinfo_command(settings: Settings) -> int:
    """Show how much of the disk images and containers take, as the kubelet is told, who evicts by it.

    \b
    rctl cri imagefsinfo
    """

    async def work(client: Client) -> int:
        answer = await client.call(IMAGES.ImageFsInfo, pb.ImageFsInfoRequest())
        if settings.json:
            output.print_json(as_json(answer))
            return 0
        rows = [
            (what, one.fs_id.mountpoint, output.size(one.used_bytes.value), str(one.inodes_used.value))
            for what, usages in (("images", answer.image_filesystems), ("containers", answer.container_filesystems))
            for one in usages
        ]
        output.print_table(("OF", "MOUNTPOINT", "USED", "INODES"), rows)
        return 0

    return run(settings, work)
