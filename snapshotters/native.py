"""The native snapshotter: every snapshot is a whole copy. For file systems that overlayfs does not work on.

Where the file system can share blocks between files (btrfs, XFS), a copy costs metadata only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runtimed.snapshots.copying import copy_tree
from runtimed.snapshots.snapshotter import Usage
from runtimed.snapshots.trees import disk_usage, empty
from runtimed.snapshots.whole import WholeTrees


class NativeSnapshotter(WholeTrees):
    """One directory per snapshot, a copy of its parent's to begin with."""

    capabilities: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The ``[snapshotters.native]`` table, which has no keys."""

    def __init__(self, root: Path, config: Config) -> None:
        super().__init__(root)

    def _make(self, parent: Path | None, path: Path) -> None:
        path.mkdir(mode=0o700)
        path.chmod(0o755)  # whatever the umask
        if parent:
            copy_tree(parent, path)

    def _measure(self, path: Path) -> Usage:
        return disk_usage(path)

    def _erase(self, directory: Path) -> None:
        empty(directory)
