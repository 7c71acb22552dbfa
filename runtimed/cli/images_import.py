"""``rctl images import``."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import date
from typing import BinaryIO

import click

from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.cli import progress
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.output import formatted, print_json, print_lines
from runtimed.client import transfer
from runtimed.client.create import defaults
from runtimed.errors import InvalidArgument, NotFound
from runtimed.oci import platform as platforms

_CHUNK = 1 << 18  # bytes


@click.command("import", short_help="Import images from an archive.")
@formatted
@click.option("--name", metavar="NAME", help="Take only images of that name; tags without a name get it.")
@click.option("--platform", "wanted", multiple=True, metavar="OS/ARCH", help="Default: what this machine runs.")
@click.option("--all-platforms", is_flag=True, help="Take whatever the archive has.")
@click.option("--no-unpack", is_flag=True, help="Only take the images over; the first container unpacks them.")
@click.option("--snapshotter", help="Where to unpack them.")
@click.option("--compress", is_flag=True, help="Compress plain layers of an archive of docker save.")
@click.argument("file", metavar="FILE", type=click.File("rb"))
@click.pass_obj
def import_command(
    settings: Settings,
    name: str | None,
    wanted: tuple[str, ...],
    all_platforms: bool,
    no_unpack: bool,
    snapshotter: str | None,
    compress: bool,
    file: BinaryIO,
) -> int:
    """Import images from an archive: of docker save, skopeo, rctl images export, or any OCI image layout as a tar.

    FILE may be compressed by gzip or zstd; "-" is standard input. Images keep the names that the archive has for them;
    one without a name gets "import-DATE" and its digest.

    \b
    docker save app | rctl images import -
    rctl images import --name app:1.0 app.tar.gz
    """
    chosen = [platforms.parse(one) for one in wanted] or [platforms.host()]
    if file.isatty():
        raise InvalidArgument("standard input is a terminal; give a file, or pipe an archive into rctl")

    async def work(client: Client) -> int:
        started = time.monotonic()
        place = "" if no_unpack else snapshotter or (await defaults(client))[0]
        unpacks = [
            types.UnpackConfiguration(
                platform=types_pb2.Platform(os=one.os, architecture=one.architecture, variant=one.variant),
                snapshotter=place,
            )
            for one in chosen
            if not no_unpack
        ]
        try:
            with progress.shown(quiet=settings.json) as report:
                names = await transfer.import_archive(
                    client,
                    _chunks(file),
                    prefix=name or f"import-{date.today()}",
                    is_default_prefix=name is None,
                    chosen=[] if all_platforms else chosen,
                    unpacks=unpacks,
                    compress=compress,
                    report=report,
                )
        except NotFound as exc:
            exc.add_note("--platform and --all-platforms say what to take of the archive")
            raise
        if settings.json:
            print_json({"names": names, "seconds": round(time.monotonic() - started, 3)})
        else:
            print_lines(names)
        return 0

    return run(settings, work)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield what is in *file*: one that is waited for, as a pipe is, is waited for by the event loop."""
    reader = asyncio.StreamReader(limit=_CHUNK)
    try:
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    except ValueError:  # a file on a disk, which always has something or has ended
        while data := file.read(_CHUNK):
            yield data
        return
    try:
        while data := await reader.read(_CHUNK):
            yield data
    finally:
        pipe.close()
