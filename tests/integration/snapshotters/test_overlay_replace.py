"""A committed layer that is damaged, and takes the content of another snapshot."""

from contextlib import closing

import pytest

from runtimed.errors import DataLoss
from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance import commit_layer
from snapshotters.overlay import OverlaySnapshotter

pytestmark = pytest.mark.root


def test_overlayfs_directories_are_checked_and_replaced(tmp_path):
    config = OverlaySnapshotter.Config(layers="directories")
    with closing(OverlaySnapshotter(tmp_path / "root", config)) as overlay:
        commit_layer(overlay, "base", "", {"file": "1" * 5000, "other": "2"})
        commit_layer(overlay, "top", "base", {"more": "3"})
        overlay.check("base")
        overlay.check("top")
        cut_short_file = tmp_path / "root/snapshots/1/fs/file"
        cut_short_file.write_bytes(b"")
        with pytest.raises(DataLoss, match="of snapshot 'base' there are 3 inodes and"):
            overlay.check("base")
        with mounted_temporarily(overlay.prepare("new", "", {})) as root:
            (root / "file").write_text("1" * 5000)
            (root / "other").write_text("2")
        overlay.replace("base", "new")
        overlay.check("base")
        assert [info.name for info in overlay.list()] == ["base", "top"]
        assert sorted(path.name for path in (tmp_path / "root/snapshots").iterdir()) == ["1", "2"]
        with mounted_temporarily(overlay.view("v", "top", {})) as root:
            assert (root / "file").read_text() == "1" * 5000
