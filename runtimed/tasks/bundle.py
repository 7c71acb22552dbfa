"""The bundle: the directory that a shim works in and runc is given.

Below the state directory, as every containerd client expects it::

    io.containerd.runtime.v2.task/<namespace>/<id>/
        config.json        the OCI runtime spec
        rootfs/            where the shim mounts the container's root
        work               a link to the same path below the root directory
        bootstrap.json     where the shim serves; written before our own shim starts, after another one has
        created            there once the container has been made; how it ended, once that has been told
        shim-binary-path   the shim, if it is not our own
        log                FIFO that a shim which is not our own logs to

and what the shim adds. The daemon makes and removes it; whoever finds one after a restart finds a task.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from runtimed.errors import AlreadyExists, Internal, InvalidArgument, RuntimedError, os_errors
from runtimed.identifiers import validate
from runtimed.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from runtimed.tasks.client import Endpoint, Exit, parse_started

DIRECTORY = "io.containerd.runtime.v2.task"
DETACHED = "detached"  # below the state directory

# As containerd's shim for runc reads them, the first that is there.
_GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Of one task. Every method blocks."""

    namespace: str
    id: str
    path: Path
    work: Path

    @classmethod
    def at(cls, root: Path, state: Path, namespace: str, id: str, directory: str = DIRECTORY) -> "Bundle":
        """Return where the bundle of a task is, or would be. Raises InvalidArgument if these cannot be names."""
        below = Path(directory, validate(namespace, "namespace"), validate(id, "task id"))
        return cls(namespace=namespace, id=id, path=state / below, work=root / below)

    def create(self, spec: bytes) -> None:
        """Make the directory, for a container with the OCI runtime spec *spec* (JSON).

        Raises:
            AlreadyExists: there is one.
            InvalidArgument: the spec is not a JSON object.
        """
        group = _root_group(spec)
        with os_errors(f"bundle {self.path}"):
            for parent in (self.path.parent.parent, self.path.parent):
                parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.work.mkdir(mode=0o711, parents=True, exist_ok=True)
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                raise AlreadyExists(f"bundle {self.path}: already exists") from None
            try:
                if group:  # the container's root is another user outside, and runc enters the rootfs as that user
                    os.chown(self.path, -1, group)
                    self.path.chmod(0o710)
                (self.path / "rootfs").mkdir(mode=0o711)
                (self.path / "work").symlink_to(self.work)
                self._write("config.json", spec)
            except BaseException:
                self.delete()
                raise

    def save_endpoint(self, endpoint: Endpoint) -> None:
        """Remember where the shim serves. The last three keys are ours, the others are what other daemons know."""
        fields = {
            "version": endpoint.version,
            "address": f"unix://{endpoint.path}",
            "protocol": "ttrpc",
            "pid": endpoint.pid,
            "started": endpoint.started,
            "sandbox": endpoint.is_of_sandbox,
        }
        with os_errors(f"bundle {self.path}"):
            self._write("bootstrap.json", json.dumps(fields).encode())

    def endpoint(self) -> Endpoint | None:
        """Return where the shim serves; None if that was never written, or not wholly.

        Raises:
            RuntimedError: it cannot be read now (too many open files, say), which does not mean there is none.
        """
        path = self.path / "bootstrap.json"
        with os_errors(f"bundle {self.path}"):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
        try:
            endpoint, fields = parse_started(data), json.loads(data)
            return replace(
                endpoint,
                pid=int(fields.get("pid", 0)),
                started=int(fields.get("started", 0)),
                is_of_sandbox=bool(fields.get("sandbox")),
            )
        except (ValueError, TypeError, RuntimedError):
            return None

    def mark_created(self) -> None:
        """Remember that the container has been made: the answer to who asked for it is about to be sent."""
        with os_errors(f"bundle {self.path}"):
            self._write("created", b"")

    def mark_exit(self, exit: Exit) -> None:
        """Remember that the container's end has been told. Nothing, where that is of no interest any more.

        The file is there since the container is, and is never made here: the bundle may be going at this moment.
        """
        fields = {"pid": exit.pid, "status": exit.status, "exited_at": exit.exited_at}
        with suppress(OSError):  # gone; or the disk is full, at which an exit may come to be told twice
            fd = os.open(self.path / "created", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps(fields).encode())

    def exit(self) -> Exit | None:
        """Return how the container ended, if that has been told."""
        try:
            return msgspec.json.decode((self.path / "created").read_bytes(), type=Exit)
        except (OSError, msgspec.MsgspecError):
            return None

    def is_created(self) -> bool:
        """Say whether there is, or was, a container that somebody may know of."""
        return (self.path / "created").exists()

    def group(self) -> str:
        """Return the group of containers that share a shim: what the spec's annotations say, or the task itself."""
        try:
            return group_of((self.path / "config.json").read_bytes(), self.id)
        except (OSError, InvalidArgument):
            return self.id

    def save_shim(self, binary: str) -> None:
        with os_errors(f"bundle {self.path}"):
            self._write("shim-binary-path", binary.encode())

    def shim(self) -> str:
        """Return the path of the shim's program; "" for our own."""
        try:
            return (self.path / "shim-binary-path").read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def make_log(self) -> int:
        """Make the FIFO that a shim logs to; return a descriptor of it that never blocks, for the caller to close.

        It is open for writing as well, so that a shim can open its end at any time and reading sees no end.
        """
        path = self.path / "log"
        with os_errors(f"bundle {self.path}"):
            with suppress(FileExistsError):
                os.mkfifo(path, 0o700)
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def delete(self) -> None:
        """Remove the directories, of which any part may be gone already; the shim is.

        Raises:
            Internal: something is still in rootfs/, which is never deleted through.
        """
        rootfs = self.path / "rootfs"
        with os_errors(f"bundle {self.path}"):
            _unmount(rootfs)
            try:
                # rmdir, never rmtree: were the unmount to fail, rmtree would delete the container's files.
                rootfs.rmdir()
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise Internal(f"bundle {self.path}: rootfs cannot be removed: {exc.strerror}") from exc
            self._hand_on_detached()
            for directory in (self.path, self.work):
                with suppress(FileNotFoundError):
                    shutil.rmtree(directory)

    def _hand_on_detached(self) -> None:
        """Put the shim's note of what was busy, and so detached, where it is looked after (doctor/detached.py)."""
        with suppress(FileNotFoundError):
            devices = (self.path / "detached").read_text().split()
            notes = self.path.parents[2] / DETACHED
            notes.mkdir(mode=0o700, exist_ok=True)
            note = {"task": f"{self.namespace}/{self.id}", "devices": devices}
            (notes / secrets.token_hex(8)).write_text(json.dumps(note))

    def _write(self, name: str, data: bytes) -> None:
        """Write a file that after a crash is there wholly or not at all."""
        temporary = self.path / f".{name}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.rename(self.path / name)


def found(root: Path, state: Path, directory: str = DIRECTORY) -> Iterator[Bundle]:
    """Return the bundle of every task that left a directory, below either of the two. Blocks."""
    seen = set()
    for top in (state / directory, root / directory):
        for path in sorted(top.glob("*/*")):
            names = (path.parent.name, path.name)
            with suppress(InvalidArgument):  # not made by us
                if names not in seen:
                    seen.add(names)
                    yield Bundle.at(root, state, *names, directory=directory)


def _unmount(target: Path) -> None:
    """Take every mount off *target*; nothing there is fine."""
    while True:
        try:
            umount2(os.fspath(target), MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError:  # EINVAL: no mount point (any more); ENOENT
            return


class _Mapping(msgspec.Struct):
    """OCI runtime-spec config-linux.md, "User namespace mappings"; the last ID means "leave it" to chown(2)."""

    inside: int = msgspec.field(name="containerID")
    outside: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] = msgspec.field(name="hostID")


class _Linux(msgspec.Struct):
    group_mappings: list[_Mapping] | None = msgspec.field(default=None, name="gidMappings")


class _Spec(msgspec.Struct):
    """What of the runtime spec concerns the bundle itself."""

    annotations: dict[str, str] | None = None
    linux: _Linux | None = None


def group_of(spec: bytes, id: str) -> str:
    """Return the group of container *id*, whose OCI runtime spec is *spec*. Raises InvalidArgument."""
    annotations = _decoded(spec).annotations or {}
    return next((annotations[key] for key in _GROUP_ANNOTATIONS if annotations.get(key)), id)


def _root_group(spec: bytes) -> int:
    """Return the group outside that root's is in the container's user namespace; 0 without one."""
    linux = _decoded(spec).linux
    mappings = (linux.group_mappings if linux else None) or []
    return next((mapping.outside for mapping in mappings if mapping.inside == 0), 0)


def _decoded(spec: bytes) -> _Spec:
    try:
        return msgspec.json.decode(spec, type=_Spec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"container spec: {exc}") from None
