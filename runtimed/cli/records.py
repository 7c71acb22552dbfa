"""Printing the client's records: a table for people, JSON for programs."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import click

from runtimed.cli import output
from runtimed.cli.client import Settings
from runtimed.errors import InvalidArgument

Row = Callable[[Any], Sequence[str]]


async def show(settings: Settings, found: AsyncIterator[Any], headers: Sequence[str], row: Row) -> int:
    """Print the records, a *row* each; as JSON they are lists of objects with the fields' names."""
    records = [record async for record in found]
    if settings.json:
        output.print_json([*map(to_json, records)])
    else:
        output.print_table(headers, [*map(row, records)])
    return 0


def to_json(record: Any) -> dict[str, Any]:
    """Return a record's public fields."""
    return {one.name: _value(getattr(record, one.name)) for one in fields(record) if not one.name.startswith("_")}


def _value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def age(at: datetime | None) -> str:
    return output.age(at.timestamp()) if at else "-"


def labels_text(labels: Any) -> str:
    """Return labels in a line."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def labels(texts: Iterable[str]) -> dict[str, str]:
    """Return ``KEY=VALUE`` words as labels; an empty value removes one. Raises InvalidArgument."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"label {text!r} is not of the form KEY=VALUE")
        result[key] = value
    return result


filters = click.argument("filters", nargs=-1, metavar="[FILTER...]")
