"""What tomllib does not do: say at which line a key stands, and write TOML."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

_KEY = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_ASSIGNMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")


def line_of(text: str, key: tuple[str, ...]) -> int:
    """Return the number of the line of TOML *text* that sets *key* (or its table, or the table around it)."""
    table: tuple[str, ...] = ()
    found, depth = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = table = _split(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            here = (*table, *_split(assignment[1]))
        else:
            continue
        shared = len(here) if here == key[: len(here)] else 0
        if key == here[: len(key)]:
            return number
        if shared > depth:
            found, depth = number, shared
    return found


def _split(dotted: str) -> tuple[str, ...]:
    """Split a dotted key as TOML does: by letting the parser do it."""
    table: Any = tomllib.loads(f"{dotted} = 0")
    names = []
    while isinstance(table, dict):
        ((name, table),) = table.items()
        names.append(name)
    return tuple(names)


def dotted(key: tuple[str, ...]) -> str:
    """Return *key* as TOML writes it."""
    return ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name) for name in key)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'


def dump_table(table: Mapping[str, Any], key: tuple[str, ...]) -> str:
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{dotted((name,))} = {dump_value(value, name)}\n" for name, value in plain.items()]
    if key and (plain or not table):
        lines.insert(0, f"\n[{dotted(key)}]\n")
    below = [(name, value) for name, value in table.items() if isinstance(value, Mapping)]
    return "".join(lines) + "".join(dump_table(value, (*key, name)) for name, value in below)


def dump_value(value: Any, name: str = "") -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"0o{value:o}" if name == "mode" else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(dump_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dotted((key,))} = {dump_value(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, float) else _quoted(str(value))
