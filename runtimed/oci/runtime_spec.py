"""The OCI runtime spec, as far as we write it: config.json of a bundle, part by part."""

import msgspec

TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"


class _Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A part of config.json. What has its default is left out, so a field that must always be there has none."""


class User(_Struct, frozen=True, kw_only=True):
    """Who the process runs as, in numbers (OCI runtime-spec config.md, "POSIX-platform User")."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()


ROOT = User(uid=0, gid=0)


class ConsoleSize(_Struct, frozen=True, kw_only=True):
    """Rows and columns of the terminal."""

    height: int
    width: int


class Capabilities(_Struct, frozen=True, kw_only=True):
    """Inheritable are only those that are asked for as ambient ones, which need it: a program with file capabilities
    would take them over (CVE-2022-24769)."""

    bounding: tuple[str, ...]
    effective: tuple[str, ...]
    permitted: tuple[str, ...]
    inheritable: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(_Struct, frozen=True, kw_only=True):
    type: str
    hard: int
    soft: int


class Process(_Struct, frozen=True, kw_only=True):
    """The init process (config.md, "Process")."""

    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None


class Root(_Struct, frozen=True, kw_only=True):
    path: str
    readonly: bool = False


class IdMapping(_Struct, frozen=True, kw_only=True):
    """*size* IDs from *container_id* on, in a user namespace, which are those from *host_id* on outside."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class Mount(_Struct, frozen=True, kw_only=True):
    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Namespace(_Struct, frozen=True, kw_only=True):
    type: str
    path: str = ""


class DeviceRule(_Struct, frozen=True, kw_only=True):
    """A line of the cgroup's device list; major and minor left out mean all."""

    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str


class Memory(_Struct, frozen=True, kw_only=True):
    limit: int | None = None  # bytes
    swap: int | None = None  # bytes, memory included


class Cpu(_Struct, frozen=True, kw_only=True):
    shares: int | None = None
    quota: int | None = None  # microseconds in a period
    period: int | None = None  # microseconds
    cpus: str = ""
    mems: str = ""


class Pids(_Struct, frozen=True, kw_only=True):
    limit: int


class HugepageLimit(_Struct, frozen=True, kw_only=True):
    page_size: str  # as the kernel names the file: 2MB, 1GB
    limit: int  # bytes


class WeightDevice(_Struct, frozen=True, kw_only=True):
    major: int
    minor: int
    weight: int


class ThrottleDevice(_Struct, frozen=True, kw_only=True):
    major: int
    minor: int
    rate: int  # bytes or operations a second


class BlockIo(_Struct, frozen=True, kw_only=True):
    """config-linux.md, "Block IO"."""

    weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleReadBpsDevice")
    throttle_write_bps: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleWriteBpsDevice")
    throttle_read_iops: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleReadIOPSDevice")
    throttle_write_iops: tuple[ThrottleDevice, ...] = msgspec.field(default=(), name="throttleWriteIOPSDevice")


class Limits(_Struct, frozen=True, kw_only=True):
    """What a container may use; a limit that is None is not set, or not changed."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = msgspec.field(default_factory=dict)  # files of cgroup v2, written as they are
    block_io: BlockIo | None = msgspec.field(default=None, name="blockIO")


class Resources(Limits, frozen=True, kw_only=True):
    devices: tuple[DeviceRule, ...]


class Device(_Struct, frozen=True, kw_only=True):
    """A device node to make in the container (config-linux.md, "Devices")."""

    path: str
    type: str
    major: int
    minor: int
    file_mode: int
    uid: int
    gid: int


class SyscallArg(_Struct, frozen=True, kw_only=True):
    """A condition on an argument of a system call, for the rule to apply."""

    index: int
    value: int
    value_two: int = 0
    op: str


class Syscalls(_Struct, frozen=True, kw_only=True):
    """A rule of a seccomp filter."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SyscallArg, ...] = ()


class Seccomp(_Struct, frozen=True, kw_only=True):
    """config-linux.md, "Seccomp"."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[Syscalls, ...] = ()


class IntelRdt(_Struct, frozen=True, kw_only=True):
    clos_id: str = msgspec.field(name="closID")


class Linux(_Struct, frozen=True, kw_only=True):
    namespaces: tuple[Namespace, ...]
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str
    resources: Resources
    sysctl: dict[str, str] = msgspec.field(default_factory=dict)
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None


class Hook(_Struct, frozen=True, kw_only=True):
    """A program of the host that the runtime calls (config.md, "POSIX-platform Hooks")."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None  # seconds


class Hooks(_Struct, frozen=True, kw_only=True):
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Spec(_Struct, frozen=True, kw_only=True):
    """config.json of a bundle."""

    oci_version: str = msgspec.field(name="ociVersion")
    process: Process
    root: Root
    hostname: str = ""
    mounts: tuple[Mount, ...]
    linux: Linux
    hooks: Hooks | None = None
    annotations: dict[str, str] = msgspec.field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the spec as JSON."""
        return msgspec.json.encode(self)
