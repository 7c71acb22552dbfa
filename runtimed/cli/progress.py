"""How a pull is shown: a bar a blob on a terminal, else a line a step. All on stderr; stdout is for the result."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtimed.api import transfer_types_pb2 as types
from runtimed.cli.output import safe, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ENDS = {"complete", "already exists", "extracted"}


@contextmanager
def shown(*, quiet: bool) -> Iterator[Callable[[types.Progress], None]]:
    """Hold a display on stderr, unless *quiet*; call what it yields with each step."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield Lines().report


def title(name: str) -> str:
    """Return a blob's ref for people: ``layer-sha256:0123456789abcdef...`` is ``layer 0123456789ab``."""
    kind, _, digest = name.partition("-")
    encoded = digest.partition(":")[2]
    return safe(f"{kind} {encoded[:12]}" if encoded else name)


class Lines:
    """A line when something begins or ends; none for how far it is."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def report(self, step: types.Progress) -> None:
        """Print *step* if it is another than the last one of its name."""
        if self._said.get(step.name) == step.event or step.event == "waiting":
            return
        self._said[step.name] = step.event
        total = f" ({size(step.total)})" if step.event in _ENDS and step.total else ""
        what = f"{title(step.name)}: " if step.name else ""
        print(f"{what}{safe(step.event)}{total}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Callable[[types.Progress], None]]:
    # Here and not above: it takes time to load, and is needed for no other command.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[event]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress).report


class _Bars:
    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def report(self, step: types.Progress) -> None:
        """Move the bar of what *step* is about."""
        if not step.name or not step.HasField("desc") or not step.total and step.event not in _ENDS:
            return
        if step.name not in self._tasks:
            self._tasks[step.name] = self._progress.add_task(title(step.name), total=None, event="")
        ended = step.event in _ENDS
        self._progress.update(
            self._tasks[step.name],
            total=step.total or None,
            completed=step.total if ended else step.progress,
            event=safe(step.event),
        )
