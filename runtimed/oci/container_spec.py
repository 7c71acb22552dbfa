"""From an image's config and the user's options to a container's runtime spec.

The result is what containerd's clients make by default on Linux: own pid, ipc, uts, mount and network namespaces, the
fourteen capabilities that Docker gives, no new privileges, masked and read-only kernel files, no devices but the
runtime's standard ones. There is no seccomp profile: the default one comes with the CRI, which is where Kubernetes asks
for it by name. Nothing in an image becomes an annotation, a hook or a mount.
"""

import posixpath
from collections.abc import Iterable, Sequence

import msgspec

from runtimed.errors import InvalidArgument
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import (
    ROOT,
    Capabilities,
    ConsoleSize,
    Cpu,
    Device,
    DeviceRule,
    Limits,
    Linux,
    Memory,
    Mount,
    Namespace,
    Pids,
    Process,
    Resources,
    Rlimit,
    Root,
    Spec,
    User,
)

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
# capabilities(7), in the kernel's order, up to CAP_CHECKPOINT_RESTORE (5.9).
_CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
    SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITIES.split())

# What tells about the host, or lets it be changed, although it is not namespaced.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",  # energy readings are a side channel (CVE-2020-8694)
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_CPU_PERIOD_US = 100_000
_MIN_CPU_QUOTA_US = 1000  # the kernel's minimum
_MIN_MEMORY = 6 << 20  # bytes; less does not suffice for the runtime's own start, as Docker found


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asks for beyond, or instead of, what the image says."""

    args: Sequence[str] = ()  # instead of the image's Cmd
    entrypoint: Sequence[str] | None = None  # instead of the image's Entrypoint and Cmd
    env: Sequence[str] = ()  # KEY=VALUE, over the image's
    cwd: str = ""
    user: User = ROOT
    hostname: str = ""
    console_size: ConsoleSize | None = None  # with it the process has a terminal
    terminal: bool = False
    mounts: Sequence[Mount] = ()
    read_only: bool = False
    cgroups_path: str
    cgroup_namespace: bool = False  # for cgroup v2; v1 shows the container its own directories without
    host_network: bool = False
    privileged: bool = False  # nothing masked or read-only, all devices; *capabilities* are said apart
    capabilities: Sequence[str] = DEFAULT_CAPABILITIES
    devices: Sequence[Device] = ()
    new_privileges: bool = False  # may set-user-ID programs raise them?
    memory: int | None = None  # bytes
    cpus: float | None = None
    pids: int | None = None


def container_spec(image: Execution, options: Options) -> Spec:
    """Return the spec of a container of *image*; its rootfs is ``rootfs`` in the bundle.

    Raises:
        InvalidArgument: nothing to run, a working directory or environment that cannot be, or a limit below what works.
    """
    capabilities = tuple(options.capabilities)
    process = Process(
        terminal=options.terminal,
        console_size=options.console_size,
        user=options.user,
        args=_args(image, options),
        env=_process_env(image, options),
        cwd=working_directory(options.cwd or image.working_dir or "/"),
        capabilities=Capabilities(bounding=capabilities, effective=capabilities, permitted=capabilities),
        rlimits=(Rlimit(type="RLIMIT_NOFILE", hard=1024, soft=1024),),
        no_new_privileges=not (options.privileged or options.new_privileges),
    )
    return Spec(
        oci_version="1.0.2",
        process=process,
        root=Root(path="rootfs", readonly=options.read_only),
        hostname=options.hostname,
        mounts=(*default_mounts(options.privileged), *options.mounts),
        linux=_linux(options),
    )


def merged_env(*layers: Iterable[str]) -> tuple[str, ...]:
    """Return KEY=VALUE entries of all *layers* in order of their first appearance, a later value replacing an earlier.

    Raises:
        InvalidArgument: an entry without a name or with a NUL.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            key, _, _ = entry.partition("=")
            if not key or "\0" in entry:
                raise InvalidArgument(f"environment entry {entry[:64]!r} is not of the form KEY=VALUE")
            merged[key] = entry
    return tuple(merged.values())


def working_directory(path: str, remedy: str = "give another with --workdir") -> str:
    """Return *path* normalised; *remedy* is what the error advises.

    Raises:
        InvalidArgument: not absolute, with control characters, or inside /proc, where a link could lead out of the
            container (CVE-2024-21626).
    """
    if not path.startswith("/") or any(ord(character) < 32 for character in path):
        raise InvalidArgument(f"working directory {path[:128]!r} is not an absolute path; {remedy}")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean.startswith("/proc/"):
        raise InvalidArgument(f"working directory {path[:128]!r} is inside /proc; {remedy}")
    return clean


def _args(image: Execution, options: Options) -> tuple[str, ...]:
    if options.entrypoint is not None:
        args = (*options.entrypoint, *options.args)
    else:
        args = (*(image.entrypoint or ()), *(options.args or image.cmd or ()))
    if not args:
        raise InvalidArgument("the image has no command to run; give one after the ID")
    if any("\0" in arg for arg in args):
        raise InvalidArgument("the command contains a NUL character")
    return args


def _process_env(image: Execution, options: Options) -> tuple[str, ...]:
    base = [DEFAULT_PATH, "TERM=xterm"] if options.terminal else [DEFAULT_PATH]
    return merged_env(base, image.env or (), options.env)


def default_mounts(privileged: bool) -> tuple[Mount, ...]:
    """Return the kernel's file systems. /run is left to the image: its packages have directories there."""
    access = "rw" if privileged else "ro"
    quiet = ("nosuid", "noexec", "nodev")
    return (
        Mount(destination="/proc", type="proc", source="proc", options=quiet),
        Mount(
            destination="/dev",
            type="tmpfs",
            source="tmpfs",
            options=("nosuid", "strictatime", "mode=755", "size=65536k"),
        ),
        Mount(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        Mount(destination="/dev/shm", type="tmpfs", source="shm", options=(*quiet, "mode=1777", "size=65536k")),
        Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=quiet),
        Mount(destination="/sys", type="sysfs", source="sysfs", options=(*quiet, access)),
        Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=(*quiet, "relatime", access)),
    )


def _linux(options: Options) -> Linux:
    names = ["pid", "ipc", "uts", "mount"]
    names += [] if options.host_network else ["network"]
    names += ["cgroup"] if options.cgroup_namespace else []
    return Linux(
        namespaces=tuple(Namespace(type=name) for name in names),
        devices=tuple(options.devices),
        cgroups_path=options.cgroups_path,
        resources=_resources(options),
        masked_paths=() if options.privileged else MASKED_PATHS,
        readonly_paths=() if options.privileged else READONLY_PATHS,
    )


def limits(*, memory: int | None = None, cpus: float | None = None, pids: int | None = None) -> Limits:
    """Return limits of memory in bytes, CPU time in cores, and processes with threads.

    Raises:
        InvalidArgument: a limit below what works.
    """
    if memory is not None and memory < _MIN_MEMORY:
        raise InvalidArgument(f"memory limit of {memory} bytes is too little; give at least 6m")
    if pids is not None and pids < 1:
        raise InvalidArgument(f"pids limit {pids} must be at least 1")
    cpu = None
    if cpus is not None:
        quota = int(cpus * _CPU_PERIOD_US) if 0 < cpus < 1 << 20 else 0
        if quota < _MIN_CPU_QUOTA_US:
            raise InvalidArgument(f"{cpus} cpus cannot be; give a number from 0.01 up")
        cpu = Cpu(quota=quota, period=_CPU_PERIOD_US)
    return Limits(
        memory=None if memory is None else Memory(limit=memory),
        cpu=cpu,
        pids=None if pids is None else Pids(limit=pids),
    )


def _resources(options: Options) -> Resources:
    """The limits; of devices all are denied, to which the runtime adds the standard ones (null, zero, tty, ...)."""
    given = limits(memory=options.memory, cpus=options.cpus, pids=options.pids)
    return Resources(
        devices=(DeviceRule(allow=options.privileged, access="rwm"),),
        memory=given.memory,
        cpu=given.cpu,
        pids=given.pids,
    )
