"""What every snapshotter promises (runtimed/snapshots/snapshotter.py), each test once per implementation of ours.

`test_snapshotters_btrfs.py` has the one that needs a file system, tests/integration/snapshotters the EROFS layers.
"""

import pytest

from runtimed.snapshots.conformance import *  # noqa: F403
from snapshotters.native import NativeSnapshotter
from snapshotters.overlay import OverlaySnapshotter

pytestmark = pytest.mark.root


@pytest.fixture(params=["overlayfs", "native"])
def implementation(request):
    if request.param == "overlayfs":
        return lambda root: OverlaySnapshotter(root, OverlaySnapshotter.Config())
    return lambda root: NativeSnapshotter(root, NativeSnapshotter.Config())
