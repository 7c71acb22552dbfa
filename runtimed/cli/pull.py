"""``rctl pull``."""

import getpass
import time

import click

from runtimed.api import images_pb2 as images
from runtimed.cli import progress, transfer
from runtimed.cli.client import Client, DaemonLost, Settings, run
from runtimed.cli.container_create import defaults
from runtimed.cli.documents import find_image
from runtimed.cli.output import print_json, print_lines
from runtimed.errors import Unauthenticated, Unavailable
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Platform


@click.command("pull")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Default: what this machine runs.")
@click.option("-u", "--user", metavar="USER[:SECRET]", help="Credentials for the registry; asks for a missing secret.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS. Loopback needs no such asking.")
@click.option("--snapshotter", help="Where to unpack it.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def pull_command(
    settings: Settings,
    platform: str | None,
    user: str | None,
    plain_http: bool,
    snapshotter: str | None,
    reference: str,
) -> int:
    """Pull an image from a registry and unpack it.

    REF is written as for docker: busybox, localhost:5000/app:1.0, host/app@sha256:...
    """
    wanted = platforms.parse(platform) if platform else platforms.host()
    references.parse(reference)  # before a secret is asked for
    credentials = ask_credentials(user) if user else None

    async def work(client: Client) -> int:
        started = time.monotonic()
        image = await pull_image(
            client,
            settings,
            reference,
            platform=wanted,
            snapshotter=snapshotter or (await defaults(client))[0],
            plain_http=plain_http,
            credentials=credentials,
        )
        if settings.json:
            print_json(
                {
                    "name": image.name,
                    "digest": image.target.digest,
                    "media_type": image.target.media_type,
                    "platform": platforms.format(wanted),
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
        else:
            print_lines([image.name])
        return 0

    return run(settings, work)


async def pull_image(
    client: Client,
    settings: Settings,
    text: str,
    *,
    platform: Platform,
    snapshotter: str,
    plain_http: bool = False,
    credentials: transfer.Credentials | None = None,
) -> images.Image:
    """Pull the image that *text* refers to, show how it goes on, return its record."""
    reference = references.parse(text)
    try:
        with progress.shown(quiet=settings.json) as report:
            await transfer.pull(
                client,
                reference,
                platform=platform,
                snapshotter=snapshotter,
                plain_http=plain_http,
                credentials=credentials,
                report=report,
            )
    except Unauthenticated as exc:
        exc.add_note(f"give credentials for {reference.host}: rctl pull --user NAME {text}")
        raise
    except Unavailable as exc:
        if not isinstance(exc, DaemonLost):
            exc.add_note(f"is {reference.host!r} right, and can it be reached from here?")
        raise
    return await find_image(client, str(reference))


def ask_credentials(user: str) -> transfer.Credentials:
    """Return what ``--user`` says; a missing secret is asked for."""
    name, colon, secret = user.partition(":")
    return transfer.Credentials(username=name, secret=secret if colon else getpass.getpass(f"Secret of {name}: "))
