"""A snapshotter that keeps copies in a directory of the administrator's choice, say on a faster disk.

Installed, it is what clients call "elsewhere".
"""

from dataclasses import dataclass
from pathlib import Path

from runtimed.snapshots.copying import copy_tree
from runtimed.snapshots.snapshotter import NotSupported, Usage
from runtimed.snapshots.trees import disk_usage, empty
from runtimed.snapshots.whole import WholeTrees


class ElsewhereSnapshotter(WholeTrees):
    capabilities = ()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The table [snapshotters.elsewhere]: unknown keys and wrong types are refused by the daemon."""

        directory: str = ""

    def __init__(self, root: Path, config: Config) -> None:
        if not Path(config.directory).is_absolute():
            raise NotSupported("snapshotters.elsewhere.directory is not set")  # clients take another snapshotter
        if not Path(config.directory).is_dir():
            raise NotSupported(f"there is no directory {config.directory}: is its disk mounted?")
        super().__init__(Path(config.directory) / "snapshots")

    def _make(self, parent: Path | None, path: Path) -> None:
        path.mkdir()
        path.chmod(0o755)  # whatever the umask
        if parent:
            copy_tree(parent, path)

    def _measure(self, path: Path) -> Usage:
        return disk_usage(path)

    def _erase(self, directory: Path) -> None:
        empty(directory)
