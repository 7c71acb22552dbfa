"""``rctl plugins``."""

import click

from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run


@click.command("plugins", short_help="List the parts of the daemon.")
@output.formatted
@records.filters
@click.pass_obj
def plugins_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List the parts of the daemon, with what each can do and why one could not be loaded.

    \b
    rctl plugins type==io.containerd.snapshotter.v1
    """

    async def work(client: Client) -> int:
        found = sorted(await client.plugins(*filters), key=lambda plugin: (plugin.type, plugin.id))
        if settings.json:
            output.print_json([*map(records.to_json, found)])
        else:
            rows = [(p.type, p.id, p.error or "ok", ",".join(p.capabilities)) for p in found]
            output.print_table(("TYPE", "ID", "STATUS", "CAPABILITIES"), rows)
        return 0

    return run(settings, work)
