"""What of a containerd's configuration runtimed can take over (``runtimed config migrate``), and what it cannot.

Reads versions 1 to 3, with what they import. Every setting either becomes one of ours, or means nothing (it is empty,
or containerd's own default), or is told of with file and line: nothing that an administrator has set gets lost unseen.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtimed import config
from runtimed.errors import InvalidArgument, NotFound, os_errors

DEFAULT_PATH = Path("/etc/containerd/config.toml")

_VERSIONS = (1, 2, 3)
_CRI = ("plugins", "cri")
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
_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}
_OF_HANDLER = ("snapshotter", "pod_annotations", "container_annotations")
_OPTIONS = {
    "BinaryName": "binary",
    "Root": "root",
    "SystemdCgroup": "systemd_cgroup",
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ConfigPath": "config_path",
    "TypeUrl": "config_type",
}
_PAUSE = re.compile(r"(registry\.k8s\.io|k8s\.gcr\.io)/pause:[0-9.]+")  # the default of one version or another
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")  # of a duration

Key = tuple[str, ...]


class _CannotError(Exception):
    """Why a setting is not taken over."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """`text` is a configuration for us; `left` has a line for each setting that is not in it, and why."""

    text: str
    left: list[str]


@dataclass(slots=True)
class _Work:
    """What has been made of the settings so far: ours, as in a file, and what is known of CRI's runtime handlers."""

    table: dict[str, Any] = field(default_factory=dict)
    handlers: dict[str, dict[str, Any]] = field(default_factory=dict)
    systemd_cgroup: bool = False

    def set(self, dotted: str, value: Any) -> None:
        *tables, name = dotted.split(".")
        below = self.table
        for table in tables:
            below = below.setdefault(table, {})
        below[name] = value


def migrate(path: Path) -> Migrated:
    """Return what becomes of containerd's configuration file *path*.

    Raises:
        NotFound: it, or a file it imports, is not there.
        InvalidArgument: not TOML, or of a version that is not known.
    """
    work = _Work()
    left = []
    for setting in _settings(path, ()):
        try:
            _take(work, setting.key, setting.value)
        except _CannotError as exc:
            left.append(f"{setting.where}: {exc}")
    _take_handlers(work)
    built = config.parse(work.table)
    return Migrated(config.dump(built, changes_only=True), left)


@dataclass(frozen=True, slots=True)
class _Setting:
    key: Key
    value: Any
    where: str  # file, line, and the key as it stands there


def _settings(path: Path, importers: tuple[Path, ...]) -> Iterator[_Setting]:
    """Yield every setting, those of imported files after those of the file itself, which they replace."""
    if path in importers:
        raise InvalidArgument(f"{path}: imports itself")
    if not path.exists():
        raise NotFound(f"containerd's configuration file {path}: no such file")
    with os_errors(f"containerd's configuration file {path}"):
        data = path.read_bytes()
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{path}: not TOML: {exc}") from None
    version = table.pop("version", 1)
    if version not in _VERSIONS:
        raise InvalidArgument(f"{path}: `version` is {version!r}; versions 1 to 3 of containerd's file are known")
    imports = table.pop("imports", [])
    for key, value in _leaves(table, ()):
        line = config.line_of(text, key)
        yield _Setting(_normalized(key), value, f"{path}:{line}: {config.dotted(key)}")
    for pattern in imports if isinstance(imports, list) else []:
        for imported in config.matching(path.parent, str(pattern)):
            yield from _settings(imported, (*importers, path))


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


def _take(work: _Work, key: Key, value: Any) -> None:
    """Make ours of a setting. Raises _CannotError."""
    short = key[-2:]
    if value in ("", []) or (value is False and short not in _DEFAULTS) or _DEFAULTS.get(short) == value:
        return
    for pattern, rule in _RULES.items():
        if (names := _match(pattern.split("/"), key)) is not None:
            rule(work, names, value)
            return
    if value not in (0, "0s", "0") or short in _DEFAULTS:
        raise _CannotError("runtimed has no such setting")


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


Rule = Callable[[_Work, Key, Any], None]


def _to(dotted: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    def rule(work: _Work, names: Key, value: Any) -> None:
        work.set(dotted, convert(value))

    return rule


def _not(why: str) -> Rule:
    def rule(work: _Work, names: Key, value: Any) -> None:
        if value != 0:
            raise _CannotError(why)

    return rule


def _unless(usual: Any, why: str) -> Rule:
    def rule(work: _Work, names: Key, value: Any) -> None:
        if value != usual:
            raise _CannotError(why)

    return rule


def _milliseconds(value: Any) -> int:
    return round(seconds(value) * 1000)


def _pause_image(work: _Work, names: Key, value: Any) -> None:
    if not _PAUSE.fullmatch(str(value)):  # ours, which comes with the package, does the same
        work.set("cri.pause_image", value)


def seconds(text: Any) -> float:
    """Return a duration as Go writes it (``1m30s``) in seconds. Raises _CannotError."""
    if not isinstance(text, str) or not re.fullmatch(f"({_PART.pattern})+|0", text):
        raise _CannotError(f"{text!r} is no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _level(value: Any) -> str:
    level = _LEVELS.get(str(value), str(value))
    if level not in config.LEVELS:
        raise _CannotError(f"{value!r} is no level of ours: there are {', '.join(config.LEVELS)}")
    return level


def _percent(value: Any) -> int:
    if not isinstance(value, int | float) or not 0.01 <= value <= 0.5:
        raise _CannotError("gc.pause_percent is a whole number from 1 to 50")
    return round(value * 100)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _CannotError(f"{value!r} is not a whole number")
    return value


def _proxy(work: _Work, names: Key, value: Any) -> None:
    name, *setting = names
    match setting:
        case ["type"] if value != "snapshot":
            raise _CannotError("a proxy plugin can only be a snapshotter")
        case ["type" | "address"]:
            work.set("proxy_plugins", work.table.get("proxy_plugins", {}))
            work.table["proxy_plugins"].setdefault(name, {})[setting[0]] = value
        case ["capabilities"]:
            work.table.setdefault("proxy_plugins", {}).setdefault(name, {})["capabilities"] = value
        case _:
            raise _CannotError("of a proxy plugin type, address and capabilities are taken over")


def _processor(work: _Work, names: Key, value: Any) -> None:
    name, *setting = names
    if len(setting) != 1 or setting[0] not in {"accepts", "returns", "path", "args", "env"}:
        raise _CannotError("of a stream processor accepts, returns, path, args and env are taken over")
    work.table.setdefault("stream_processors", {}).setdefault(name, {})[setting[0]] = value


def _handler(work: _Work, names: Key, value: Any) -> None:
    name, *setting = names
    handler = work.handlers.setdefault(name, {})
    match setting:
        case ["runtime_type" | "snapshotter" | "pod_annotations" | "container_annotations" | "runtime_path"]:
            handler[setting[0]] = value
        case ["runtime_engine"]:
            handler["binary"] = value
        case ["runtime_root"]:
            handler["root"] = value
        case _ if value == 0 or (setting == ["sandboxer"] and value == "podsandbox"):
            return
        case ["options", option] if option in _OPTIONS:
            handler[_OPTIONS[option]] = value
        case ["options", _]:
            raise _CannotError(f"of a runtime's options these are taken over: {', '.join(_OPTIONS)}")
        case _:
            raise _CannotError("runtimed has no such setting for a runtime handler")


def _default_handler(work: _Work, names: Key, value: Any) -> None:
    _handler(work, (config.DEFAULT_HANDLER, *names), value)  # version 1 called it that


def _systemd_cgroup(work: _Work, names: Key, value: Any) -> None:
    work.systemd_cgroup = bool(value)


def _directories(work: _Work, names: Key, value: Any) -> None:
    work.set("cri.cni.bin_dirs", [value] if isinstance(value, str) else value)


def _take_handlers(work: _Work) -> None:
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


_OWN = "runtimed keeps files of its own, by default below /var/lib/runtimed and /run/runtimed; pull images again"
_REGISTRY = "registries are configured per host; see docs/registries.md"

_RULES: dict[str, Rule] = {
    "root": _unless("/var/lib/containerd", _OWN),
    "state": _unless("/run/containerd", _OWN),
    "grpc/address": _to("address"),
    "grpc/uid": _to("socket.uid", _whole),
    "grpc/gid": _to("socket.gid", _whole),
    "grpc/max_recv_message_size": _unless(16 << 20, "messages are limited to 16 MiB"),
    "grpc/max_send_message_size": _unless(16 << 20, "messages are limited to 16 MiB"),
    "grpc/**": _not("the API is served on a unix socket only"),
    "ttrpc/address": _not("ttrpc is served beside the socket, with `.ttrpc` behind its name"),
    "ttrpc/**": _not("the ttrpc socket belongs to whom the API's socket belongs to"),
    "debug/level": _to("log.level", _level),
    "debug/format": _to("log.format", lambda value: {"text": "console"}.get(value, value)),
    "debug/**": _not("there is no debug socket"),
    "metrics/**": _not("metrics are not served over HTTP yet"),
    "oom_score": _not("set OOMScoreAdjust= in the systemd unit instead"),
    "disabled_plugins": _not("the parts of runtimed cannot be switched off one by one"),
    "required_plugins": _not("all parts of runtimed are required"),
    "plugin_dir": _not("Go plugins cannot be loaded; a snapshotter can be a proxy plugin or a Python package"),
    "stream_processors/**": _processor,
    "cgroup/path": _not("set Slice= in the systemd unit instead"),
    "proxy_plugins/**": _proxy,
    "plugins/scheduler/pause_threshold": _to("gc.pause_percent", _percent),
    "plugins/scheduler/deletion_threshold": _to("gc.deletion_threshold", _whole),
    "plugins/scheduler/mutation_threshold": _to("gc.mutation_threshold", _whole),
    "plugins/scheduler/schedule_delay": _to("gc.schedule_delay_ms", _milliseconds),
    "plugins/scheduler/startup_delay": _to("gc.startup_delay_ms", _milliseconds),
    "plugins/restart/interval": _to("restart.interval_s", lambda value: max(1, round(seconds(value)))),
    "plugins/nri/disable": _to("nri.enabled", lambda value: not value),
    "plugins/nri/disable_connections": _to("nri.external_connections", lambda value: not value),
    "plugins/nri/plugin_config_path": _to("nri.config_path"),
    "plugins/nri/plugin_path": _to("nri.plugin_path"),
    "plugins/nri/plugin_registration_timeout": _to("nri.registration_timeout_ms", _milliseconds),
    "plugins/nri/plugin_request_timeout": _to("nri.request_timeout_ms", _milliseconds),
    "plugins/nri/socket_path": _to("nri.socket"),
    "plugins/nri/default_validator/**": _not("there is no default validator; a plugin can do what it does"),
    "plugins/cri/sandbox_image": _pause_image,
    "plugins/cri/pinned_images/sandbox": _pause_image,
    "plugins/cri/snapshotter": _to("cri.snapshotter"),
    "plugins/cri/containerd/snapshotter": _to("cri.snapshotter"),
    "plugins/cri/containerd/default_runtime_name": _to("cri.default_handler"),
    "plugins/cri/containerd/runtimes/**": _handler,
    "plugins/cri/containerd/default_runtime/**": _default_handler,
    "plugins/cri/systemd_cgroup": _systemd_cgroup,
    "plugins/cri/max_container_log_line_size": _to("cri.max_log_line", _whole),
    "plugins/cri/cni/conf_dir": _to("cri.cni.conf_dir"),
    "plugins/cri/cni/bin_dir": _directories,
    "plugins/cri/cni/bin_dirs": _directories,
    "plugins/cri/registry/**": _not(_REGISTRY),
}

# What `containerd config default` prints that is neither empty nor ours: by the last two parts of a plugin's key.
_DEFAULTS: dict[Key, Any] = {
    ("timeouts", "io.containerd.timeout.bolt.open"): "0s",
    ("timeouts", "io.containerd.timeout.cri.defercleanup"): "1m0s",
    ("timeouts", "io.containerd.timeout.metrics.shimstats"): "2s",
    ("timeouts", "io.containerd.timeout.shim.cleanup"): "5s",
    ("timeouts", "io.containerd.timeout.shim.load"): "5s",
    ("timeouts", "io.containerd.timeout.shim.shutdown"): "3s",
    ("timeouts", "io.containerd.timeout.task.state"): "2s",
    ("nri", "disable"): True,
    ("cri", "cdi_spec_dirs"): ["/etc/cdi", "/var/run/cdi"],
    ("cri", "disable_hugetlb_controller"): True,
    ("cri", "disable_snapshot_annotations"): True,
    ("cri", "disable_tcp_service"): True,
    ("cri", "enable_cdi"): True,
    ("cri", "image_pull_progress_timeout"): "5m0s",
    ("cri", "max_concurrent_downloads"): 3,
    ("cri", "selinux_category_range"): 1024,
    ("cri", "stats_collect_period"): 10,
    ("cri", "stream_idle_timeout"): "4h0m0s",
    ("cri", "stream_server_address"): "127.0.0.1",
    ("cri", "stream_server_port"): "0",
    ("cri", "tolerate_missing_hugetlb_controller"): True,
    ("cni", "bin_dir"): "/opt/cni/bin",
    ("cni", "bin_dirs"): ["/opt/cni/bin"],
    ("cni", "max_conf_num"): 1,
    ("containerd", "disable_snapshot_annotations"): True,
    ("image_decryption", "key_model"): "node",
    ("registry", "config_path"): "/etc/containerd/certs.d:/etc/docker/certs.d",
    ("io.containerd.image-verifier.v1.bindir", "bin_dir"): "/opt/containerd/image-verifier/bin",
    ("io.containerd.image-verifier.v1.bindir", "max_verifiers"): 10,
    ("io.containerd.image-verifier.v1.bindir", "per_verifier_timeout"): "10s",
    ("io.containerd.internal.v1.opt", "path"): "/opt/containerd",
    ("io.containerd.metadata.v1.bolt", "content_sharing_policy"): "shared",
    ("io.containerd.nri.v1.nri", "plugin_config_path"): "/etc/nri/conf.d",
    ("io.containerd.nri.v1.nri", "plugin_path"): "/opt/nri/plugins",
    ("io.containerd.nri.v1.nri", "plugin_registration_timeout"): "5s",
    ("io.containerd.nri.v1.nri", "plugin_request_timeout"): "2s",
    ("io.containerd.nri.v1.nri", "socket_path"): "/var/run/nri/nri.sock",
    ("io.containerd.runtime.v1.linux", "runtime"): "runc",
    ("io.containerd.runtime.v1.linux", "shim"): "containerd-shim",
    ("io.containerd.runtime.v2.task", "platforms"): ["linux/amd64"],
    ("io.containerd.service.v1.diff-service", "default"): ["walking"],
}
