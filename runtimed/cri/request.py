"""What a container's or a pod's OCI runtime spec is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.config import BlockIoClass
from runtimed.cri.rootfs import Rootfs
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import Rlimit


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRules:
    """What a runtime handler can do, and what the configuration lets it do."""

    pod_annotations: tuple[str, ...] = ()  # globs: of a pod's annotations those that the spec gets
    container_annotations: tuple[str, ...] = ()  # likewise of a container's
    systemd_cgroup: bool = False
    host_devices: bool = True  # a privileged container sees all devices of the host
    recursive_read_only: bool = True  # it knows the mount option ``rro``
    idmapped_mounts: bool = False  # owners of volumes can be shown as others
    rlimits: tuple[Rlimit, ...] = ()  # none: what the daemon has
    block_io_classes: Mapping[str, BlockIoClass] = field(default_factory=dict)
    cdi_directories: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))  # a later one wins
    unprivileged_ports: bool = True  # pods may listen on ports below 1024 without CAP_NET_BIND_SERVICE
    unprivileged_icmp: bool = True  # ... and ping without CAP_NET_RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpecRequest:
    """A pod, whose namespaces its first process, pause, holds."""

    sandbox_id: str
    config: pb.PodSandboxConfig
    image: Execution  # of the pause image
    netns: str = ""  # a path; "" with the host's network
    userns: str = ""  # a path; "" with the host's IDs
    directory: Path  # with the files that the containers share, and ``shm``
    rules: HandlerRules = HandlerRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpecRequest:
    """A container of a running pod."""

    container_id: str
    sandbox_id: str
    sandbox_pid: int  # pause
    config: pb.ContainerConfig
    sandbox_config: pb.PodSandboxConfig
    image: Execution
    image_name: str = ""
    netns: str = ""  # a path; "" with the host's network
    rootfs: Rootfs  # to read users and to copy the image's volumes
    directory: Path  # of the container: the image's volumes are made below it
    sandbox_directory: Path  # hostname, hosts, resolv.conf, shm
    target_pid: int | None = None  # whose pid namespace it joins in mode TARGET
    mapped_volumes: Path  # where those with ID mappings will be mounted when it starts, by their number
    image_mounts: Mapping[str, Path] = field(default_factory=dict)  # container path -> where that image is mounted
    rules: HandlerRules = HandlerRules()
