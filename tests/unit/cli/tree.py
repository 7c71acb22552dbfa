"""All of rctl's commands."""

from collections.abc import Iterator

import click

from runtimed.cli.main import rctl


def commands(group: click.Command = rctl, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield each command and group below *group*, itself too, with the words that call it."""
    yield " ".join(("rctl", *path)), group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())
