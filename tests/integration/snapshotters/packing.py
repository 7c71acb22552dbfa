"""The overlayfs snapshotter with every layer an EROFS file, whoever made it and however."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from runtimed.snapshots.trees import empty
from snapshotters.overlay import OverlaySnapshotter


class PackingOverlaySnapshotter(OverlaySnapshotter):
    """Packs what was written through the mounts into the file that a worker would have written, and commits that.

    Overlayfs' own marks, whiteouts and opaque directories, are the same in a file as in a directory.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, self.Config(layers="erofs"))

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        id = self._records.committable(name, key).id
        with self._records.locked():
            # A path that is too long for mkfs.erofs leaves a directory, as a layer does that no file can express.
            if not self._layers.unpacked(id).exists() and pack(self._upper(id), self._layers.unpacked(id)):
                empty(self._upper(id))
        super().commit(name, key, labels)


def pack(tree: Path, image: Path) -> bool:
    """Make the EROFS file *image* of *tree*; say whether mkfs.erofs can."""
    new = image.with_suffix(".new")
    # Extended inodes have times and large ids. Chunks keep holes, but mkfs.erofs makes them by copy_file_range(2) from
    # a temporary file, which some file systems refuse.
    for options in ("-Eforce-inode-extended", "--chunksize=4096"), ("-Eforce-inode-extended",):
        if subprocess.run(["mkfs.erofs", *options, new, tree], check=False, capture_output=True).returncode == 0:
            new.rename(image)
            return True
        new.unlink()
    return False
