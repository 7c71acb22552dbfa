"""``rctl sandboxes``: the records of pods."""

import click
from google.protobuf.json_format import MessageToDict

from runtimed.api import sandbox_pb2 as pb
from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.each import each


@click.group("sandboxes")
def sandboxes_command() -> None:
    """Look at sandboxes: what the containers of a pod share.

    \b
    rctl -n k8s.io sandboxes ls
    """


@sandboxes_command.command("ls", short_help="List sandboxes.")
@output.formatted
@records.filters
@click.pass_obj
def ls_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List the sandboxes that match any FILTER: 'id==x', 'labels.x==y'.

    \b
    rctl -n k8s.io sandboxes ls 'labels.app==web'
    """

    async def work(client: Client) -> int:
        answer = await client.call(service(pb, "Store").List, pb.StoreListRequest(filters=filters))
        if settings.json:
            output.print_json([MessageToDict(one, preserving_proto_field_name=True) for one in answer.list])
        else:
            rows = [(one.sandbox_id, one.runtime.name, records.labels_text(one.labels)) for one in answer.list]
            output.print_table(("ID", "RUNTIME", "LABELS"), rows)
        return 0

    return run(settings, work)


@sandboxes_command.command("rm", short_help="Delete records of sandboxes.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def rm_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Delete records of sandboxes; nothing that runs is ended.

    \b
    rctl sandboxes rm web-pod
    """

    async def delete(client: Client, id: str) -> None:
        await client.call(service(pb, "Store").Delete, pb.StoreDeleteRequest(sandbox_id=id))

    return each(settings, ids, delete)
