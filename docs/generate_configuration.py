"""Writes docs/configuration.md from the dataclasses in runtimed/config/settings.py and their comments.

    python docs/generate_configuration.py

tests/unit/test_configuration_document.py compares.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from runtimed import config

DOCUMENT = Path(__file__).with_name("configuration.md")

_HEAD = """\
# Configuration

One TOML file, `/etc/runtimed/config.toml` or `--config FILE`; without one the defaults hold. Flags (`--root`,
`--state`, `--address`, `--log-level`) win over it. This page is made by `docs/generate_configuration.py`.

    version = 1                       # of this format; the first line
    imports = ["conf.d/*.toml"]       # merged over this file in order: tables key by key, all else replaced

A key that is not known is an error with file, line and what is known there: no misspelt setting goes unnoticed.

| command | what it does |
|---|---|
| `runtimed config default` | prints the defaults: a file to start from |
| `runtimed config dump` | prints what is in effect: file, imports and flags together |
| `runtimed config check` | says whether that can be used, and exits with 1 if not |
| `runtimed config migrate [FILE]` | prints what becomes of a containerd's configuration |

`migrate` reads versions 1 to 3 of containerd's file (`/etc/containerd/config.toml`) with what it imports. It writes our
file on stdout, and on stderr a line for each setting that it cannot take over, with the file, the line and why. Nothing
is said of what is empty or containerd's own default.

SIGHUP has a running daemon read the file again. Settings marked *live* are taken over at once; the log names the others
that have changed, which are taken over at the next start. A file that cannot be read leaves everything as it was.
Containers run on in any case.
"""


def document() -> str:
    """Return the whole page."""
    return _HEAD + "".join(_section(config.Config, ()))


def _section(kind: type, key: tuple[str, ...]) -> Iterator[str]:
    if key:
        yield f"\n## `[{'.'.join(key)}]`\n"
        about = inspect.getdoc(kind) or ""
        if about and not about.startswith(kind.__name__ + "("):
            yield f"\n{about.replace('``', '`')}\n"
    comments = _comments(kind)
    below: list[tuple[type, tuple[str, ...]]] = []
    rows = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            below.append((hint, (*key, item.name)))
        elif get_origin(hint) is Mapping and is_dataclass(get_args(hint)[1]):
            below.append((get_args(hint)[1], (*key, item.name, "<name>")))
        else:
            text = comments.get(item.name, "").replace("|", "\\|")
            live = " *live*" if _is_live((*key, item.name)) else ""
            rows.append(f"| `{item.name}` | {_default(item)} | {text}{live} |\n")
    if rows:
        yield "\n| setting | default | meaning |\n|---|---|---|\n"
        yield from rows
    for table, name in below:
        yield from _section(table, name)


def _is_live(key: tuple[str, ...]) -> bool:
    return any(key[: len(name.split("."))] == tuple(name.split(".")) for name in config.RELOADED)


def _default(item: Field[Any]) -> str:
    value = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
    if isinstance(value, Mapping):
        return ""
    return f"`{config.dump_value(value, item.name)}`"


def _comments(kind: type) -> dict[str, str]:
    """Return what is said of each field: behind it, or in the lines before it, which are about those that follow."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.removeprefix("#").strip())
        elif field := re.match(r"(\w+): [^#]*(?:#\s*(.*))?$", stripped):
            found[field[1]] = " ".join([*above, field[2] or ""]).strip()
            above = []
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(document())
