"""What rctl prints. Results go to stdout, everything said about them to stderr.

Names, labels and messages may be a stranger's: whatever could steer a terminal is written as an escape.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def _choose(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and context.obj is not None:  # without, a shell asks what could be here
        context.obj.json = value == "json"


formatted = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    expose_value=False,
    callback=_choose,
    help="For people or programs.",
)
"""``-o``, of rctl and of each command that has something to print in more than one way."""


def safe(text: str) -> str:
    """Return *text* with control, format and other unprintable characters as ``\\x1b`` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Say *text* on stderr as rctl's own word."""
    # A terminal in raw mode does not go back to the left edge by itself.
    end = "\r\n" if sys.stderr.isatty() else "\n"
    print(f"rctl: {safe(text)}", end=end, file=sys.stderr, flush=True)


def hint(text: str) -> None:
    """Say on stderr what to do about what has been said."""
    print(f"hint: {safe(text)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print *value* as one line of JSON, or indented on a terminal."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=True))


def print_lines(lines: Iterable[str]) -> None:
    """Print names, one per line."""
    for line in lines:
        print(safe(line))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* in columns as wide as they need."""
    cells = [list(headers), *([safe(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(count: int) -> str:
    """Return *count* bytes for people: ``4.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(seconds: float) -> str:
    """Return how long ago *seconds* since the epoch are, for people: ``5 minutes``."""
    passed = max(0, int(time.time() - seconds))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if passed >= length:
            count = passed // length
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{passed} second{'s' if passed != 1 else ''}"


def timestamp(message: Any) -> str | None:
    """Return a protobuf Timestamp as RFC 3339 text; None for one that is not set."""
    return message.ToJsonString() if message.seconds or message.nanos else None
