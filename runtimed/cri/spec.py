"""From a CRI request to the OCI runtime spec of a pod or container: what goes where. Its neighbours have the rules."""

from runtimed.api import cri_pb2 as pb
from runtimed.cri import (
    annotations,
    cdi,
    classes,
    devices,
    mounts,
    namespaces,
    process,
    resources,
    security,
    sysctls,
    users,
)
from runtimed.cri.cgroup_path import cgroups_path
from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest
from runtimed.cri.seccomp import seccomp_of
from runtimed.errors import InvalidArgument
from runtimed.oci.container_spec import DEFAULT_PATH, merged_env
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import ROOT, Capabilities, Cpu, DeviceRule, Linux, Process, Resources, Root, Spec

_VERSION = "1.1.0"
_PAUSE_OOM_SCORE = -998  # as kubelet's and containerd's: of a pod, pause goes last
_PAUSE_SHARES = 2  # the least there is


def sandbox_spec(request: SandboxSpecRequest) -> Spec:
    """Return the spec of a pod's pause container. Blocks.

    Raises:
        InvalidArgument: namespaces, mappings, sysctls, cgroup parent or names that cannot be.
    """
    config = request.config
    context = config.linux.security_context
    uids, gids = namespaces.user_mappings(context.namespace_options)
    caps = security.capabilities(pb.LinuxContainerSecurityContext())
    process_label, mount_label = security.selinux_labels(
        context.selinux_options, pb.SELinuxOption(), request.sandbox_id, privileged=context.privileged
    )
    pause = Process(
        user=ROOT,
        args=_pause_args(request.image),
        env=merged_env([DEFAULT_PATH], request.image.env or ()),
        cwd="/",
        capabilities=caps,
        no_new_privileges=True,
        apparmor_profile=security.apparmor_profile(context),
        selinux_label=process_label,
        oom_score_adj=_oom_score(_PAUSE_OOM_SCORE),
    )
    shares_host_uts = context.namespace_options.network == namespaces.NODE
    linux = Linux(
        namespaces=namespaces.of_sandbox(request),
        uid_mappings=uids,
        gid_mappings=gids,
        cgroups_path=cgroups_path(config.linux.cgroup_parent, request.sandbox_id, systemd=request.rules.systemd_cgroup),
        resources=Resources(devices=(DeviceRule(allow=False, access="rwm"),), cpu=Cpu(shares=_PAUSE_SHARES)),
        sysctl=sysctls.of_sandbox(request),
        seccomp=seccomp_of(context, caps.bounding),
        mount_label=mount_label,
    )
    return Spec(
        oci_version=_VERSION,
        process=pause,
        root=Root(path="rootfs", readonly=True),
        hostname="" if shares_host_uts else config.hostname,
        mounts=mounts.of_sandbox(request),
        linux=linux,
        annotations=annotations.of_sandbox(request),
    )


def container_spec(request: ContainerSpecRequest) -> Spec:
    """Return the spec of a container. Blocks: it reads the image's files and makes the image's volumes.

    Raises:
        InvalidArgument, NotFound, FailedPrecondition, PermissionDenied: what is asked for cannot be, or must not.
    """
    config, pod = request.config, request.sandbox_config
    context = config.linux.security_context
    process_label, mount_label = security.selinux_labels(
        context.selinux_options,
        pod.linux.security_context.selinux_options,
        request.sandbox_id,
        privileged=security.check_privileged(config, pod),
    )
    caps = security.capabilities(context)
    spec = Spec(
        oci_version=_VERSION,
        process=_process(request, caps, process_label),
        root=Root(path="rootfs", readonly=context.readonly_rootfs),
        mounts=mounts.of_container(request, mount_label),
        linux=_linux(request, caps, mount_label),
        annotations=annotations.of_container(request),
    )
    return cdi.inject(spec, cdi.names_of(config), request.rules.cdi_directories)


def _process(request: ContainerSpecRequest, caps: Capabilities, label: str) -> Process:
    """Return a container's first process."""
    config, context = request.config, request.config.linux.security_context
    return Process(
        terminal=config.tty,
        user=users.user_of(request),
        args=process.args(config, request.image),
        env=process.env(config, request.image, request.sandbox_config.hostname),
        cwd=process.cwd(config, request.image),
        capabilities=caps,
        rlimits=request.rules.rlimits,
        no_new_privileges=context.no_new_privs,
        apparmor_profile=security.apparmor_profile(context),
        selinux_label=label,
        oom_score_adj=_oom_score(resources.oom_score_adj(config.linux.resources)),
    )


def _linux(request: ContainerSpecRequest, caps: Capabilities, mount_label: str) -> Linux:
    """Return what the kernel separates and limits of a container."""
    config, pod = request.config, request.sandbox_config
    uids, gids = namespaces.user_mappings(pod.linux.security_context.namespace_options)
    nodes, rules = devices.devices_of(request)
    limits = resources.limits_of(config.linux.resources)
    masked, read_only = security.hidden_paths(config)
    return Linux(
        namespaces=namespaces.of_container(request),
        uid_mappings=uids,
        gid_mappings=gids,
        devices=nodes,
        cgroups_path=cgroups_path(pod.linux.cgroup_parent, request.container_id, systemd=request.rules.systemd_cgroup),
        resources=Resources(
            devices=rules,
            memory=limits.memory,
            cpu=limits.cpu,
            hugepage_limits=limits.hugepage_limits,
            unified=limits.unified,
            block_io=classes.block_io(request),
        ),
        seccomp=seccomp_of(config.linux.security_context, caps.bounding),
        rootfs_propagation=mounts.rootfs_propagation(config.mounts),
        masked_paths=masked,
        readonly_paths=read_only,
        mount_label=mount_label,
        intel_rdt=classes.intel_rdt(request),
    )


def _pause_args(image: Execution) -> tuple[str, ...]:
    args = (*(image.entrypoint or ()), *(image.cmd or ()))
    if not args:
        raise InvalidArgument("the pause image has no command")
    return args


def _oom_score(wanted: int) -> int:
    """Return what can be set: to go below its own score a process needs CAP_SYS_RESOURCE."""
    if "CAP_SYS_RESOURCE" in security.own_capabilities():
        return wanted
    with open("/proc/self/oom_score_adj") as file:  # noqa: PTH123 - one line of /proc
        return max(wanted, int(file.read()))
