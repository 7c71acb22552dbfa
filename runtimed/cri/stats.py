"""ContainerStats and PodSandboxStats, of one or many."""

from collections.abc import Sequence

from runtimed.api import cri_pb2 as pb
from runtimed.cri.core import Core
from runtimed.cri.sampler import Measured
from runtimed.cri.state import Container, Sandbox
from runtimed.cri.usage import Interface, Pressure, Usage

_DEFAULT_INTERFACE = "eth0"


async def container_stats(core: Core, id: str) -> pb.ContainerStats:
    """Return what one container uses. Raises NotFound."""
    [found] = await _containers(core, [core.state.containers.get(id)])
    return found


async def list_container_stats(core: Core, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
    """Return what the containers that match use, of those that run."""
    like = pb.ContainerFilter(
        id=wanted.id,
        pod_sandbox_id=wanted.pod_sandbox_id,
        label_selector=wanted.label_selector,
        state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING),
    )
    return await _containers(core, core.state.list_containers(like))


async def pod_sandbox_stats(core: Core, id: str) -> pb.PodSandboxStats:
    """Return what one pod uses. Raises NotFound; FailedPrecondition: it does not run."""
    [found] = await _sandboxes(core, [core.state.ready_sandbox(id)])
    return found


async def list_pod_sandbox_stats(core: Core, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
    """Return what the pods that match use, of those that run."""
    like = pb.PodSandboxFilter(
        id=wanted.id,
        label_selector=wanted.label_selector,
        state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY),
    )
    return await _sandboxes(core, core.state.list_sandboxes(like))


async def _containers(core: Core, containers: Sequence[Container]) -> list[pb.ContainerStats]:
    core.forget_measured()
    measured = await core.sampler.containers(containers)
    return [_container(one, found) for one, found in zip(containers, measured, strict=True)]


async def _sandboxes(core: Core, sandboxes: Sequence[Sandbox]) -> list[pb.PodSandboxStats]:
    core.forget_measured()
    measured = await core.sampler.sandboxes(sandboxes)
    stats = []
    for one, found in zip(sandboxes, measured, strict=True):
        running = [container for container in one.containers.values() if container.state == pb.CONTAINER_RUNNING]
        stats.append(_sandbox(one, found, await _containers(core, running)))
    return stats


def _container(container: Container, measured: Measured) -> pb.ContainerStats:
    config = container.config
    stats = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        )
    )
    if (layer := measured.layer) is not None:
        stats.writable_layer.CopyFrom(
            pb.FilesystemUsage(
                timestamp=layer.at,
                fs_id=pb.FilesystemIdentifier(mountpoint=layer.mountpoint),
                used_bytes=_value(layer.size),
                inodes_used=_value(layer.inodes),
            )
        )
    if (used := measured.usage) is not None:
        stats.cpu.CopyFrom(_cpu(used, measured.rate))
        stats.memory.CopyFrom(_memory(used))
        stats.swap.CopyFrom(
            pb.SwapUsage(
                timestamp=used.at,
                swap_available_bytes=_value(max(used.swap_limit - used.swap, 0)),
                swap_usage_bytes=_value(used.swap),
            )
        )
        stats.io.CopyFrom(pb.IoUsage(timestamp=used.at, psi=_psi(used, "io")))
    return stats


def _sandbox(sandbox: Sandbox, measured: Measured, containers: Sequence[pb.ContainerStats]) -> pb.PodSandboxStats:
    config = sandbox.config
    stats = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=sandbox.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        )
    )
    stats.linux.containers.extend(containers)
    used = measured.usage
    if used is None:
        return stats
    stats.linux.cpu.CopyFrom(_cpu(used, measured.rate))
    stats.linux.memory.CopyFrom(_memory(used))
    stats.linux.io.CopyFrom(pb.IoUsage(timestamp=used.at, psi=_psi(used, "io")))
    stats.linux.process.CopyFrom(pb.ProcessUsage(timestamp=used.at, process_count=_value(used.tasks)))
    if measured.interfaces:
        stats.linux.network.timestamp = used.at
        for interface in measured.interfaces:
            if interface.name == _DEFAULT_INTERFACE:
                stats.linux.network.default_interface.CopyFrom(_interface(interface))
            else:
                stats.linux.network.interfaces.append(_interface(interface))
    return stats


def _cpu(used: Usage, rate: int | None) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=used.at,
        usage_core_nano_seconds=_value(used.cpu),
        usage_nano_cores=None if rate is None else _value(rate),
        psi=_psi(used, "cpu"),
    )


def _memory(used: Usage) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        timestamp=used.at,
        working_set_bytes=_value(used.working_set),
        # Of how much there is none without a limit, as the reference and cAdvisor have it.
        available_bytes=_value(max(used.memory_limit - used.working_set, 0)) if used.memory_limit else None,
        usage_bytes=_value(used.memory),
        rss_bytes=_value(used.rss),
        page_faults=_value(used.faults),
        major_page_faults=_value(used.major_faults),
        psi=_psi(used, "memory"),
    )


def _psi(used: Usage, what: str) -> pb.PsiStats | None:
    found = used.pressure.get(what)
    if not found:
        return None
    return pb.PsiStats(Some=_psi_data(found.get("some", Pressure())), Full=_psi_data(found.get("full", Pressure())))


def _psi_data(one: Pressure) -> pb.PsiData:
    return pb.PsiData(Total=one.total, Avg10=one.avg10, Avg60=one.avg60, Avg300=one.avg300)


def _interface(one: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=one.name,
        rx_bytes=_value(one.rx_bytes),
        rx_errors=_value(one.rx_errors),
        tx_bytes=_value(one.tx_bytes),
        tx_errors=_value(one.tx_errors),
    )


def _value(number: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=number)
