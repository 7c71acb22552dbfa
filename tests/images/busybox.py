"""A busybox image as an OCI layout, from Debian's busybox-static: three layers, with a whiteout between them."""

import os
import subprocess
import tarfile
from pathlib import Path

from tests.images.layouts import Layout

PLATFORM = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[os.uname().machine]
NAME = "busybox"


def busybox(directory: Path) -> Path:
    """Write the layout, whose one image is called ``busybox``, to *directory*, and return it."""
    layout = Layout(directory)
    binary = Path("/bin/busybox")
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layers = [
        layout.layer(
            {
                "tmp": _directory("tmp", 0o1777),
                **{f"bin/{applet}": "busybox" for applet in applets},
                "bin/busybox": binary.read_bytes(),
                "etc/removed": b"a later layer deletes this\n",
            }
        ),
        layout.layer(
            {
                "etc/passwd": b"root:x:0:0:root:/:/bin/sh\nalice:x:1000:1001::/:/bin/sh\n",
                "etc/group": b"root:x:0:\nalice:x:1001:\n",
                "etc/.wh.removed": b"",
            },
            compression="zstd",
        ),
        layout.layer(
            {"etc/motd": b"welcome\n", "data/numbers": b"".join(b"%d\n" % n for n in range(100_000))}, compression=""
        ),
    ]
    run = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"]}
    layout.image(NAME, layers, platform=PLATFORM, run=run)
    return directory


def _directory(name: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry
