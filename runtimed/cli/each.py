"""The same for each of the names that a command is given."""

from collections.abc import Awaitable, Callable, Sequence

from runtimed.cli.client import Client, Settings, run
from runtimed.cli.output import hint, note, print_lines
from runtimed.errors import RuntimedError


def each(settings: Settings, names: Sequence[str], action: Callable[[Client, str], Awaitable[str | None]]) -> int:
    """Do *action* with each name and print what it returns; one that fails does not keep it from the others.

    Returns the exit status: 1 if any failed.
    """

    async def work(client: Client) -> int:
        failures = 0
        for name in names:
            try:
                done = await action(client, name)
            except RuntimedError as exc:
                failures += 1
                note(str(exc))
                for text in getattr(exc, "__notes__", ()):
                    hint(text)
            else:
                if done is not None:
                    print_lines([done])
        return 1 if failures else 0

    return run(settings, work)
