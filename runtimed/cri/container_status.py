"""How a container is: ContainerStatus."""

import signal
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict

from runtimed.api import cri_pb2 as pb
from runtimed.cri.signals import cri_signal
from runtimed.cri.state import Container


def container_status(container: Container) -> pb.ContainerStatus:
    """Return what is known of a container; nothing is asked or read."""
    record, config = container.record, container.config
    status = pb.ContainerStatus(
        id=container.id,
        metadata=config.metadata,
        state=container.state,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=container.image,
        image_ref=record.image_ref or record.image,
        image_id=record.image,
        reason=_reason(container),
        message=record.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=_mounts(container),
        log_path=container.log_path,
    )
    status.stop_signal = cri_signal(str(record.stop_signal or signal.SIGTERM))  # type: ignore[assignment]
    status.resources.linux.CopyFrom(pb.LinuxContainerResources.FromString(record.resources))
    if record.user is not None:
        uid, gid, *groups = record.user
        status.user.linux.CopyFrom(pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups))
    return status


def container_status_response(container: Container, *, verbose: bool) -> pb.ContainerStatusResponse:
    """Return the answer to ContainerStatus."""
    info = _info(container) if verbose else None
    return pb.ContainerStatusResponse(status=container_status(container), info=info)


def _reason(container: Container) -> str:
    if container.state != pb.CONTAINER_EXITED:
        return ""
    record = container.record
    return record.reason or ("Error" if record.exit_code else "Completed")


def _mounts(container: Container) -> list[pb.Mount]:
    """Return the mounts as they were asked for, and of images which ones they are."""
    found = []
    for given in container.config.mounts:
        mount = pb.Mount()
        mount.CopyFrom(given)
        if id := container.record.image_mounts.get(given.container_path):
            mount.image.image_ref = id
        found.append(mount)
    return found


def _info(container: Container) -> dict[str, str]:
    fields: dict[str, Any] = {
        "sandboxID": container.sandbox.id,
        "pid": container.pid,
        "snapshotKey": container.id,
        "snapshotter": container.sandbox.snapshotter,
        "config": MessageToDict(container.config),
    }
    return {"info": msgspec.json.encode(fields).decode()}
