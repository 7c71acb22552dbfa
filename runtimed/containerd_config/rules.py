"""Setting by setting, what becomes of containerd's, or why nothing does."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtimed import config
from runtimed.errors import InvalidArgument

_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}
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


class CannotError(Exception):
    """Why a setting is not taken over."""


@dataclass(slots=True)
class Work:
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


Rule = Callable[[Work, Key, Any], None]


def _to(dotted: str, convert: Callable[[Any], Any] = lambda value: value, *, is_alone: bool = True) -> Rule:
    """Take a setting over by another name; unless it *is_alone* it is for others to say whether it can be."""

    def rule(work: Work, names: Key, value: Any) -> None:
        ours = convert(value)
        if is_alone:
            only = Work()
            only.set(dotted, ours)
            try:
                config.parse(only.table)
            except InvalidArgument as exc:
                raise CannotError(str(exc)) from None
        work.set(dotted, ours)

    return rule


def _not(why: str) -> Rule:
    def rule(work: Work, names: Key, value: Any) -> None:
        if value != 0:
            raise CannotError(why)

    return rule


def _unless(usual: Any, why: str) -> Rule:
    def rule(work: Work, names: Key, value: Any) -> None:
        if value != usual:
            raise CannotError(why)

    return rule


def _milliseconds(value: Any) -> int:
    return round(seconds(value) * 1000)


def _pause_image(work: Work, names: Key, value: Any) -> None:
    if not _PAUSE.fullmatch(str(value)):  # ours, which comes with the package, does the same
        work.set("cri.pause_image", value)


def seconds(text: Any) -> float:
    """Return a duration as Go writes it (``1m30s``) in seconds. Raises CannotError."""
    if not isinstance(text, str) or not re.fullmatch(f"({_PART.pattern})+|0", text):
        raise CannotError(f"{text!r} is no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _level(value: Any) -> str:
    level = _LEVELS.get(str(value), str(value))
    if level not in config.LEVELS:
        raise CannotError(f"{value!r} is no level of ours: there are {', '.join(config.LEVELS)}")
    return level


def _percent(value: Any) -> int:
    if not isinstance(value, int | float) or not 0.01 <= value <= 0.5:
        raise CannotError("gc.pause_percent is a whole number from 1 to 50")
    return round(value * 100)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CannotError(f"{value!r} is not a whole number")
    return value


def _port(value: Any) -> int:
    if not re.fullmatch("[0-9]{1,5}", str(value)):
        raise CannotError(f"{value!r} is not the number of a port")
    return int(value)


def _proxy(work: Work, names: Key, value: Any) -> None:
    name, *setting = names
    match setting:
        case ["type"] if value != "snapshot":
            raise CannotError("a proxy plugin can only be a snapshotter")
        case ["type" | "address"]:
            work.set("proxy_plugins", work.table.get("proxy_plugins", {}))
            work.table["proxy_plugins"].setdefault(name, {})[setting[0]] = value
        case ["capabilities"]:
            work.table.setdefault("proxy_plugins", {}).setdefault(name, {})["capabilities"] = value
        case _:
            raise CannotError("of a proxy plugin type, address and capabilities are taken over")


def _processor(work: Work, names: Key, value: Any) -> None:
    name, *setting = names
    if len(setting) != 1 or setting[0] not in {"accepts", "returns", "path", "args", "env"}:
        raise CannotError("of a stream processor accepts, returns, path, args and env are taken over")
    work.table.setdefault("stream_processors", {}).setdefault(name, {})[setting[0]] = value


def _handler(work: Work, names: Key, value: Any) -> None:
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
            raise CannotError(f"of a runtime's options these are taken over: {', '.join(_OPTIONS)}")
        case _:
            raise CannotError("runtimed has no such setting for a runtime handler")


def _default_handler(work: Work, names: Key, value: Any) -> None:
    _handler(work, (config.DEFAULT_HANDLER, *names), value)  # version 1 called it that


def _systemd_cgroup(work: Work, names: Key, value: Any) -> None:
    work.systemd_cgroup = bool(value)


def _directories(work: Work, names: Key, value: Any) -> None:
    work.set("cri.cni.bin_dirs", [value] if isinstance(value, str) else value)


_OWN = "runtimed keeps files of its own, by default below /var/lib/runtimed and /run/runtimed; pull images again"
_REGISTRY = "registries are configured per host; see docs/registries.md"

RULES: dict[str, Rule] = {
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
    "metrics/address": _to("metrics.address"),
    "metrics/grpc_histogram": _not("how long calls take is always among the metrics"),
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
    "plugins/cri/containerd/default_runtime_name": _to("cri.default_handler", is_alone=False),
    "plugins/cri/containerd/runtimes/**": _handler,
    "plugins/cri/containerd/default_runtime/**": _default_handler,
    "plugins/cri/systemd_cgroup": _systemd_cgroup,
    "plugins/cri/max_container_log_line_size": _to("cri.max_log_line", _whole),
    "plugins/cri/cni/conf_dir": _to("cri.cni.conf_dir"),
    "plugins/cri/cni/bin_dir": _directories,
    "plugins/cri/cni/bin_dirs": _directories,
    "plugins/cri/registry/**": _not(_REGISTRY),
    "plugins/cri/stream_server_address": _to("cri.streaming.host"),
    "plugins/cri/stream_server_port": _to("cri.streaming.port", _port),
    "plugins/cri/x509_key_pair_streaming/tls_cert_file": _to("cri.streaming.certificate"),
    "plugins/cri/x509_key_pair_streaming/tls_key_file": _to("cri.streaming.key", is_alone=False),
    "plugins/cri/enable_tls_streaming": _not("TLS is spoken where cri.streaming.certificate is set, and only there"),
}
