"""``rctl images``, whose further commands are modules of their own, and ``rctl rmi``."""

import asyncio

import click

from runtimed.api import images_pb2 as images
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.each import each
from runtimed.cli.lazy import LazyGroup
from runtimed.client.documents import Documents, documents
from runtimed.errors import RuntimedError
from runtimed.oci import platform as platforms

# Command -> module, as in main.py.
_COMMANDS = {
    "import": "images_import",
    "export": "images_export",
    "convert": "images_convert",
    "check": "images_check",
    "usage": "images_check",
    "mount": "images_mount",
    "unmount": "images_mount",
}
_AT_ONCE = 8  # images whose documents are read side by side


@click.group("images", cls=LazyGroup, lazy=_COMMANDS, invoke_without_command=True)
@output.formatted
@click.option("-q", "--quiet", is_flag=True, help="Only the names.")
@click.pass_context
def images_command(context: click.Context, quiet: bool) -> int:
    """List images, or do something with some.

    In the list, the size is what a pull for this machine fetches.

    \b
    rctl images
    rctl images -q
    """
    if context.invoked_subcommand is not None:
        return 0  # what counts is that command's status
    settings: Settings = context.obj

    async def work(client: Client) -> int:
        answer = await client.call(service(images, "Images").List, images.ListImagesRequest())
        found = sorted(answer.images, key=lambda image: image.name)
        if quiet:
            names = [image.name for image in found]
            output.print_json(names) if settings.json else output.print_lines(names)
            return 0
        limit = asyncio.Semaphore(_AT_ONCE)
        contents = await asyncio.gather(*(_documents(client, image, limit) for image in found))
        pairs = list(zip(found, contents, strict=True))
        if settings.json:
            output.print_json([_as_json(image, content) for image, content in pairs])
        else:
            headers = ("NAME", "DIGEST", "PLATFORM", "SIZE", "CREATED")
            output.print_table(headers, [_as_row(image, content) for image, content in pairs])
        return 0

    return run(settings, work)


async def _documents(client: Client, image: images.Image, limit: asyncio.Semaphore) -> Documents | None:
    """Return what the image is made of for this machine, None if it has nothing for it or is not complete."""
    async with limit:
        try:
            return await documents(client, image, platforms.host())
        except RuntimedError:
            return None


def _as_row(image: images.Image, content: Documents | None) -> tuple[str, ...]:
    algorithm, _, encoded = image.target.digest.partition(":")
    return (
        image.name,
        f"{algorithm}:{encoded[:12]}",
        platforms.format(content.config.platform) if content else "",
        output.size(content.size) if content else "",
        f"{output.age(image.created_at.seconds)} ago" if image.created_at.seconds else "",
    )


def _as_json(image: images.Image, content: Documents | None) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.target.digest,
        "media_type": image.target.media_type,
        "platform": platforms.format(content.config.platform) if content else None,
        "size": content.size if content else None,
        "labels": dict(image.labels),
        "created_at": output.timestamp(image.created_at),
    }


@click.command("rmi")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete.images)
@click.pass_obj
def rmi_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Remove images. What no other image or container needs is freed.

    \b
    rctl rmi busybox
    rctl rmi $(rctl images -q)
    """

    async def remove(client: Client, name: str) -> str:
        image = await client.images.get(name)
        await client.images.delete(image.name, sync=True)
        return image.name

    return each(settings, names, remove)
