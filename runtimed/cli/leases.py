"""``rctl leases``."""

import time

import click

from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.each import each
from runtimed.errors import InvalidArgument
from runtimed.labels import GC_EXPIRE

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group("leases")
def leases_command() -> None:
    """Hold things against garbage collection.

    \b
    rctl leases create --expires 2h upgrade
    rctl leases add upgrade content sha256:1234...
    """


@leases_command.command("ls", short_help="List leases.")
@output.formatted
@records.filters
@click.pass_obj
def ls_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """List the leases that match any FILTER: 'id==x', 'labels.x==y'.

    \b
    rctl leases ls id==upgrade
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings,
            client.leases.list(*filters),
            ("ID", "AGE", "LABELS"),
            lambda lease: (lease.id, records.age(lease.created_at), records.labels_text(lease.labels)),
        )

    return run(settings, work)


@leases_command.command("create")
@output.formatted
@click.option("--expires", metavar="TIME", help="Let go by itself after so long: 30s, 10m, 2h, 1d.")
@click.option("-l", "--label", "words", multiple=True, metavar="KEY=VALUE")
@click.argument("id", required=False, default="")
@click.pass_obj
def create_command(settings: Settings, expires: str | None, words: tuple[str, ...], id: str) -> int:
    """Make a lease and print its ID.

    \b
    rctl leases create --expires 2h upgrade
    """
    labels = records.labels(words) | ({GC_EXPIRE: _moment(expires)} if expires else {})

    async def work(client: Client) -> int:
        lease = await client.leases.create(id, labels=labels)
        output.print_json(records.to_json(lease)) if settings.json else output.print_lines([lease.id])
        return 0

    return run(settings, work)


@leases_command.command("rm")
@click.option("--sync", is_flag=True, help="Return when what only it held has gone.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def rm_command(settings: Settings, sync: bool, ids: tuple[str, ...]) -> int:
    """Delete leases.

    \b
    rctl leases rm --sync upgrade
    """

    async def delete(client: Client, id: str) -> None:
        await client.leases.delete(id, sync=sync)

    return each(settings, ids, delete)


@leases_command.command("resources")
@output.formatted
@click.argument("id")
@click.pass_obj
def resources_command(settings: Settings, id: str) -> int:
    """List what a lease holds.

    \b
    rctl leases resources upgrade
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings, client.leases.resources(id), ("TYPE", "ID"), lambda resource: (resource.type, resource.id)
        )

    return run(settings, work)


def _change(settings: Settings, id: str, type: str, resource: str, *, is_held: bool) -> int:
    async def work(client: Client) -> int:
        from runtimed.client.records import Resource

        change = client.leases.add if is_held else client.leases.remove
        await change(id, Resource(type=type, id=resource))
        return 0

    return run(settings, work)


@leases_command.command("add")
@click.argument("id")
@click.argument("type")
@click.argument("resource")
@click.pass_obj
def add_command(settings: Settings, id: str, type: str, resource: str) -> int:
    """Let a lease hold RESOURCE. TYPE is content, ingests, images or snapshots/SNAPSHOTTER.

    \b
    rctl leases add upgrade content sha256:1234...
    rctl leases add upgrade snapshots/overlayfs work
    """
    return _change(settings, id, type, resource, is_held=True)


@leases_command.command("remove")
@click.argument("id")
@click.argument("type")
@click.argument("resource")
@click.pass_obj
def remove_command(settings: Settings, id: str, type: str, resource: str) -> int:
    """Let a lease hold RESOURCE no longer.

    \b
    rctl leases remove upgrade content sha256:1234...
    """
    return _change(settings, id, type, resource, is_held=False)


def _moment(text: str) -> str:
    """Return the time that is *text* from now (RFC 3339). Raises InvalidArgument."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not (number.isascii() and number.isdigit()):
        raise InvalidArgument(f"--expires {text!r} is not a number with s, m, h or d")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + int(number) * _UNITS_S[unit]))
