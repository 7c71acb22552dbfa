"""TOML files that import others, ours and containerd's."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimed.config.toml import line_of
from runtimed.errors import InvalidArgument, NotFound, os_errors


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read; ``table`` is without its imports."""

    path: Path
    text: str
    table: dict[str, Any]


def files(path: Path, what: str, importers: tuple[Path, ...] = ()) -> Iterator[File]:
    """Yield *path*, then what it imports in that order, and what that imports; errors call it *what*.

    Raises:
        NotFound: it, or what it imports by its name, is not there.
        InvalidArgument: not TOML; it imports itself.
    """
    if path in importers:
        raise InvalidArgument(f"{path}: imports itself")
    with os_errors(f"{what} {path}"):
        if not path.exists():
            raise NotFound(f"{what} {path}: no such file")
        data = path.read_bytes()
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{path}: not TOML: {exc}") from None
    imports = table.pop("imports", [])
    if not isinstance(imports, list) or not all(isinstance(pattern, str) for pattern in imports):
        raise InvalidArgument(f"{path}:{line_of(text, ('imports',))}: imports: must be a list of file names")
    yield File(path, text, table)
    for pattern in imports:
        for imported in _matching(path.parent, pattern):
            yield from files(imported, what, (*importers, path))


def _matching(directory: Path, pattern: str) -> list[Path]:
    """Return the files that *pattern* names, in order; a pattern without wildcards names one, be it there or not."""
    if not any(wild in pattern for wild in "*?["):
        return [directory / pattern]
    whole = directory / pattern
    return sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
