"""The mount manager: mounts that the kernel alone cannot make, made by the daemon, with a name.

What it is given is a list of mounts, as snapshotters and clients put them together. A type such as
``format/mkdir/overlay`` names what is to be done before the mount is made; ``loop`` and ``erofs`` are made here. All
mounts before the last one that needs the daemon are made here, too, below ``<root>/mounts/<number>/``; the rest goes
back to who asked, with sources that exist. As in containerd, a list that needs nothing of this is Unimplemented: the
caller just mounts it.

Mounts outlive the daemon. What is left of an activation that a crash cut short has no record, and goes at the start, as
does a record whose mounts are gone, because the machine was started anew.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from runtimed import identifiers
from runtimed.errors import AlreadyExists, Internal, NotFound, Unimplemented, os_errors
from runtimed.metadata import activations
from runtimed.metadata.activations import Activation, ActiveMount
from runtimed.metadata.db import Database
from runtimed.mounting.making import EROFS, LOOP, is_there, make, take_off
from runtimed.mounting.preparing import with_directories, with_file_system
from runtimed.mounting.templates import formatted
from runtimed.mounts import Mount
from runtimed.threads import blocking

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRANSFORMS = {"format", "mkdir", "mkfs"}
_MOST = 255  # mounts of one activation, as in containerd


class MountManager:
    """Activates and deactivates; belongs to the event loop's thread."""

    def __init__(self, db: Database, directory: Path, roots: Sequence[Path]) -> None:
        """*directory* is where mount points are; ``mkdir`` and ``mkfs`` work there and below *roots*."""
        self._db = db
        self._directory = directory
        self._roots = [directory, *roots]
        self._changing: set[tuple[str, str]] = set()  # namespace and name of what is being activated or taken off
        self._running: set[asyncio.Task[Any]] = set()

    async def activate(
        self,
        namespace: str,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Mapping[str, str] | None = None,
        lease: str = "",
        is_temporary: bool = False,
    ) -> Activation:
        """Make those of *mounts* that need the daemon, and what comes before them; all or nothing.

        *is_temporary*: make all of them, and leave a bind mount of the last one to be made.

        Raises:
            Unimplemented: none of them needs the daemon.
            AlreadyExists: the name is taken, or being taken.
            NotFound: there is no such lease.
            RuntimedError: one cannot be made.
        """
        identifiers.validate_name(name, "mount name")
        if len(mounts) > _MOST:
            raise Unimplemented(f"mount {name!r}: {len(mounts)} mounts; at most {_MOST} are taken")
        count = len(mounts) if is_temporary else _first_of_system(mounts)
        if count < 0 or not mounts:
            raise Unimplemented(f"mount {name!r}: nothing in it needs the mount manager; mount it as it is")
        make = self._activate(namespace, name, mounts, count, labels or {}, lease, is_temporary=is_temporary)
        return await self._to_its_end(make)

    async def _activate(
        self,
        namespace: str,
        name: str,
        mounts: Sequence[Mount],
        count: int,
        labels: Mapping[str, str],
        lease: str,
        *,
        is_temporary: bool,
    ) -> Activation:
        async with self._alone(namespace, name):
            with suppress(NotFound):
                await self._db.read(activations.get, namespace, name)
                raise AlreadyExists(f"mount {name!r}")
            directory = await blocking(self._new_directory)
            try:
                active, system = await blocking(self._make, directory, mounts, count)
                if is_temporary:
                    system = [Mount("bind", active[-1].mount_point, options=("rbind",))]
                made = Activation(
                    name=name,
                    directory=directory.name,
                    lease=lease,
                    active=active,
                    system=system,
                    labels=labels,
                )
                return await self._db.write(activations.create, namespace, made)
            except BaseException:
                await blocking(self._remove, directory.name)
                raise

    async def deactivate(self, namespace: str, name: str) -> None:
        """Take the mounts off, last first, and forget them. Raises NotFound, Internal."""
        await self._to_its_end(self._deactivate(namespace, name))

    async def _deactivate(self, namespace: str, name: str) -> None:
        async with self._alone(namespace, name):
            gone = await self._db.write(activations.delete, namespace, name)
            await blocking(self._remove, gone.directory)

    async def info(self, namespace: str, name: str) -> Activation:
        """Raises NotFound."""
        return await self._db.read(activations.get, namespace, name)

    async def update(self, namespace: str, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Activation:
        """Change labels, of which alone *paths* may be. Raises NotFound, InvalidArgument."""
        return await self._db.write(activations.update, namespace, name, labels, paths)

    async def matching(self, namespace: str, filters: Sequence[str]) -> Sequence[Activation]:
        """Raises InvalidArgument."""
        return await self._db.read(activations.list, namespace, filters)

    def discard(self, directory: str) -> None:
        """Take off what was in *directory*, of which garbage collection has removed the record. Blocks. Never fails."""
        try:
            self._remove(directory)
        except Exception as exc:
            log.warning("mounts are left over", extra={"directory": directory, "error": str(exc)})

    async def reconcile(self) -> None:
        """Bring records and mounts into agreement, when the daemon starts."""
        recorded = await self._db.read(activations.everywhere)
        there = await blocking(lambda: {one.directory for _, one in recorded if _is_whole(one)})
        for namespace, one in recorded:
            if one.directory not in there:
                log.info("mounts are gone", extra={"namespace": namespace, "mount": one.name})
                await self._db.write(activations.delete, namespace, one.name)
        for name in await blocking(self._directories):
            if name not in there:
                await blocking(self.discard, name)

    async def close(self) -> None:
        """Wait for what has been begun; what is mounted stays."""
        if self._running:
            await asyncio.wait(self._running)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* to its end even if nobody waits for it any more: half of it is worse than all or nothing."""
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    @asynccontextmanager
    async def _alone(self, namespace: str, name: str) -> AsyncIterator[None]:
        if (namespace, name) in self._changing:
            raise AlreadyExists(f"mount {name!r} is being made or taken off; try again")
        self._changing.add((namespace, name))
        try:
            yield
        finally:
            self._changing.discard((namespace, name))

    def _directories(self) -> list[str]:
        with os_errors(f"directory {self._directory}"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            return os.listdir(self._directory)  # noqa: PTH208  names

    def _new_directory(self) -> Path:
        """Make a directory with a name as short as can be: it stands in the options of overlays, often."""
        number = max((int(name) for name in self._directories() if name.isdecimal()), default=0) + 1
        while True:
            path = self._directory / str(number)
            with os_errors(f"directory {path}"), suppress(FileExistsError):
                path.mkdir(mode=0o700)
                return path
            number += 1

    def _make(self, directory: Path, mounts: Sequence[Mount], count: int) -> tuple[list[ActiveMount], list[Mount]]:
        active: list[ActiveMount] = []
        for number, given in enumerate(mounts[:count]):
            mount = self._transformed(given, active)
            mountpoint = directory / str(number)
            make(mount, mountpoint)
            active.append(ActiveMount(mount=mount, mount_point=str(mountpoint), mounted_at=time.time_ns()))
        return active, [self._transformed(mount, active) for mount in mounts[count:]]

    def _transformed(self, mount: Mount, active: Sequence[ActiveMount]) -> Mount:
        transforms: dict[str, Callable[[Mount], Mount]] = {
            "format": lambda mount: formatted(mount, active),
            "mkdir": lambda mount: with_directories(mount, self._roots),
            "mkfs": lambda mount: with_file_system(mount, self._roots),
        }
        for name in _transforms_of(mount):
            mount = transforms[name](replace(mount, type=mount.type.partition("/")[2]))
        return mount

    def _remove(self, name: str) -> None:
        directory = self._directory / name
        try:
            for mountpoint in sorted(directory.iterdir(), key=lambda path: int(path.name), reverse=True):
                take_off(mountpoint)
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Internal(f"mounts in {directory}: {exc.strerror}; they are tried again at the next start") from exc


def needs_manager(mount: Mount) -> bool:
    """Say whether *mount* is one that a kernel or a shim cannot make as it is."""
    return _first_of_system([mount]) >= 0


def _transforms_of(mount: Mount) -> list[str]:
    """Return the transforms at the front of the type, in order."""
    *prefixes, _ = mount.type.split("/")
    found: list[str] = []
    for prefix in prefixes:
        if prefix not in _TRANSFORMS:
            break
        found.append(prefix)
    return found


def _first_of_system(mounts: Sequence[Mount]) -> int:
    """Return how many of *mounts* are made here: up to the last that needs it; -1 if none does."""
    count = -1
    for number, mount in enumerate(mounts):
        transforms = _transforms_of(mount)
        kind = "/".join(mount.type.split("/")[len(transforms) :])
        if kind in {LOOP, EROFS}:
            count = number + 1
        elif transforms:
            count = number  # what is before it has to be there; it can then be made by anybody
    return count


def _is_whole(activation: Activation) -> bool:
    return all(is_there(Path(one.mount_point)) for one in activation.active)
