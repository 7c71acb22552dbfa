"""``rctl push`` and ``rctl tag``."""

import time

import click

from runtimed.cli import complete, progress
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.output import formatted, print_json, print_lines
from runtimed.cli.pull import ask_credentials
from runtimed.client import transfer
from runtimed.client.documents import find_image
from runtimed.errors import Unauthenticated
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references


@click.command("push")
@formatted
@click.option("--platform", "wanted", multiple=True, metavar="OS/ARCH", help="Default: what this machine runs.")
@click.option("--all-platforms", is_flag=True, help="All of a multi-platform image, which must be here.")
@click.option("-u", "--user", metavar="USER[:SECRET]", help="Credentials for the registry; asks for a missing secret.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS. Loopback needs no such asking.")
@click.argument("image", metavar="IMAGE", shell_complete=complete.images)
@click.argument("reference", metavar="[REF]", required=False)
@click.pass_obj
def push_command(
    settings: Settings,
    wanted: tuple[str, ...],
    all_platforms: bool,
    user: str | None,
    plain_http: bool,
    image: str,
    reference: str | None,
) -> int:
    """Push an image to a registry, as REF or by its own name.

    Layers that the registry has are not sent.

    \b
    rctl push app localhost:5000/app:1.0
    rctl push -u me ghcr.io/me/app:1.0
    """
    target = references.parse(reference or image)
    chosen = [platforms.parse(one) for one in wanted] or [platforms.host()]
    credentials = ask_credentials(user) if user else None

    async def work(client: Client) -> int:
        started = time.monotonic()
        found = await find_image(client, image)
        try:
            with progress.shown(quiet=settings.json) as report:
                await transfer.push(
                    client,
                    found.name,
                    target,
                    chosen=[] if all_platforms else chosen,
                    plain_http=plain_http,
                    credentials=credentials,
                    report=report,
                )
        except Unauthenticated as exc:
            exc.add_note(f"give credentials for {target.host}: rctl push --user NAME ...")
            raise
        if settings.json:
            print_json({"name": str(target), "seconds": round(time.monotonic() - started, 3)})
        else:
            print_lines([str(target)])
        return 0

    return run(settings, work)


@click.command("tag", short_help="Give an image further names.")
@formatted
@click.argument("image", metavar="IMAGE", shell_complete=complete.images)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def tag_command(settings: Settings, image: str, names: tuple[str, ...]) -> int:
    """Give an image further names; an image that has such a name loses it.

    \b
    rctl tag busybox localhost:5000/busybox:mine
    """
    full = [str(references.parse(name)) for name in names]

    async def work(client: Client) -> int:
        found = await find_image(client, image)
        await transfer.tag(client, found.name, full)
        print_json(full) if settings.json else print_lines(full)
        return 0

    return run(settings, work)
