"""``rctl kill``."""

import signal

import click

from runtimed.cli import complete
from runtimed.cli.client import Client, Settings
from runtimed.cli.each import each
from runtimed.client.process import Process
from runtimed.errors import InvalidArgument


@click.command("kill")
@click.option("-s", "--signal", "name", default="TERM", show_default=True, help="A name or a number.")
@click.option("-a", "--all", "everything", is_flag=True, help="Signal all processes of the container.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def kill_command(settings: Settings, name: str, everything: bool, ids: tuple[str, ...]) -> int:
    """Send a signal to containers.

    \b
    rctl kill web
    rctl kill -s HUP web
    """
    number = signal_number(name)

    async def kill(client: Client, id: str) -> None:
        await Process(client, id).kill(number, everything=everything)

    return each(settings, ids, kill)


def signal_number(text: str) -> int:
    """Return the number of a signal written as ``9``, ``KILL``, ``SIGKILL`` or ``RTMIN+3``. Raises InvalidArgument."""
    if text.isascii() and text.isdigit() and 0 < int(text[:4]) <= signal.SIGRTMAX:
        return int(text)
    name, plus, offset = text.upper().removeprefix("SIG").partition("+")
    try:
        number = signal.Signals[f"SIG{name}"] + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        raise InvalidArgument(f"{text!r} is not a signal; give a name like TERM or a number") from None
    if plus and (name != "RTMIN" or not signal.SIGRTMIN <= number <= signal.SIGRTMAX):
        raise InvalidArgument(f"{text!r} is not a signal")
    return number
