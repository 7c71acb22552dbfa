"""The configuration: one TOML file (and what it imports) as frozen dataclasses.

A file starts with ``version = 1``. Files named by ``imports`` (globs, relative to the importing file) are merged over
it in order: tables key by key, everything else replaced. A key that is not known is an error that names file, line and
key, so that a misspelt setting is never silently without effect.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from runtimed.errors import InvalidArgument, NotFound, os_errors

DEFAULT_PATH = Path("/etc/runtimed/config.toml")
VERSION = 1
BUILTIN = "builtin"  # a runtime whose shim is our own, forked from the warm parent
DEFAULT_RUNTIME = "io.containerd.runc.v2"
DEFAULT_HANDLER = "runc"

LEVELS = ("debug", "info", "warning", "error")
_FORMATS = ("auto", "console", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """Who may open the API's socket, which is as good as being root."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o660


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    level: str = "info"  # debug, info, warning, error; read again on SIGHUP
    format: str = "auto"  # console, json; auto is console on a terminal, json otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    count: int = 2  # processes that handle layer bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentStore:
    """Blobs: manifests, configs, compressed layers."""

    verify_on_read: bool = False  # compare each blob with its digest before it is first read, and when its file changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Gc:
    """When garbage is collected; as containerd's scheduler has it."""

    pause_percent: int = 2  # of the time that unasked collections may take
    deletion_threshold: int = 0  # so many deletions bring one at once; 0: each brings one when its time has come
    mutation_threshold: int = 100  # so many changes are like a deletion; 0: never
    schedule_delay_ms: int = 0  # before one that is asked for, or that the deletion threshold brings
    startup_delay_ms: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    interval_s: int = 600  # between two looks for what nothing explains; 0: one at the start, and on request


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryCredentials:
    """``[registry.credentials."<host>"]``: how a host gets to know us. Secrets are in files of their own, read anew."""

    username: str = ""
    password_file: str = ""
    token_file: str = ""  # an identity token, in the place of name and password
    helper: str = ""  # docker-credential-<helper>, a program on PATH, asked each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Docs: docs/registries.md."""

    # Directories of hosts.toml files, the first that knows a host counts; read anew at each pull.
    config_path: str = "/etc/runtimed/certs.d:/etc/containerd/certs.d:/etc/docker/certs.d"
    docker_config: str = "/root/.docker/config.json"  # for what docker login has stored; "": none
    connections: int = 4  # for one large layer that comes slowly by one
    foreign_layers: bool = False  # pull and push those like others, from and to registries; never by their URLs
    credentials: Mapping[str, RegistryCredentials] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The monitor of containers with the labels ``containerd.io/restart.*``."""

    interval_s: int = 10  # between two looks at all of them; 0: none is started or stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """``[runtimes."<name>"]``: what a runtime's name stands for."""

    shim: str = BUILTIN  # or a containerd shim: a name on PATH or a path
    binary: str = "runc"  # the OCI runtime: a name on PATH or a path
    root: str = ""  # where the OCI runtime keeps its state; "" is <state>/runc
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    # For shims of other kinds (runtimeoptions.v1.Options): what they read, and in which format, such as
    # "io.containerd.runsc.v1.options".
    config_path: str = ""
    config_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVerification:
    """Programs that are asked about each image before it is pulled or imported; `images/verifying.py` says how."""

    directory: str = ""  # where they lie; "": none is asked
    timeout_s: int = 10  # for each of them
    fail_closed: bool = True  # no program, or one without a verdict: the image is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlugin:
    """``[proxy_plugins.<name>]``: a snapshotter in another process, as containerd's clients know it by that name."""

    type: str = "snapshot"  # the only kind that there is
    address: str = ""  # of the socket on which it serves containerd's Snapshots service
    capabilities: tuple[str, ...] = ()  # what it says that it can do, such as "remap-ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProcessor:
    """``[stream_processors.<name>]``: a program that Diff.Apply has make one kind of layer of another."""

    accepts: tuple[str, ...] = ()  # media types
    returns: str = ""  # the media type of what comes out
    path: str = ""  # of the program, or its name on PATH
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # KEY=VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class CriRuntime:
    """``[cri.runtimes."<handler>"]``: what a pod's runtime handler stands for."""

    runtime: str = DEFAULT_RUNTIME  # one of [runtimes]
    snapshotter: str = ""  # "" is cri.snapshotter
    pod_annotations: tuple[str, ...] = ()  # globs: of a pod's annotations those that the OCI spec gets
    container_annotations: tuple[str, ...] = ()  # likewise of a container's


@dataclass(frozen=True, slots=True, kw_only=True)
class Cni:
    """How pods get their network: the first configuration in a directory, by plugins that are programs."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    plugin_limit_s: int = 60  # for one plugin; one that takes longer is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class CriStreaming:
    """Where kubelets send exec and port-forward, with URLs that this daemon has given them."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any
    certificate: str = ""  # a PEM file; "": no TLS. Read again when it changes
    key: str = ""  # its key; "": in the same file


@dataclass(frozen=True, slots=True, kw_only=True)
class Cri:
    """Kubernetes' Container Runtime Interface."""

    snapshotter: str = "overlayfs"
    pause_image: str = "runtimed.io/pause:latest"
    default_handler: str = DEFAULT_HANDLER  # of pods that name none
    max_log_line: int = 16384  # bytes, until a line of a log is broken
    cni: Cni = Cni()
    streaming: CriStreaming = CriStreaming()
    runtimes: Mapping[str, CriRuntime] = field(default_factory=lambda: {DEFAULT_HANDLER: CriRuntime()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    root: Path = Path("/var/lib/runtimed")  # survives a reboot
    state: Path = Path("/run/runtimed")  # does not
    address: str = ""  # the API's socket; "" is <state>/runtimed.sock, and load() fills it in
    default_runtime: str = DEFAULT_RUNTIME  # for containers that name none
    socket: Socket = Socket()
    log: Log = Log()
    workers: Workers = Workers()
    content: ContentStore = ContentStore()
    gc: Gc = Gc()
    doctor: Doctor = Doctor()
    restart: Restart = Restart()
    cri: Cri = Cri()
    registry: Registry = Registry()
    runtimes: Mapping[str, Runtime] = field(default_factory=lambda: {DEFAULT_RUNTIME: Runtime()})
    snapshotters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # checked by snapshots/loader.py
    proxy_plugins: Mapping[str, ProxyPlugin] = field(default_factory=dict)
    stream_processors: Mapping[str, StreamProcessor] = field(default_factory=dict)
    image_verification: ImageVerification = ImageVerification()


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
        table = _read(path or DEFAULT_PATH, ())
    _merge(table, overrides or {})
    return parse(table)


def parse(table: Mapping[str, Any]) -> Config:
    """Return what *table*, nested as a file is, says. Raises InvalidArgument."""
    return _checked(_build(Config, table, ()))


def dump(config: Config, *, changes_only: bool = False) -> str:
    """Return *config* as a file that :func:`load` reads; with *changes_only* what is as without a file is left out."""
    table = _as_table(config)
    if changes_only:
        table = _changes(table, _as_table(parse({})))
    return f"version = {VERSION}\n" + _dump_table(table, ())


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


def _read(path: Path, importers: tuple[Path, ...]) -> dict[str, Any]:
    """Return the file's table with its imports merged over it."""
    if path in importers:
        raise InvalidArgument(f"{path}: imports itself")
    if not path.exists():
        raise NotFound(f"configuration file {path}: no such file; `runtimed config default` prints one to start from")
    with os_errors(f"configuration file {path}"):
        data = path.read_bytes()
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{path}: not TOML: {exc}") from None
    version = table.pop("version", None)
    if version != VERSION:
        found = "is missing" if version is None else f"is {version!r}"
        raise InvalidArgument(f"{path}: `version` {found}; this runtimed reads `version = {VERSION}`")
    imports = table.pop("imports", [])
    if not isinstance(imports, list) or not all(isinstance(pattern, str) for pattern in imports):
        raise InvalidArgument(f"{path}:{line_of(text, ('imports',))}: imports: must be a list of file names")
    try:
        _build(Config, table, ())
    except _BadKey as exc:
        raise InvalidArgument(f"{path}:{line_of(text, exc.key)}: {exc}") from None
    for pattern in imports:
        for imported in matching(path.parent, pattern):
            _merge(table, _read(imported, (*importers, path)))
    return table


def matching(directory: Path, pattern: str) -> list[Path]:
    """Return the files that *pattern* names, in order; a pattern without wildcards names one, be it there or not."""
    if not any(wild in pattern for wild in "*?["):
        return [directory / pattern]
    whole = directory / pattern
    return sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))


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


def _checked(config: Config) -> Config:
    """Return *config* with what depends on other settings filled in. Raises InvalidArgument."""
    config = replace(config, address=config.address or str(config.state / "runtimed.sock"))
    if config.log.level not in LEVELS:
        raise InvalidArgument(f"log.level: {config.log.level!r} is not one of {', '.join(LEVELS)}")
    if config.log.format not in _FORMATS:
        raise InvalidArgument(f"log.format: {config.log.format!r} is not one of {', '.join(_FORMATS)}")
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
    return config


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


def _as_table(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _as_table(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: _as_table(below) for name, below in value.items()}
    return str(value) if isinstance(value, Path) else value


def _dump_table(table: Mapping[str, Any], key: tuple[str, ...]) -> str:
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{dotted((name,))} = {dump_value(value, name)}\n" for name, value in plain.items()]
    if key and (plain or not table):
        lines.insert(0, f"\n[{dotted(key)}]\n")
    below = [(name, value) for name, value in table.items() if isinstance(value, Mapping)]
    return "".join(lines) + "".join(_dump_table(value, (*key, name)) for name, value in below)


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
