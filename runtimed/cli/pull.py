"""``rctl pull``."""

import getpass
import json
import time
from typing import Any

import click

from runtimed.api import images_pb2 as images
from runtimed.api import transfer_types_pb2 as types
from runtimed.cli import progress
from runtimed.cli.client import Client, DaemonLost, Settings, run
from runtimed.cli.output import formatted, print_json, print_lines, print_table, size
from runtimed.client import transfer
from runtimed.client.create import defaults
from runtimed.client.documents import find_image
from runtimed.client.records import Credentials
from runtimed.errors import Unauthenticated, Unavailable
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Platform

_TIMINGS = "runtimed.timings"  # images/timings.py, which is not for clients to import


@click.command("pull")
@formatted
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Default: what this machine runs.")
@click.option("-u", "--user", metavar="USER[:SECRET]", help="Credentials for the registry; asks for a missing secret.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS. Loopback needs no such asking.")
@click.option("--snapshotter", help="Where to unpack it.")
@click.option("--stats", is_flag=True, help="Say where the time went.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def pull_command(
    settings: Settings,
    platform: str | None,
    user: str | None,
    plain_http: bool,
    snapshotter: str | None,
    stats: bool,
    reference: str,
) -> int:
    """Pull an image from a registry and unpack it.

    REF is written as for docker: busybox, localhost:5000/app:1.0, host/app@sha256:...

    \b
    rctl pull busybox
    rctl pull --platform linux/arm64 ghcr.io/someone/app:1.0
    """
    wanted = platforms.parse(platform) if platform else platforms.host()
    references.parse(reference)  # before a secret is asked for
    credentials = ask_credentials(user) if user else None

    async def work(client: Client) -> int:
        started = time.monotonic()
        timings: list[str] = []
        image = await pull_image(
            client,
            settings,
            reference,
            platform=wanted,
            snapshotter=snapshotter or (await defaults(client))[0],
            plain_http=plain_http,
            credentials=credentials,
            timings=timings,
        )
        if settings.json:
            print_json(
                {
                    "name": image.name,
                    "digest": image.target.digest,
                    "media_type": image.target.media_type,
                    "platform": platforms.format(wanted),
                    "seconds": round(time.monotonic() - started, 3),
                    **({"timings": json.loads(timings[-1])} if stats and timings else {}),
                }
            )
        else:
            print_lines([image.name])
            if stats and timings:
                _print_timings(json.loads(timings[-1]))
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
    credentials: Credentials | None = None,
    timings: list[str] | None = None,
) -> images.Image:
    """Pull the image that *text* refers to, show how it goes on, return its record.

    What the daemon says of the time it took is added to *timings*, as JSON.
    """
    reference = references.parse(text)

    def hear(step: types.Progress) -> None:
        if timings is not None and (said := step.desc.annotations.get(_TIMINGS)):
            timings.append(said)
        report(step)

    try:
        with progress.shown(quiet=settings.json) as report:
            await transfer.pull(
                client,
                reference,
                platform=platform,
                snapshotter=snapshotter,
                plain_http=plain_http,
                credentials=credentials,
                report=hear,
            )
    except Unauthenticated as exc:
        exc.add_note(f"give credentials for {reference.host}: rctl pull --user NAME {text}")
        raise
    except Unavailable as exc:
        if not isinstance(exc, DaemonLost):
            exc.add_note(f"is {reference.host!r} right, and can it be reached from here?")
            exc.add_note(f"what is asked, and why: rctl registry explain {text}")
        raise
    return await find_image(client, str(reference))


def _print_timings(timings: Any) -> None:
    rows = [
        (
            layer["digest"].partition(":")[2][:12],
            size(layer["size"]),
            f"{layer['begun_s']:.3f} s",
            "was here" if layer["was_here"] else f"{layer['download_s']:.3f} s",
            f"{size(int(layer['size'] / layer['download_s']))}/s" if layer["download_s"] else "",
            f"{layer['unpack_s']:.3f} s" if layer["unpack_s"] else "was here",
        )
        for layer in timings["layers"]
    ]
    print_table(("LAYER", "SIZE", "BEGUN AT", "DOWNLOAD", "RATE", "UNPACK"), rows)
    print(
        f"resolve {timings['resolve_s']:.3f} s, manifests {timings['manifests_s']:.3f} s,"
        f" layers {timings['layers_s']:.3f} s; {timings['total_s']:.3f} s in all,"
        f" {size(timings['downloaded'])} of layers downloaded"
    )


def ask_credentials(user: str) -> Credentials:
    """Return what ``--user`` says; a missing secret is asked for."""
    name, colon, secret = user.partition(":")
    return Credentials(username=name, secret=secret if colon else getpass.getpass(f"Secret of {name}: "))
