"""How a pod is: PodSandboxStatus, and the events that carry it."""

import time
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict

from runtimed.api import cri_pb2 as pb
from runtimed.cri.container_status import container_status
from runtimed.cri.core import Core
from runtimed.cri.state import Sandbox


def sandbox_status(sandbox: Sandbox) -> pb.PodSandboxStatus:
    """Return what is known of a pod; nothing is asked or read."""
    status = pb.PodSandboxStatus(
        id=sandbox.id,
        metadata=sandbox.config.metadata,
        state=sandbox.state,
        created_at=sandbox.record.created_at,
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.record.handler,
    )
    status.linux.namespaces.options.CopyFrom(sandbox.config.linux.security_context.namespace_options)
    if ips := sandbox.record.ips:
        status.network.ip = ips[0]
        for ip in ips[1:]:
            status.network.additional_ips.add(ip=ip)
    return status


def pod_sandbox_status(sandbox: Sandbox, *, verbose: bool) -> pb.PodSandboxStatusResponse:
    """Return the answer to PodSandboxStatus, with the containers as they are at this moment."""
    return pb.PodSandboxStatusResponse(
        status=sandbox_status(sandbox),
        info=_info(sandbox) if verbose else None,
        containers_statuses=[container_status(one) for one in sandbox.containers.values()],
        timestamp=time.time_ns(),
    )


def publish(core: Core, sandbox: Sandbox, id: str, kind: "pb.ContainerEventType") -> None:
    """Tell subscribers what has happened to the container *id*, or to the pod itself under its own ID."""

    def make() -> pb.ContainerEventResponse:
        return pb.ContainerEventResponse(
            container_id=id,
            container_event_type=kind,
            created_at=time.time_ns(),
            pod_sandbox_status=sandbox_status(sandbox),
            containers_statuses=[container_status(one) for one in sandbox.containers.values()],
        )

    core.events.publish(make)


def _info(sandbox: Sandbox) -> dict[str, str]:
    record = sandbox.record
    fields: dict[str, Any] = {
        "pid": sandbox.pid,
        "image": record.image,
        "snapshotter": sandbox.snapshotter,
        "snapshotKey": sandbox.id,
        "runtimeHandler": sandbox.handler,
        "networkNamespace": record.netns,
        "cniResult": record.result,
        "config": MessageToDict(sandbox.config),
    }
    return {"info": msgspec.json.encode(fields).decode()}
