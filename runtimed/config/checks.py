"""What a setting's kind does not say of it: ranges, paths, and what must fit to what."""

import ipaddress
import os
import re
from dataclasses import replace

from runtimed.config.settings import (
    BUILTIN,
    FORMATS,
    LEVELS,
    NRI_POLICIES,
    BlockIoClass,
    Config,
    Nri,
    ProxyPlugin,
    Registry,
    Runtime,
)
from runtimed.config.toml import dotted
from runtimed.errors import InvalidArgument

_LONGEST_SOCKET = 107  # bytes of a path: unix(7)


def checked(config: Config) -> Config:
    """Return *config* with what depends on other settings filled in. Raises InvalidArgument."""
    config = replace(config, address=config.address or str(config.state / "runtimed.sock"))
    if config.log.level not in LEVELS:
        raise InvalidArgument(f"log.level: {config.log.level!r} is not one of {', '.join(LEVELS)}")
    if config.log.format not in FORMATS:
        raise InvalidArgument(f"log.format: {config.log.format!r} is not one of {', '.join(FORMATS)}")
    if not 1 <= config.workers.count <= 64:
        raise InvalidArgument(f"workers.count: {config.workers.count} is not between 1 and 64")
    if not 1 <= config.gc.pause_percent <= 50:
        raise InvalidArgument(f"gc.pause_percent: {config.gc.pause_percent} is not between 1 and 50")
    for name in ("deletion_threshold", "mutation_threshold", "schedule_delay_ms", "startup_delay_ms"):
        if getattr(config.gc, name) < 0:
            raise InvalidArgument(f"gc.{name}: must not be negative")
    for name in ("doctor", "restart"):
        if getattr(config, name).interval_s < 0:
            raise InvalidArgument(f"{name}.interval_s: must not be negative")
    if not 0 <= config.socket.mode <= 0o777:
        raise InvalidArgument(f"socket.mode: {config.socket.mode:#o} is not a file mode such as 0o660")
    if min(config.socket.uid, config.socket.gid) < 0:
        raise InvalidArgument("socket.uid, socket.gid: must not be negative")
    if not config.address.startswith("/"):
        raise InvalidArgument(f"address: {config.address!r} must be the absolute path of a unix socket")
    if config.metrics.address:
        _check_metrics(config.metrics.address)
    _check_registry(config.registry)
    for name, processor in config.stream_processors.items():
        for what in ("accepts", "returns", "path"):
            if not getattr(processor, what):
                raise InvalidArgument(f"stream_processors.{dotted((name,))}.{what}: must be given")
    for name, runtime in config.runtimes.items():
        _check_runtime(f"runtimes.{dotted((name,))}", runtime)
    if config.image_verification.directory and not config.image_verification.directory.startswith("/"):
        raise InvalidArgument(f"image_verification.directory: {config.image_verification.directory!r} must be absolute")
    if not 1 <= config.image_verification.timeout_s <= 600:
        raise InvalidArgument(f"image_verification.timeout_s: {config.image_verification.timeout_s} is not 1 to 600")
    for name, plugin in config.proxy_plugins.items():
        _check_proxy(f"proxy_plugins.{dotted((name,))}", plugin)
    _check_cri(config)
    _check_nri(config.nri)
    return config


def _check_nri(nri: Nri) -> None:
    _check_socket("nri.socket", str(nri.socket))
    if nri.on_timeout not in NRI_POLICIES:
        raise InvalidArgument(f"nri.on_timeout: {nri.on_timeout!r} is not one of {', '.join(NRI_POLICIES)}")
    for name in ("registration_timeout_ms", "request_timeout_ms"):
        if not 1 <= getattr(nri, name) <= 600_000:
            raise InvalidArgument(f"nri.{name}: {getattr(nri, name)} is not between 1 and 600000")


def _check_socket(key: str, path: str) -> None:
    length = len(os.fsencode(path))
    if length > _LONGEST_SOCKET:
        raise InvalidArgument(f"{key}: {path} has {length} bytes, {_LONGEST_SOCKET} fit: give a shorter path")


def _check_metrics(address: str) -> None:
    if address.startswith("/"):
        _check_socket("metrics.address", address)
        return
    host, _, port = address.rpartition(":")
    try:
        is_fine = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 1 << 16
    except ValueError:
        is_fine = False
    if not is_fine:
        raise InvalidArgument(
            f"metrics.address: {address!r} is neither the absolute path of a unix socket nor a port of this machine"
            " alone, such as 127.0.0.1:1338; who asks from elsewhere needs a proxy that knows him"
        )


def _check_proxy(key: str, plugin: ProxyPlugin) -> None:
    if plugin.type != "snapshot":
        raise InvalidArgument(f'{key}.type: {plugin.type!r} is not supported; only "snapshot" is')
    if not plugin.address.startswith("/"):
        raise InvalidArgument(f"{key}.address: {plugin.address!r} must be the absolute path of a unix socket")


def _check_cri(config: Config) -> None:
    cri = config.cri
    if cri.default_handler not in cri.runtimes:
        raise InvalidArgument(
            f"cri.default_handler: {cri.default_handler!r} is none of cri.runtimes: {', '.join(cri.runtimes)}"
        )
    for name, handler in cri.runtimes.items():
        if handler.runtime not in config.runtimes:
            raise InvalidArgument(f"cri.runtimes.{dotted((name,))}.runtime: {handler.runtime!r} is not among runtimes")
    for name, io_class in cri.block_io_classes.items():
        _check_block_io(f"cri.block_io_classes.{dotted((name,))}", io_class)
    if any(not path.startswith("/") for path in cri.cni.bin_dirs):
        raise InvalidArgument("cri.cni.bin_dirs: must be absolute paths")
    if cri.max_log_line < 256 or cri.max_log_line > 1 << 20:
        raise InvalidArgument(f"cri.max_log_line: {cri.max_log_line} is not between 256 and 1048576 bytes")
    if cri.streaming.key and not cri.streaming.certificate:
        raise InvalidArgument("cri.streaming.key: there is no cri.streaming.certificate, so TLS would not be spoken")
    if any(path and not path.startswith("/") for path in (cri.streaming.certificate, cri.streaming.key)):
        raise InvalidArgument("cri.streaming.certificate, cri.streaming.key: must be absolute paths")
    if not 0 <= cri.streaming.port < 1 << 16:
        raise InvalidArgument(f"cri.streaming.port: {cri.streaming.port} is not between 0 and 65535")
    if cri.cni.plugin_limit_s < 1:
        raise InvalidArgument("cri.cni.plugin_limit_s: must be at least 1")


def _check_block_io(key: str, io_class: BlockIoClass) -> None:
    rates = (io_class.read_bytes_per_s, io_class.write_bytes_per_s, io_class.reads_per_s, io_class.writes_per_s)
    if io_class.weight and not 10 <= io_class.weight <= 1000:
        raise InvalidArgument(f"{key}.weight: {io_class.weight} is not between 10 and 1000")
    if any(rate < 0 for rate in rates):
        raise InvalidArgument(f"{key}: a rate must not be negative")
    if any(rates) != bool(io_class.devices):
        raise InvalidArgument(f"{key}: rates are of devices: set both, or neither")
    if any(not path.startswith("/dev/") for path in io_class.devices):
        raise InvalidArgument(f"{key}.devices: must be paths below /dev")


def _check_registry(registry: Registry) -> None:
    if not 1 <= registry.connections <= 16:
        raise InvalidArgument(f"registry.connections: {registry.connections} is not between 1 and 16")
    for directory in filter(None, registry.config_path.split(":")):
        if not directory.startswith("/"):
            raise InvalidArgument(f"registry.config_path: {directory!r} must be an absolute path")
    paths = [("registry.docker_config", registry.docker_config)]
    for host, given in registry.credentials.items():
        key = dotted(("registry", "credentials", host))
        if "/" in host or not host:
            raise InvalidArgument(f"{key}: {host!r} is not a host, with or without a port")
        if sum(map(bool, (given.username or given.password_file, given.token_file, given.helper))) != 1:
            raise InvalidArgument(f"{key}: give username and password_file, or token_file, or helper")
        if bool(given.username) != bool(given.password_file):
            raise InvalidArgument(f"{key}: username and password_file go together")
        if given.helper and not re.fullmatch(r"[A-Za-z0-9._-]+", given.helper):
            raise InvalidArgument(f"{key}.helper: {given.helper!r} must be what follows docker-credential-")
        paths += [(f"{key}.password_file", given.password_file), (f"{key}.token_file", given.token_file)]
    for key, path in paths:
        if path and not path.startswith("/"):
            raise InvalidArgument(f"{key}: {path!r} must be an absolute path")


def _check_runtime(key: str, runtime: Runtime) -> None:
    for what, program in (("shim", runtime.shim), ("binary", runtime.binary)):
        if not program or ("/" in program and not program.startswith("/")):
            raise InvalidArgument(
                f"{key}.{what}: {program!r} must be the name of a program on PATH or an absolute path"
            )
    for what, path in (("root", runtime.root), ("config_path", runtime.config_path)):
        if path and not path.startswith("/"):
            raise InvalidArgument(f"{key}.{what}: {path!r} must be an absolute path")
    if runtime.config_type and not runtime.config_path:
        raise InvalidArgument(f"{key}.config_type: there is no config_path that it could be the type of")
    if runtime.config_path and runtime.shim == BUILTIN:
        raise InvalidArgument(f"{key}.config_path: the built-in shim reads no such file; set shim to the one that does")
