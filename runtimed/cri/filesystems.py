"""What images and the containers' writable layers take on disk."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimed.cri.images import NAMESPACE
from runtimed.errors import NotFound, RuntimedError
from runtimed.metadata.snapshots import Snapshots
from runtimed.snapshots.snapshotter import Kind, Usage
from runtimed.threads import blocking


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemUsage:
    """Of one snapshotter. ``at`` is nanoseconds since the epoch, UTC; ``size`` is bytes allocated."""

    mountpoint: str
    at: int
    size: int
    inodes: int


class Filesystems:
    """Measures the snapshotters that pods use. A committed snapshot is asked once: it never changes."""

    def __init__(self, root: Path, snapshotters: Mapping[str, Snapshots], names: Sequence[str]) -> None:
        self._root = root
        self._all = snapshotters
        self._snapshotters = {name: snapshotters[name] for name in names if name in snapshotters}
        self._committed: dict[tuple[str, str], Usage] = {}

    async def usages(self) -> Sequence[FilesystemUsage]:
        """Return the usage of each snapshotter by images and containers of Kubernetes."""
        return await blocking(self._usages)

    async def usage(self, snapshotter: str, key: str) -> FilesystemUsage | None:
        """Return what one container's writable layer takes; None if it is gone, or nobody can tell."""
        return await blocking(self._usage, snapshotter, key)

    def _usages(self) -> Sequence[FilesystemUsage]:
        found, seen = [], {}
        for name, snapshots in self._snapshotters.items():
            size = inodes = 0
            for info in snapshots.list(NAMESPACE):
                usage = self._committed.get((name, info.name))
                if usage is None:
                    try:
                        usage = snapshots.usage(NAMESPACE, info.name)
                    except NotFound:
                        continue  # removed meanwhile
                if info.kind is Kind.COMMITTED:
                    seen[name, info.name] = usage
                size, inodes = size + usage.size, inodes + usage.inodes
            found.append(self._at(name, Usage(size, inodes)))
        self._committed = seen
        return found

    def _usage(self, snapshotter: str, key: str) -> FilesystemUsage | None:
        # A pod may have been made when another snapshotter was configured, or its process does not answer: all other
        # containers have their sizes all the same.
        if (snapshots := self._all.get(snapshotter)) is None:
            return None
        with suppress(RuntimedError):
            return self._at(snapshotter, snapshots.usage(NAMESPACE, key))
        return None

    def _at(self, snapshotter: str, usage: Usage) -> FilesystemUsage:
        return FilesystemUsage(
            mountpoint=str(self._root / snapshotter), at=time.time_ns(), size=usage.size, inodes=usage.inodes
        )
