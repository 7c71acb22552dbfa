"""How a pod is: PodSandboxStatus, and the events that carry it."""

import time
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict

from runtimed.api import cri_pb2 as pb
from runtimed.cri.cni import NetworkList
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


async def pod_sandbox_status(core: Core, sandbox: Sandbox, *, verbose: bool) -> pb.PodSandboxStatusResponse:
    """Return the answer to PodSandboxStatus, with the containers as they are at this moment.

    Who wants it verbose, people that is, waits for the CNI plugins, which are asked to check the pod's network.
    """
    info = await _info(core, sandbox) if verbose else None
    return pb.PodSandboxStatusResponse(
        status=sandbox_status(sandbox),
        info=info,
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


async def _info(core: Core, sandbox: Sandbox) -> dict[str, str]:
    record, problem = sandbox.record, ""
    if sandbox.is_ready and record.network and record.result:
        network = NetworkList.from_json(record.network)
        problem = await core.network.check(network, core.attachment(sandbox), record.result)
    fields: dict[str, Any] = {
        "pid": sandbox.pid,
        "image": record.image,
        "snapshotter": sandbox.snapshotter,
        "snapshotKey": sandbox.id,
        "runtimeHandler": sandbox.handler,
        "networkNamespace": record.netns,
        "cniResult": record.result,
        "networkProblem": problem,
        "config": MessageToDict(sandbox.config),
    }
    return {"info": msgspec.json.encode(fields).decode()}
