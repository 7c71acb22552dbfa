"""What every snapshotter promises (runtimed/snapshots/snapshotter.py), each test once per implementation of ours.

`test_snapshotters_btrfs.py` has the one that needs a file system, tests/integration/snapshotters the EROFS layers.
"""

import pytest

from runtimed.snapshots.conformance import *  # noqa: F403
from snapshotters.native import NativeSnapshotter
from snapshotters.overlay import OverlaySnapshotter

pytestmark = pytest.mark.root


@pytest.fixture
def tmp_path(tmp_path_factory):
    """One with a short name: of forty layers all have to fit in a page."""
    return tmp_path_factory.mktemp("s")


@pytest.fixture(params=["overlayfs", "native"])
def implementation(request):
    if request.param == "overlayfs":
        return lambda root: OverlaySnapshotter(root, OverlaySnapshotter.Config())
    return lambda root: NativeSnapshotter(root, NativeSnapshotter.Config())
