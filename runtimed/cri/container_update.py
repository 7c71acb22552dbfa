"""UpdateContainerResources, UpdatePodSandboxResources and ReopenContainerLog."""

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri import records
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.records import ContainerRecord
from runtimed.cri.resources import limits_of
from runtimed.cri.state import Container
from runtimed.errors import FailedPrecondition, InvalidArgument, RuntimedError, os_errors
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.metadata.db import Tx
from runtimed.oci.limits import merged as merged_limits
from runtimed.threads import blocking

_RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


async def update_container_resources(core: Core, id: str, given: pb.LinuxContainerResources) -> None:
    """Change what a container may use; what *given* leaves out stays.

    Raises:
        NotFound, FailedPrecondition: no such container, or it has ended.
        RuntimedError: the runtime's own error; nothing is changed then.
    """
    container = core.state.containers.get(id)
    _check_can_change(container)
    await change(core, container, *await core.hooks.update(container, given))
    await core.hooks.updated(container)


async def change(core: Core, container: Container, given: pb.LinuxContainerResources, extra: Mapping[str, Any]) -> None:
    """Change what a container may use; *extra* are limits that CRI has not, as a spec's ``linux.resources`` has them.

    Raises as :func:`update_container_resources`.
    """
    async with container.lock:
        _check_can_change(container)
        merged = merge(pb.LinuxContainerResources.FromString(container.record.resources), given)
        if container.state == pb.CONTAINER_RUNNING:
            limits = merged_limits(msgspec.to_builtins(limits_of(given)), extra)
            await core.tasks.update(NAMESPACE, container.id, Opaque(_RESOURCES, msgspec.json.encode(limits)), {})
        container.record.resources = merged.SerializeToString()
        await core.db.write(_save, container.id, container.record, merged, extra)


def _check_can_change(container: Container) -> None:
    if container.state not in (pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING):
        state = pb.ContainerState.Name(container.state)
        raise FailedPrecondition(f"container {container.id} is in state {state}: nothing to change")


def merge(current: pb.LinuxContainerResources, given: pb.LinuxContainerResources) -> pb.LinuxContainerResources:
    """Return *current* with what *given* sets."""
    merged = pb.LinuxContainerResources()
    merged.CopyFrom(current)
    for field, value in given.ListFields():
        if field.name == "unified":
            merged.unified.update(value)
        elif field.name == "hugepage_limits":
            kept = [
                limit for limit in current.hugepage_limits if limit.page_size not in {one.page_size for one in value}
            ]
            del merged.hugepage_limits[:]
            merged.hugepage_limits.extend([*kept, *value])
        else:
            setattr(merged, field.name, value)
    return merged


def _save(
    tx: Tx, id: str, record: ContainerRecord, merged: pb.LinuxContainerResources, extra: Mapping[str, Any]
) -> None:
    """Write both what CRI knows and the spec, which a start is made of."""
    current = containers.get(tx, NAMESPACE, id)
    spec = msgspec.json.decode(current.spec.value)
    limits = merged_limits(msgspec.to_builtins(limits_of(merged)), extra)
    spec["linux"]["resources"] = merged_limits(
        spec["linux"]["resources"], limits
    )  # which has others: of devices, of I/O
    if merged.oom_score_adj:
        spec["process"]["oomScoreAdj"] = merged.oom_score_adj
    changed = replace(
        current,
        spec=Opaque(current.spec.type_url, msgspec.json.encode(spec)),
        extensions={**current.extensions, **records.extensions(record)},
    )
    containers.update(tx, NAMESPACE, changed, ["spec", "extensions"])


async def update_pod_sandbox_resources(core: Core, request: pb.UpdatePodSandboxResourcesRequest) -> None:
    """Remember what the pod as a whole may use now; its cgroup is the kubelet's. Raises NotFound."""
    sandbox = core.state.ready_sandbox(request.pod_sandbox_id)
    await core.hooks.update_pod(sandbox, request)
    async with sandbox.lock:
        if request.HasField("overhead"):
            sandbox.config.linux.overhead.CopyFrom(request.overhead)
        if request.HasField("resources"):
            sandbox.config.linux.resources.CopyFrom(request.resources)
        sandbox.record.config = sandbox.config.SerializeToString()
        await core.save(sandbox.id, sandbox.record)
    await core.hooks.updated_pod(sandbox)


async def reopen_container_log(core: Core, id: str) -> None:
    """Make the log file anew after it was renamed; the shim writes to whatever has its name.

    Raises:
        NotFound, FailedPrecondition: no such container, or it does not run.
        InvalidArgument: something else than a file has the name, a link for one.
    """
    container = core.state.containers.get(id)
    if container.state != pb.CONTAINER_RUNNING:
        raise FailedPrecondition(f"container {container.id} is not running")
    if path := container.log_path:
        await blocking(_make_log, path)


def _make_log(path: str) -> None:
    # As the shim opens it: no link is followed, and nothing blocks on a FIFO.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os_errors(f"log {path}"):
            fd = os.open(path, flags, 0o640)
    except RuntimedError as exc:
        if os.path.lexists(path):
            raise InvalidArgument(f"log {path} is not a regular file: {exc}") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"log {path} is not a regular file")
    finally:
        os.close(fd)
