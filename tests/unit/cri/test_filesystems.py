"""What layers take on disk, with snapshotters that are made up; with real ones: e2e/test_cri_stats.py."""

from pathlib import Path
from typing import Any

from runtimed.cri.filesystems import Filesystems
from runtimed.errors import Unavailable
from runtimed.snapshots.snapshotter import Usage


class Snapshots:
    def __init__(self, usage):
        self._usage = usage

    def usage(self, namespace, key):
        if self._usage is None:
            raise Unavailable("its process does not answer")
        return self._usage


async def test_one_layer_that_cannot_be_measured_is_no_error_of_all():
    """Of a snapshotter that was configured when its pod was made, or whose process has ended."""
    snapshotters: Any = {"used": Snapshots(Usage(5, 1)), "before": Snapshots(Usage(7, 1)), "ended": Snapshots(None)}
    filesystems = Filesystems(Path("/r"), snapshotters, ["used"])
    found = {name: await filesystems.usage(name, "c") for name in ("used", "before", "ended", "gone")}
    assert {name: one and one.size for name, one in found.items()} == {
        "used": 5,
        "before": 7,
        "ended": None,
        "gone": None,
    }
