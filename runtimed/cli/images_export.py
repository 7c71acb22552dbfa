"""``rctl images export``."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from runtimed.cli import complete, progress
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.output import formatted, print_json, print_lines
from runtimed.client import transfer
from runtimed.client.documents import find_image
from runtimed.errors import InvalidArgument
from runtimed.oci import platform as platforms


@click.command("export", short_help="Export images to an archive.")
@formatted
@click.option("--platform", "wanted", multiple=True, metavar="OS/ARCH", help="Default: what this machine runs.")
@click.option("--all-platforms", is_flag=True, help="All of a multi-platform image, which must be here.")
@click.option("--without-docker", is_flag=True, help="Leave out the manifest.json that docker load reads.")
@click.argument("file", metavar="FILE")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images)
@click.pass_obj
def export_command(
    settings: Settings,
    wanted: tuple[str, ...],
    all_platforms: bool,
    without_docker: bool,
    file: str,
    images: tuple[str, ...],
) -> int:
    """Export images to an archive: an OCI image layout as a tar, which docker load reads, too.

    FILE is written when the archive is complete; "-" is standard output.

    \b
    rctl images export app.tar app:1.0
    rctl images export - app:1.0 | ssh host rctl images import -
    """
    chosen = [platforms.parse(one) for one in wanted]
    if file == "-" and sys.stdout.isatty():
        raise InvalidArgument("standard output is a terminal; give a file, or pipe the archive into something")

    async def work(client: Client) -> int:
        started = time.monotonic()
        names = [(await find_image(client, one)).name for one in images]
        with _opened(file) as target, progress.shown(quiet=settings.json) as report:
            await transfer.export_archive(
                client,
                names,
                target.write,
                chosen=chosen,
                all_platforms=all_platforms,
                without_docker=without_docker,
                report=report,
            )
        if file == "-":
            return 0
        if settings.json:
            print_json({"names": names, "file": file, "seconds": round(time.monotonic() - started, 3)})
        else:
            print_lines([file])
        return 0

    return run(settings, work)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Hold the file open for writing. A regular one gets its name when all is in it, and nothing is left of a part."""
    path = Path(name)
    if name == "-":
        yield sys.stdout.buffer
        return
    if path.exists() and not path.is_file():  # /dev/stdout, a FIFO
        with path.open("wb") as file:
            yield file
        return
    fd, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
