"""``rctl namespaces``."""

import click

from runtimed.cli import complete, output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.each import each


@click.group("namespaces", short_help="Look after namespaces.")
def namespaces_command() -> None:
    """Look after namespaces; those that something is written to make themselves.

    \b
    rctl namespaces label default containerd.io/defaults/snapshotter=native
    """


@namespaces_command.command("ls")
@output.formatted
@click.pass_obj
def ls_command(settings: Settings) -> int:
    """List the namespaces.

    \b
    rctl namespaces ls
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings,
            client.namespaces.list(),
            ("NAME", "LABELS"),
            lambda one: (one.name, records.labels_text(one.labels)),
        )

    return run(settings, work)


@namespaces_command.command("create")
@output.formatted
@click.option("-l", "--label", "words", multiple=True, metavar="KEY=VALUE")
@click.argument("name")
@click.pass_obj
def create_command(settings: Settings, words: tuple[str, ...], name: str) -> int:
    """Make a namespace.

    \b
    rctl namespaces create -l team=web staging
    """

    async def work(client: Client) -> int:
        made = await client.namespaces.create(name, labels=records.labels(words))
        output.print_json(records.to_json(made)) if settings.json else output.print_lines([made.name])
        return 0

    return run(settings, work)


@namespaces_command.command("label")
@output.formatted
@click.argument("name", shell_complete=complete.namespaces)
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
def label_command(settings: Settings, name: str, words: tuple[str, ...]) -> int:
    """Set labels of a namespace; KEY= removes one.

    \b
    rctl namespaces label default containerd.io/defaults/snapshotter=native
    """

    async def work(client: Client) -> int:
        changed = await client.namespaces.label(name, records.labels(words))
        output.print_json(records.to_json(changed)) if settings.json else output.print_lines([changed.name])
        return 0

    return run(settings, work)


@namespaces_command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete.namespaces)
@click.pass_obj
def rm_command(settings: Settings, names: tuple[str, ...]) -> int:
    """Remove namespaces, which must be empty.

    \b
    rctl namespaces rm staging
    """

    async def delete(client: Client, name: str) -> None:
        await client.namespaces.delete(name)

    return each(settings, names, delete)
