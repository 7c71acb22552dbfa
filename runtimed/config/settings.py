"""What can be set: one frozen dataclass for each table of the file, with the defaults.

docs/configuration.md is made of these and their comments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
BUILTIN = "builtin"  # a runtime whose shim is our own, forked from the warm parent
DEFAULT_RUNTIME = "io.containerd.runc.v2"
DEFAULT_HANDLER = "runc"

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "console", "json")
NRI_POLICIES = ("open", "closed", "retry")


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
class Metrics:
    """For Prometheus, at `/v1/metrics`; docs/metrics.md has the list."""

    address: str = ""  # such as 127.0.0.1:1338, or the path of a unix socket; "": nowhere


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
class BlockIoClass:
    """``[cri.block_io_classes.<name>]``: what containers get of disks whose pods name the class by annotation."""

    weight: int = 0  # 10 to 1000, beside other containers; 0: not set
    devices: tuple[str, ...] = ()  # block devices that the rates are of, such as /dev/sda
    read_bytes_per_s: int = 0  # on each of them; 0: no limit
    write_bytes_per_s: int = 0
    reads_per_s: int = 0  # operations
    writes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cri:
    """Kubernetes' Container Runtime Interface."""

    snapshotter: str = "overlayfs"
    pause_image: str = "runtimed.io/pause:latest"
    default_handler: str = DEFAULT_HANDLER  # of pods that name none
    max_log_line: int = 16384  # bytes, until a line of a log is broken
    checkpoint_images: bool = False  # may containers be restored from images? Their processes keep their old rights
    cni: Cni = Cni()
    streaming: CriStreaming = CriStreaming()
    runtimes: Mapping[str, CriRuntime] = field(default_factory=lambda: {DEFAULT_HANDLER: CriRuntime()})
    block_io_classes: Mapping[str, BlockIoClass] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nri:
    """Plugins that watch pods and containers, and change them. Docs: docs/nri.md."""

    enabled: bool = False
    socket: Path = Path("/var/run/nri/nri.sock")  # where plugins connect
    external_connections: bool = True  # may they? else there are only those that are launched
    plugin_path: Path = Path("/opt/nri/plugins")  # programs to launch, named INDEX-NAME
    config_path: Path = Path("/etc/nri/conf.d")  # for those: INDEX-NAME.conf, else NAME.conf
    registration_timeout_ms: int = 5000  # for a plugin, from its connection
    request_timeout_ms: int = 2000  # for each answer
    on_timeout: str = "open"  # go on without it; closed: what it is asked about fails; retry: ask once more first


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
    metrics: Metrics = Metrics()
    restart: Restart = Restart()
    cri: Cri = Cri()
    nri: Nri = Nri()
    registry: Registry = Registry()
    runtimes: Mapping[str, Runtime] = field(default_factory=lambda: {DEFAULT_RUNTIME: Runtime()})
    snapshotters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # checked by snapshots/loader.py
    proxy_plugins: Mapping[str, ProxyPlugin] = field(default_factory=dict)
    stream_processors: Mapping[str, StreamProcessor] = field(default_factory=dict)
    image_verification: ImageVerification = ImageVerification()
