"""``runtimed config migrate``: what of a containerd's configuration runtimed can take over.

Reads versions 1 to 3, with what they import. Every setting either becomes one of ours, or means nothing (it is empty,
or containerd's own default), or is told of with file and line: nothing that an administrator has set gets lost unseen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimed import config
from runtimed.config.files import files
from runtimed.containerd_config.defaults import DEFAULTS
from runtimed.containerd_config.rules import RULES, CannotError, Key, Work
from runtimed.errors import InvalidArgument

DEFAULT_PATH = Path("/etc/containerd/config.toml")

_VERSIONS = (1, 2, 3)
# Plugins by the names that they had in version 1, and where those of CRI ended up: one section for us.
_PLUGINS = {
    "io.containerd.grpc.v1.cri": "cri",
    "io.containerd.cri.v1.images": "cri",
    "io.containerd.cri.v1.runtime": "cri",
    "io.containerd.gc.v1.scheduler": "scheduler",
    "io.containerd.internal.v1.restart": "restart",
    "io.containerd.nri.v1.nri": "nri",
}
_RUNC = "io.containerd.runc.v2"
_OF_HANDLER = ("snapshotter", "pod_annotations", "container_annotations")


@dataclass(frozen=True, slots=True)
class Migrated:
    """`text` is a configuration for us; `left` has a line for each setting that is not in it, and why."""

    text: str
    left: list[str]


def migrate(path: Path) -> Migrated:
    """Return what becomes of containerd's configuration file *path*.

    Raises:
        NotFound: it, or a file it imports, is not there.
        InvalidArgument: not TOML, or of a version that is not known.
    """
    work = Work()
    left = []
    for setting in _settings(path):
        try:
            _take(work, setting.key, setting.value)
        except CannotError as exc:
            left.append(f"{setting.where}: {exc}")
    _take_handlers(work)
    built = config.parse(work.table)
    return Migrated(config.dump(built, changes_only=True), left)


@dataclass(frozen=True, slots=True)
class _Setting:
    key: Key
    value: Any
    where: str  # file, line, and the key as it stands there


def _settings(path: Path) -> Iterator[_Setting]:
    """Yield every setting, those of imported files after those of the file itself, which they replace."""
    for file in files(path, "containerd's configuration file"):
        version = file.table.pop("version", 1)
        if version not in _VERSIONS:
            problem = f"`version` is {version!r}; versions 1 to 3 of containerd's file are known"
            raise InvalidArgument(f"{file.path}: {problem}")
        for key, value in _leaves(file.table, ()):
            where = f"{file.path}:{config.line_of(file.text, key)}: {config.dotted(key)}"
            yield _Setting(_normalized(key), value, where)


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _leaves(below, (*key, name))
    else:
        yield key, value


def _normalized(key: Key) -> Key:
    if len(key) > 1 and key[0] == "plugins" and key[1] in _PLUGINS:
        return ("plugins", _PLUGINS[key[1]], *key[2:])
    return key


def _take(work: Work, key: Key, value: Any) -> None:
    """Make ours of a setting. Raises CannotError."""
    short = key[-2:]
    if value in ("", []) or (value is False and short not in DEFAULTS) or DEFAULTS.get(short) == value:
        return
    for pattern, rule in RULES.items():
        if (names := _match(pattern.split("/"), key)) is not None:
            rule(work, names, value)
            return
    if value not in (0, "0s", "0") or short in DEFAULTS:
        raise CannotError("runtimed has no such setting")


def _match(pattern: list[str], key: Key) -> Key | None:
    """Return what the stars in *pattern* stand for; None if *key* is not like it. A star at the end is all the rest."""
    names: list[str] = []
    for number, part in enumerate(pattern):
        if part == "**":
            return (*names, *key[number:])
        if number >= len(key) or part not in {"*", key[number]}:
            return None
        if part == "*":
            names.append(key[number])
    return tuple(names) if len(pattern) == len(key) else None


def _take_handlers(work: Work) -> None:
    """Make a handler, and a runtime with its options, of each that CRI had."""
    if work.systemd_cgroup:
        work.handlers.setdefault(config.DEFAULT_HANDLER, {})
    taken: dict[str, dict[str, Any]] = {}
    for name, found in work.handlers.items():
        kind = found.pop("runtime_type", _RUNC)
        handler: dict[str, Any] = {key: found.pop(key) for key in _OF_HANDLER if key in found}
        path = found.pop("runtime_path", "")
        runtime = dict(found)
        if kind == _RUNC and not path:
            runtime["systemd_cgroup"] = bool(runtime.get("systemd_cgroup") or work.systemd_cgroup)
        elif parts := [part for part in kind.split(".") if part]:
            runtime["shim"] = path or f"containerd-shim-{'-'.join(parts[-2:])}"
        # Two handlers of one type that differ are two runtimes for us.
        own = kind if taken.get(kind, runtime) == runtime else name
        taken[own] = runtime
        handler["runtime"] = own
        work.table.setdefault("runtimes", {})[own] = runtime
        work.table.setdefault("cri", {}).setdefault("runtimes", {})[name] = handler
