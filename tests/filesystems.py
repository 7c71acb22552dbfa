"""File systems of the test's own, in a file."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loop_file_system(kind: str, mountpoint: Path, *, size: int = 1 << 30, options: str = "loop") -> Iterator[Path]:
    """Hold a new file system of *kind* mounted on *mountpoint*, which is made.

    Its file is sparse, and lies in memory: what is synced again and again is not to wait for a disk.
    """
    with tempfile.NamedTemporaryFile(prefix="rtd-", dir="/dev/shm") as image:
        image.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", image.name], check=True, capture_output=True)
        mountpoint.mkdir(parents=True)
        subprocess.run(["mount", "-o", options, image.name, mountpoint], check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", mountpoint], check=True)
