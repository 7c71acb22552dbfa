"""``rctl mounts``: what the daemon has mounted for those who asked it to."""

from collections.abc import AsyncIterator
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from runtimed.api import mounts_pb2 as pb
from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.each import each


@click.group("mounts")
def mounts_command() -> None:
    """Look at what was activated by the Mounts service.

    \b
    rctl mounts ls
    """


@mounts_command.command("ls", short_help="List activations.")
@output.formatted
@records.filters
@click.pass_obj
def ls_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List the activations that match any FILTER: 'name==x', 'labels.x==y'.

    \b
    rctl mounts ls name==disk
    """

    async def work(client: Client) -> int:
        found = [info async for info in _list(client, filters)]
        if settings.json:
            output.print_json([MessageToDict(info, preserving_proto_field_name=True) for info in found])
        else:
            rows = [
                (info.name, ",".join(one.mount.type for one in info.active), records.labels_text(info.labels))
                for info in found
            ]
            output.print_table(("NAME", "MOUNTED", "LABELS"), rows)
        return 0

    return run(settings, work)


@mounts_command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def rm_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Take mounts off.

    \b
    rctl mounts rm disk
    """

    async def deactivate(client: Client, name: str) -> None:
        await client.call(service(pb, "Mounts").Deactivate, pb.DeactivateRequest(name=name))

    return each(settings, names, deactivate)


async def _list(client: Client, filters: tuple[str, ...]) -> AsyncIterator[Any]:
    async for message in client.messages(service(pb, "Mounts").List, pb.ListRequest(filters=filters)):
        yield message.info
