"""What every snapshotter promises, kept by the overlayfs snapshotter when its layers are EROFS files."""

# mypy: disable-error-code="no-redef"

import os

import pytest

from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance import *  # noqa: F403
from tests.integration.snapshotters.packing import PackingOverlaySnapshotter


@pytest.fixture
def implementation():
    return PackingOverlaySnapshotter


def test_usage_counts_inodes_and_blocks_and_a_hard_link_once(snapshotter):
    """A committed layer is one inode, and as large as its file."""
    with mounted_temporarily(snapshotter.prepare("a", "", {})) as root:
        (root / "file").write_bytes(os.urandom(1 << 20))
        os.link(root / "file", root / "again")
    snapshotter.commit("base", "a", {})
    usage = snapshotter.usage("base")
    assert usage.inodes == 1
    assert 1 << 20 <= usage.size < (1 << 20) + 65536
