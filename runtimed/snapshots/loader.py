"""From entry points and configuration tables to snapshotters.

A snapshotter is an entry point of the group ``runtimed.snapshotters``: its name is what clients call it, its object a
class that keeps the contract of :class:`runtimed.snapshots.snapshotter.Snapshotter`. Or it is a process of its own,
which the configuration names (``[proxy_plugins]``).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import msgspec

from runtimed import identifiers
from runtimed.config import ProxyPlugin
from runtimed.errors import InvalidArgument
from runtimed.snapshots.snapshotter import NotSupported, Snapshotter

log = logging.getLogger(__name__)

GROUP = "runtimed.snapshotters"

# What clients look for in a plugin's error: with it they take the plugin as absent, without it the daemon as broken.
_SKIP = "skip plugin"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshotter that is installed, and either the thing itself or why it cannot be used here."""

    name: str
    snapshotter: Snapshotter | None
    error: str = ""


def load(
    root: Path,
    tables: Mapping[str, Mapping[str, Any]],
    installed: Iterable[EntryPoint] | None = None,
    proxies: Mapping[str, ProxyPlugin] | None = None,
) -> dict[str, Loaded]:
    """Make every installed snapshotter on ``root/<name>``, configured by its table; return them by name.

    *tables* is the ``[snapshotters]`` table of the configuration. *installed* replaces the entry points of this
    Python. *proxies* are those behind a socket, which need not be there yet. Whoever calls closes the snapshotters.
    Blocks while they open their stores.

    Raises:
        InvalidArgument: a table for a snapshotter that is not installed, an unknown key, a value of the wrong type, a
            name that two have. Nothing is left open then.
    """
    found = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    proxies = proxies or {}
    for name in proxies:
        identifiers.validate(name, "snapshotter name")
        if name in found:
            raise InvalidArgument(f"proxy_plugins.{name}: a snapshotter of that name is installed; choose another")
    for name in tables:
        if name not in found:
            raise InvalidArgument(
                f"snapshotters.{name}: no such snapshotter is installed; there are {', '.join(sorted(found)) or 'none'}"
            )
    # All are imported and configured before one is made: a mistake in the configuration is all that is heard of then.
    makers = {name: _maker(root, name, point, tables.get(name, {})) for name, point in sorted(found.items())}
    loaded: dict[str, Loaded] = {}
    try:
        for name, make in makers.items():
            loaded[name] = make()
        for name, proxy in proxies.items():
            from runtimed.snapshots.proxy import ProxySnapshotter  # here: it loads grpc, 25 ms of the daemon's start

            loaded[name] = Loaded(name, ProxySnapshotter(name, proxy.address, proxy.capabilities))
    except BaseException:
        close(loaded)
        raise
    return loaded


def close(loaded: Mapping[str, Loaded]) -> None:
    """Close every snapshotter that was made."""
    for one in loaded.values():
        if one.snapshotter is not None:
            one.snapshotter.close()


def _maker(root: Path, name: str, point: EntryPoint, table: Mapping[str, Any]) -> Callable[[], Loaded]:
    try:
        identifiers.validate(name, "snapshotter name")
        cls = point.load()
    except Exception as exc:
        log.exception("snapshotter cannot be imported", extra={"snapshotter": name})
        failed = Loaded(name, None, f"snapshotter {name}: {point.value}: {exc}")
        return lambda: failed
    config = configure(cls.Config, table, f"snapshotters.{name}")
    return lambda: _made(name, lambda: cls(root / name, config))


def _made(name: str, make: Callable[[], Snapshotter]) -> Loaded:
    try:
        return Loaded(name, make())
    except NotSupported as exc:
        log.info("snapshotter is not supported here", extra={"snapshotter": name, "error": str(exc)})
        return Loaded(name, None, f"{exc}: {_SKIP}")
    except Exception as exc:  # somebody else's code: its failure must cost its snapshotter only
        log.exception("snapshotter cannot be started", extra={"snapshotter": name})
        return Loaded(name, None, f"snapshotter {name}: {exc}")


def configure(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """Return the dataclass *cls* filled from *table*, which stands at *where* in the configuration.

    Raises:
        InvalidArgument: an unknown key, by its full name, or a value of the wrong type.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{where}.{key}: unknown key; known are: {', '.join(known) or 'none'}")
    try:
        return msgspec.convert(dict(table), cls)
    except msgspec.ValidationError as exc:
        raise InvalidArgument(f"{where}: {exc}") from None
