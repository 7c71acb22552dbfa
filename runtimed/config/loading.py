"""From a file, its imports and the flags to a :class:`Config`, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from runtimed.config.checks import checked
from runtimed.config.files import files
from runtimed.config.settings import DEFAULT_HANDLER, DEFAULT_RUNTIME, Config, Cri, CriRuntime, Runtime
from runtimed.config.toml import dotted, dump_table, line_of
from runtimed.errors import InvalidArgument, NotFound

DEFAULT_PATH = Path("/etc/runtimed/config.toml")
VERSION = 1


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read *path* (None: the default file, which need not exist) and what it imports; *overrides* win over all.

    *overrides* is nested as the file is: ``{"root": ..., "log": {"level": ...}}``.

    Raises:
        NotFound: *path* was given and is not there.
        InvalidArgument: not TOML, another version, an unknown key, a value of the wrong kind.
    """
    if path is None and not DEFAULT_PATH.exists():
        table: dict[str, Any] = {}
    else:
        try:
            table = _read(path or DEFAULT_PATH)
        except NotFound as exc:
            raise NotFound(f"{exc}; `runtimed config default` prints one to start from") from None
    _merge(table, overrides or {})
    return parse(table)


def parse(table: Mapping[str, Any]) -> Config:
    """Return what *table*, nested as a file is, says. Raises InvalidArgument."""
    return checked(_build(Config, table, ()))


def dump(config: Config, *, changes_only: bool = False) -> str:
    """Return *config* as a file that :func:`load` reads; with *changes_only* what is as without a file is left out."""
    table = _as_table(config)
    if changes_only:
        table = _changes(table, _as_table(parse({})))
    return f"version = {VERSION}\n" + dump_table(table, ())


RELOADED = ("log.level", "gc", "restart")  # settings and sections that SIGHUP takes over; the others need a restart


def reloaded(current: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """Return *current* with what a running daemon can take over of *new*.

    And the settings that it has taken over, and those that are another in *new* and have to wait for a restart.
    """
    taken: list[str] = []
    waiting: list[str] = []
    for key in sorted(_leaves(_changes(_as_table(new), _as_table(current)), ())):
        can = any(key[: len(section)] == section for section in (tuple(name.split(".")) for name in RELOADED))
        (taken if can else waiting).append(dotted(key))
    log = replace(current.log, level=new.log.level)
    return replace(current, log=log, gc=new.gc, restart=new.restart), taken, waiting


def _leaves(table: Mapping[str, Any], key: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*key, name))
        else:
            yield *key, name


def _changes(table: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if key not in usual:
            changed[key] = value
        elif isinstance(value, Mapping):
            if below := _changes(value, usual[key]):
                changed[key] = below
        elif value != usual[key]:
            changed[key] = value
    return changed


def _read(path: Path) -> dict[str, Any]:
    """Return the file's table with its imports merged over it."""
    table: dict[str, Any] = {}
    for file in files(path, "configuration file"):
        version = file.table.pop("version", None)
        if version != VERSION:
            found = "is missing" if version is None else f"is {version!r}"
            raise InvalidArgument(f"{file.path}: `version` {found}; this runtimed reads `version = {VERSION}`")
        try:
            _build(Config, file.table, ())
        except _BadKey as exc:
            raise InvalidArgument(f"{file.path}:{line_of(file.text, exc.key)}: {exc}") from None
        _merge(table, file.table)
    return table


def _merge(table: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = table.setdefault(key, {})
            if isinstance(below, dict):
                _merge(below, value)
                continue
        table[key] = value


class _BadKey(InvalidArgument):
    """An unknown key or a wrong value; `key` is where it stands."""

    def __init__(self, key: tuple[str, ...], problem: str) -> None:
        super().__init__(f"{dotted(key)}: {problem}")
        self.key = key


def _build(kind: Any, value: Any, key: tuple[str, ...]) -> Any:
    """Return *value*, which stands at *key*, as an instance of *kind*."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, Mapping):
            raise _BadKey(key, "must be a table")
        if unknown := [name for name in value if name not in hints]:
            raise _BadKey((*key, unknown[0]), f"unknown key; known here are {', '.join(hints)}")
        built: Any = kind(**{name: _build(hints[name], below, (*key, name)) for name, below in value.items()})
        # The default runtime stays known when a file configures another one.
        if kind is Config:
            built = replace(built, runtimes={DEFAULT_RUNTIME: Runtime(), **built.runtimes})
        if kind is Cri:
            built = replace(built, runtimes={DEFAULT_HANDLER: CriRuntime(), **built.runtimes})
        return built
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise _BadKey(key, "must be a table")
        return {name: _build(get_args(kind)[1], below, (*key, name)) for name, below in value.items()}
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _BadKey(key, f"must be a list of strings, not {value!r}")
        return tuple(value)
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str | Path):
        if not Path(value).is_absolute():
            raise _BadKey(key, f"{str(value)!r} must be an absolute path")
        return Path(value)
    if type(value) is not kind:  # bool is an int to isinstance
        raise _BadKey(key, f"must be {_KINDS[kind]}, not {value!r}")
    return value


_KINDS = {str: "a string", int: "a whole number", bool: "true or false", Path: "a path"}


def _as_table(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _as_table(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: _as_table(below) for name, below in value.items()}
    return str(value) if isinstance(value, Path) else value
