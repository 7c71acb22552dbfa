"""Samples, their medians, and the table they are printed as."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

GO, OURS = "Go", "ours"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: wall time and CPU time, both in seconds; ``value`` is what else was measured."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass(slots=True)
class Row:
    """All runs of one thing by one side. The first row of the same ``what`` is what the others are compared with."""

    what: str
    who: str
    values: list[float]
    unit: str = "ms"
    cpu: list[float] = field(default_factory=list)  # milliseconds
    aim: str = ""  # for the ratios, as the plan has it
    note: str = ""

    @classmethod
    def timed(cls, what: str, who: str, samples: Sequence[Sample], *, aim: str = "", note: str = "") -> "Row":
        """Return the row of *samples*."""
        values, cpu = [sample.wall * 1e3 for sample in samples], [sample.cpu * 1e3 for sample in samples]
        return cls(what, who, values, cpu=cpu, aim=aim, note=note)


def alternate(what: str, runs: int, ways: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run each way *runs* times, one after the other, every second round backwards; return what they returned.

    Side by side like this, what the machine does meanwhile hits all of them alike.
    """
    found: dict[str, list[T]] = {who: [] for who in ways}
    for number in range(runs):
        order = list(ways)[:: 1 if number % 2 == 0 else -1]
        for who in order:
            progress(f"{what}: {number + 1}/{runs} {who}")
            found[who].append(ways[who]())
    return found


def progress(text: str) -> None:
    """Say on stderr what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """Return *rows* as a Markdown table: medians; the spread is that of the middle half of the runs."""
    lines = [
        "| what | who | median | first = 1 | CPU | first = 1 | spread | runs | at most |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    bases: dict[str, Row] = {}
    for row in rows:
        base = bases.setdefault(row.what, row)
        cpu = _shown(row.cpu, "ms") if row.cpu else ""
        cpu_ratio = _ratio(row.cpu, base.cpu) if row is not base else ""
        ratio = _ratio(row.values, base.values) if row is not base else ""
        cells = (row.what, row.who, _shown(row.values, row.unit), ratio, cpu, cpu_ratio, _spread(row.values))
        lines.append(f"| {' | '.join(cells)} | {len(row.values)} | {row.aim} |")
        if row.note:
            lines.append(f"| | | {row.note} | | | | | | |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the figures were measured on."""
    runc = _first_line("runc", "--version")
    containerd = _first_line("containerd", "--version")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}; Linux {platform.release()}, {os.cpu_count()} cores, load {load};"
        f" Python {platform.python_version()}; {containerd}; {runc}"
    )


def _first_line(*command: str) -> str:
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].split()
    return " ".join(word for word in words if not word.startswith("github.com/"))


def _shown(values: Sequence[float], unit: str) -> str:
    value = statistics.median(values)
    if unit == "ms" and value >= 10_000:
        return f"{value / 1e3:.2f} s"
    return f"{value:.1f} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    if not values or not base or statistics.median(base) == 0:
        return ""
    return f"{statistics.median(values) / statistics.median(base):.2f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 4:
        return ""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{(high - low) / middle:.0%}" if middle else ""
