"""CheckpointContainer: what a container is at this moment, in an archive; the container goes on.

The archive is a tar with what the tools around CRIU (checkpointctl) look for::

    checkpoint/         the images that CRIU made, of processes and memory
    rootfs-diff.tar     what the container has changed of its image's files
    config.dump         which container, image and runtime
    spec.dump           the OCI spec
    status.dump         the ContainerStatus
    status              times and pid, as containerd keeps them
    stats-dump, dump.log, container.log

The container is paused while they are taken, so that processes and files belong together. What is in the making lies in
its directory, ``checkpoint-*``: by that the next daemon finds what one that died meanwhile has paused, and left.
"""

import asyncio
import logging
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.message import Message

from runtimed.api import runc_options_pb2
from runtimed.cri.container_status import container_status
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.cri.streams import running
from runtimed.diff.compression import Compression
from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, RuntimedError, os_errors
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_OPTIONS = runc_options_pb2.CheckpointOptions
_NEVER = "0001-01-01T00:00:00Z"
_CHUNK = 1 << 20  # bytes
_PERHAPS = ("stats-dump", "dump.log", "container.log")


async def checkpoint_container(core: Core, id: str, location: str, timeout_s: int) -> None:
    """Write the archive *location*. A retry joins. 0 is no timeout.

    Raises:
        InvalidArgument: a relative path, or a negative timeout.
        NotFound, FailedPrecondition: no such container or directory; it does not run; CRIU is not installed.
        DeadlineExceeded: not done within *timeout_s*.
        RuntimedError: CRIU's own error.
    """
    if not location.startswith("/") or "\0" in location or timeout_s < 0:
        raise InvalidArgument(f"checkpoint: an absolute path, not {location[:128]!r}, and a timeout of at least 0")
    container = running(core, id)
    if shutil.which("criu") is None:  # or it would be paused for nothing
        raise FailedPrecondition("checkpoints need criu: install it (https://criu.org) on the PATH of the daemon")

    async def run() -> None:
        try:
            async with asyncio.timeout(timeout_s or None):
                await _checkpoint(core, container, Path(location))
        except TimeoutError:
            raise DeadlineExceeded(f"checkpoint of container {container.id}: not done within {timeout_s} s") from None

    await core.operations.run(("CheckpointContainer", container.id), run, (location, timeout_s))


async def _checkpoint(core: Core, container: Container, location: Path) -> None:
    directory = core.container_directory(container.id) / f"checkpoint-{secrets.token_hex(4)}"
    try:
        await blocking(_make, directory, location)
        try:
            await core.tasks.pause(NAMESPACE, container.id)
            at = datetime.now(UTC)
            options = _OPTIONS(
                image_path=str(directory / "checkpoint"), work_path=str(directory), terminal=container.config.tty
            )
            named = Opaque(_OPTIONS.DESCRIPTOR.full_name, options.SerializeToString())
            await core.tasks.checkpoint(NAMESPACE, container.id, named, "")
            await _diff(core, container, directory / "rootfs-diff.tar")
        finally:
            await asyncio.shield(core.spawn(_resume(core, container)))
        record = await core.db.read(containers.get, NAMESPACE, container.id)
        documents = _documents(container, record, at)
        await blocking(_write, directory, documents, container.log_path, location)
    finally:
        await blocking(shutil.rmtree, directory, ignore_errors=True)


def interrupted(core: Core) -> list[tuple[Container, list[Path]]]:
    """Return the containers whose checkpoint an earlier daemon did not live to see the end of, with its files. Blocks.

    To be looked for before there can be new ones.
    """
    every = ((one, list(core.container_directory(one.id).glob("checkpoint-*"))) for one in core.state.containers)
    return [(container, directories) for container, directories in every if directories]


async def recover(core: Core, container: Container, left: Iterable[Path]) -> None:
    """Let a container of :func:`interrupted` go on, if it was still paused, and remove the files."""
    await _resume(core, container)
    for directory in left:
        await blocking(shutil.rmtree, directory, ignore_errors=True)


async def _resume(core: Core, container: Container) -> None:
    try:
        await core.tasks.resume(NAMESPACE, container.id)
    except (NotFound, FailedPrecondition):
        pass  # it was killed meanwhile, or never paused
    except RuntimedError as exc:
        log.error("a container stays paused: 'rctl -n k8s.io resume' lets it go on",
                  extra={"container": container.id, "error": str(exc)})  # fmt: skip


async def _diff(core: Core, container: Container, path: Path) -> None:
    """Write what the container has changed of its image's files to *path*."""
    sandbox = container.sandbox
    snapshots = core.snapshots(sandbox.snapshotter)
    view = f"{container.id}-{path.parent.name}"
    parent = (await blocking(snapshots.stat, NAMESPACE, container.id)).parent
    try:
        lower = await blocking(snapshots.view, NAMESPACE, view, parent, {}, sandbox.id)
        upper = await blocking(snapshots.mounts, NAMESPACE, container.id)
        await blocking(path.touch, 0o600)
        await core.pool.diff(lower, upper, path, Compression.NONE)
    finally:
        await core.remove_snapshot(sandbox.snapshotter, view, sandbox.id)


def _documents(container: Container, record: containers.Container, at: datetime) -> Mapping[str, bytes]:
    status = container_status(container)
    config = {
        "id": container.id,
        "name": container.name,
        "rootfsImage": status.image.image,
        "rootfsImageRef": status.image_ref,
        "rootfsImageName": status.image.image,
        "runtime": record.runtime,
        "createdTime": _time(status.created_at),
        "checkpointedTime": at.isoformat(),
        "restoredTime": _NEVER,
        "restored": False,
    }
    of_containerd = {
        "Version": "v1",
        "Pid": container.pid,
        "CreatedAt": status.created_at,
        "StartedAt": status.started_at,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Reason": "",
        "Message": "",
    }
    found = {"config.dump": config, "status": of_containerd, "status.dump": plain(status)}
    return {"spec.dump": record.spec.value, **{name: msgspec.json.encode(value) for name, value in found.items()}}


def plain(message: Message) -> dict[str, Any]:
    """Return what is set in a message, as Go's encoding/json has it: names of the .proto file, numbers as numbers."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        elif field.message_type:
            found[field.name] = [plain(one) for one in value] if field.is_repeated else plain(value)
        else:
            found[field.name] = list(value) if field.is_repeated else value
    return found


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat()


def _make(directory: Path, location: Path) -> None:
    if not location.parent.is_dir():
        raise NotFound(f"directory {location.parent} of the checkpoint archive: make it first")
    if location.is_dir():
        raise InvalidArgument(f"checkpoint archive {location}: is a directory; name a file in it")
    with os_errors(f"directory {directory} of a checkpoint"):
        directory.mkdir(mode=0o700, parents=True)


def _write(directory: Path, documents: Mapping[str, bytes], log_path: str, location: Path) -> None:
    """Write the archive: it is there whole, or not at all. Blocks."""
    partial = location.with_name(f".{location.name[:200]}.{secrets.token_hex(4)}")
    with os_errors(f"checkpoint archive {location}"):
        for name, content in documents.items():
            (directory / name).write_bytes(content)
        if log_path:
            _copy_log(log_path, directory / "container.log")
        names = ["checkpoint", "rootfs-diff.tar", *documents]
        names += [name for name in _PERHAPS if (directory / name).is_file()]
        try:
            with open(partial, "xb", opener=_private) as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for name in names:
                        archive.add(directory / name, name)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(location)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _copy_log(path: str, target: Path) -> None:
    """Copy a log as long as it is now; nothing, if another thing has its name: who may write logs must not have us
    read what he may not."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        log.debug("a checkpoint is without the log", extra={"path": path, "error": str(exc)})
        return
    with os.fdopen(source, "rb") as file:
        found = os.fstat(source)
        if stat.S_ISREG(found.st_mode):
            with target.open("wb") as copy:
                left = found.st_size
                while left > 0 and (data := file.read(min(left, _CHUNK))):
                    left -= copy.write(data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
