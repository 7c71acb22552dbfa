"""The benchmarks run: each suite once, tiny. What they say is not looked at, only that they say it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_NEEDED = ("containerd", "ctr", "runc", "docker-registry", "skopeo", "mkfs.ext4")

_ROWS = (
    "shim: start to delete",
    "ctr run --rm true",
    "1000 Content/Read",
    "USS of a shim",
    "RSS of runtimed",
    "A: pull and unpack",
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, _NEEDED)), reason=f"needs {', '.join(_NEEDED)}"),
]


def test_each_suite_gives_its_rows():
    suites = ("shim", "run", "calls", "fleet", "soak", "images", "erofs", "limits")  # cri's needs a network of its own
    sizes = ("--runs", "1", "--image-runs", "1", "--containers", "2", "--soak", "2", "--stdout-mb", "4")
    image = ("--entries", "60", "--layers", "2", "--images", "A,import,cold", "--many", "2000", "--limits", "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *suites, *sizes, *image],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for row in (
        "shim: start to delete",
        "ctr run --rm true",
        "1000 Content/Read",
        "USS of a shim",
        "RSS of runtimed",
        "list blobs",
        "A: pull and unpack",
    ):
        assert done.stdout.count(f"| {row}") >= 2, done.stdout
