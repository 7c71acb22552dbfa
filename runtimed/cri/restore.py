"""Containers that go on from a checkpoint: CreateContainer with the archive of one, or an image of one, as the image.

The archive is named by its path on this machine; an image is one if it is annotated so, as CRI-O, containerd and
checkpointctl have it. The container's files are those of the image that the checkpoint was of, with what had been
changed; all else (mounts, namespaces, limits, names) is what the request and the new pod say, and nothing but data is
taken from the checkpoint. The processes, though, come back with the rights that they had: CRIU restores no others.

    <root>/cri/containers/<id>/restore/     see checkpoint_files; from CreateContainer until the container has started
"""

import io
import os
import posixpath
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.api import runc_options_pb2
from runtimed.cri import checkpoint_files as files
from runtimed.cri.core import Core
from runtimed.cri.images import Auth, Image
from runtimed.cri.namespaces import id_ranges
from runtimed.cri.state import Container, Sandbox
from runtimed.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    about,
    os_errors,
)
from runtimed.metadata.containers import Opaque
from runtimed.mounts import Mount, mounted_temporarily
from runtimed.oci import reference as references
from runtimed.oci.whiteout import PREFIX
from runtimed.tasks.client import RUNC_OPTIONS
from runtimed.threads import blocking

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DELETIONS = "deleted.tar"
_LOG_MODE = 0o640  # as the shim makes them
T = TypeVar("T")


class _Config(msgspec.Struct, kw_only=True, rename="camel"):
    """config.dump, as far as it is looked at: what the image is called, by whoever made the checkpoint."""

    rootfs_image: str = ""
    rootfs_image_ref: str = ""
    rootfs_image_name: str = ""


class _DumpedMount(msgspec.Struct, kw_only=True):
    destination: str
    type: str = ""
    options: list[str] | None = None

    @property
    def is_bind(self) -> bool:
        return self.type == "bind" or not {"bind", "rbind"}.isdisjoint(self.options or ())


class _DumpedProcess(msgspec.Struct, kw_only=True):
    terminal: bool = False


class _Spec(msgspec.Struct, kw_only=True):
    """spec.dump, as far as it is looked at."""

    mounts: list[_DumpedMount] | None = None
    process: _DumpedProcess | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What has been taken out of a checkpoint, for a container that is being made."""

    name: str  # of the archive or image, as the request has it
    base: str  # the name of the image that it was of
    directory: Path

    async def apply(self, core: Core, mounts: Sequence[Mount]) -> None:
        """Change the files that *mounts* show as the container had changed them.

        Raises as :meth:`Pool.apply`.
        """
        with about(f"checkpoint {self.name}"):
            await blocking(_write_deletions, self.directory)
        for layer in (self.directory / _DELETIONS, self.directory / files.DIFF):
            if await blocking(layer.exists):
                with about(f"checkpoint {self.name}: {layer.name}"):
                    await core.pool.apply(layer, _LAYER, mounts)
                await blocking(layer.unlink)

    async def check(self, container: Container, spec: bytes) -> None:
        """Refuse what CRIU would refuse, or leave out without a word, in the words of the request.

        Raises InvalidArgument: not the mounts that the checkpoint's container had, or with a terminal only one has.
        """
        saved = await blocking(_read, self.directory / files.SPEC, _Spec)
        new = msgspec.json.decode(spec, type=_Spec)
        had = {posixpath.normpath(mount.destination) for mount in saved.mounts or () if mount.is_bind}
        has = {mount.destination for mount in new.mounts or ()}
        asked = {posixpath.normpath(mount.container_path) for mount in container.config.mounts}
        for problem, paths in (("not in the request", had - has), ("in the request only", asked - had)):
            if paths:
                shown = ", ".join(sorted(paths))[:500]
                raise InvalidArgument(
                    f"checkpoint {self.name}: mounts that are {problem}: {shown}; give the container those that it had"
                )
        if (saved.process is not None and saved.process.terminal) != container.config.tty:
            has_one = "without" if container.config.tty else "with"
            raise InvalidArgument(f"checkpoint {self.name}: it is of a container {has_one} a terminal; set tty so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a new container begins with: the image of its files, and what it goes on from, if that is a checkpoint."""

    id: str  # of the container
    image: Image
    checkpoint: Checkpoint | None = None


@asynccontextmanager
async def origin(core: Core, sandbox: Sandbox, config: pb.ContainerConfig) -> AsyncIterator[Origin]:
    """Look up what a container is to be made of. If the block fails nothing of a checkpoint stays.

    Raises:
        NotFound: the image is not here; or the archive, or the image that the checkpoint was of.
        InvalidArgument: a hostile archive, or none.
        FailedPrecondition, PermissionDenied: no checkpoint can, or may, be restored in this pod.
    """
    id, name = secrets.token_hex(32), config.image.image
    image = None if name.startswith("/") else await core.images.get(name)
    if image is not None and not image.contents.is_checkpoint:
        yield Origin(id=id, image=image)
        return
    directory = _directory(core, id)
    try:
        if image is None:
            _require(core, sandbox, name)
            await blocking(files.from_archive, Path(name), directory)
        else:
            name = config.image.user_specified_image or name
            _require(core, sandbox, name, is_image=True)
            await _take_from_image(core, sandbox, id, image, name)
        with about(f"checkpoint {name}"):
            found = await blocking(_read, directory / files.CONFIG, _Config)
            base = await _base(core, sandbox, found, is_pulled=image is not None)
            called = found.rootfs_image_name or found.rootfs_image or found.rootfs_image_ref
        yield Origin(id=id, image=base, checkpoint=Checkpoint(name=name, base=called, directory=directory))
    except BaseException:
        await blocking(shutil.rmtree, core.container_directory(id), ignore_errors=True)
        raise


async def task_options(core: Core, container: Container) -> Opaque | None:
    """Return what the task is made with: where it goes on from. Its log goes on, too. None: it is an ordinary one."""
    if not container.record.restored_image:
        return None
    directory = _directory(core, container.id)
    if container.log_path:
        await blocking(_continue_log, directory / files.LOG, Path(container.log_path), container.id)
    options = runc_options_pb2.Options(criu_image_path=str(directory / files.IMAGES))
    return Opaque(RUNC_OPTIONS, options.SerializeToString())


async def forget(core: Core, container: Container) -> None:
    """Remove what a container has been restored from: it has started, or never will."""
    if container.record.restored_image:
        await blocking(shutil.rmtree, _directory(core, container.id), ignore_errors=True)


def leftovers(core: Core) -> list[Path]:
    """Return what containers went on from that have started, of a daemon that did not live to remove it. Blocks."""
    started = [one for one in core.state.containers if one.state != pb.CONTAINER_CREATED and one.record.restored_image]
    return [path for one in started if (path := _directory(core, one.id)).exists()]


def _directory(core: Core, id: str) -> Path:
    return core.container_directory(id) / "restore"


def _require(core: Core, sandbox: Sandbox, name: str, *, is_image: bool = False) -> None:
    if is_image and not core.settings.checkpoint_images:
        raise PermissionDenied(
            f"image {name} is the checkpoint of a container, whose processes come back with the rights that they had,"
            " whatever the pod may do: set cri.checkpoint_images = true to allow that"
        )
    if not core.handlers.get(sandbox.handler).is_runc:
        raise FailedPrecondition(f"checkpoint {name}: runtime handler {sandbox.handler!r} cannot restore; runc can")
    if id_ranges(sandbox.namespace_options)[0]:
        raise FailedPrecondition(f"checkpoint {name}: no pod with a user namespace can have it; set hostUsers: true")
    if shutil.which("criu") is None:
        raise FailedPrecondition(
            f"checkpoint {name}: needs criu; install it (https://criu.org) on the PATH of the daemon"
        )


async def _take_from_image(core: Core, sandbox: Sandbox, id: str, image: Image, name: str) -> None:
    def take(mounts: Sequence[Mount]) -> None:
        with mounted_temporarily(mounts, core.mountpoints()) as root, about(f"checkpoint image {name}"):
            files.from_tree(root, _directory(core, id))

    key = f"{id}/checkpoint"
    try:
        await blocking(take, await core.prepare(sandbox, key, image, view=True))
    finally:
        await core.remove_snapshot(sandbox.snapshotter, key, sandbox.id)


async def _base(core: Core, sandbox: Sandbox, config: _Config, *, is_pulled: bool) -> Image:
    """Return the image that the checkpoint was of: exactly that one, where the checkpoint says which."""
    wanted = config.rootfs_image_ref or config.rootfs_image or config.rootfs_image_name
    if not wanted:
        raise InvalidArgument(f"{files.CONFIG} does not say of which image it is (rootfsImageRef)")
    if (image := await core.images.find(wanted)) is not None:
        return image
    with suppress(InvalidArgument):  # an ID: nobody knows where it is from
        if is_pulled and references.parse(wanted).digest:
            return await core.images.pull(wanted, Auth(), sandbox.snapshotter)
    called = "" if config.rootfs_image_name in ("", wanted) else f" ({config.rootfs_image_name[:256]})"
    raise NotFound(f"it is of image {wanted[:256]}{called}, which is not here: pull that first")


def _read(path: Path, kind: type[T]) -> T:
    with os_errors(f"file {path} of a checkpoint"):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"{path.name}: {exc}") from None


def _write_deletions(directory: Path) -> None:
    """Make a layer of the names of deleted files, if there are some."""
    if not (directory / files.DELETED).exists():
        return
    names = _read(directory / files.DELETED, list[str])
    with (
        os_errors(f"directory {directory} of a checkpoint"),
        tarfile.open(directory / _DELETIONS, "w", format=tarfile.PAX_FORMAT) as layer,
    ):
        for name in names:
            parent, last = posixpath.split(posixpath.normpath(f"/{name}"))
            if last:
                layer.addfile(tarfile.TarInfo(posixpath.join(parent.lstrip("/"), PREFIX.decode() + last)), io.BytesIO())


def _continue_log(saved: Path, log: Path, id: str) -> None:
    """Begin *log* with what was *saved*, unless it is there already."""
    partial = log.with_name(f".{id}")
    with os_errors(f"log {log}"):
        if not saved.exists():
            return
        partial.unlink(missing_ok=True)
        try:
            with saved.open("rb") as source, _new_file(partial) as target:
                shutil.copyfileobj(source, target)
            with suppress(FileExistsError):
                os.link(partial, log, follow_symlinks=False)
        finally:
            partial.unlink(missing_ok=True)


def _new_file(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, _LOG_MODE), "wb")
