"""Inside a guest: a daemon on cgroup v2 alone, and a busybox image from a registry in this process.

Each command of rctl costs seconds here, so a daemon and a pull serve all tests.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.registry import FakeRegistry
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

APPLETS = ("sh", "cat", "head", "id", "mount", "rm", "sleep", "stat")
CONFIG = """\
version = 1
[runtimes."io.containerd.crun.v1"]
binary = "crun"
"""


@pytest.fixture(scope="session")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon(start=False) as running:
        running.config.write_text(CONFIG)
        running.start()
        yield running


@pytest.fixture(scope="session")
def image(daemon: PrivateDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference of a busybox image, pulled."""
    with pushed(tmp_path_factory.mktemp("image")) as reference:
        daemon.rctl("pull", reference)
        yield reference


@contextmanager
def pushed(directory: Path) -> Iterator[str]:
    """The reference of a busybox image in a registry."""
    layout = Layout(directory / "layout")
    programs = {f"bin/{applet}": "busybox" for applet in APPLETS}
    layers = [
        layout.layer({"bin/busybox": Path("/bin/busybox").read_bytes(), **programs, "etc/removed": b"by the next"}, ""),
        layout.layer({"etc/.wh.removed": b"", "etc/motd": b"welcome\n"}),
    ]
    layout.image("busybox", layers, platform=PLATFORM, run={"Env": ["PATH=/bin"]})
    with FakeRegistry() as registry:
        registry.add(layout.root, "guest")
        yield f"{registry.host}/guest:busybox"


def runtimes() -> list[str]:
    """Return the runtimes to test: each on one kernel, or with ``RUNTIMED_VM_FULL`` both on both."""
    both = ["io.containerd.runc.v2", "io.containerd.crun.v1"]
    if os.environ.get("RUNTIMED_VM_FULL"):
        return both
    return both[1:] if os.uname().release.startswith("6.1.") else both[:1]


@pytest.fixture(scope="session", params=runtimes())
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cgroup_of(pid: int) -> Path:
    """Return the directory of the process's cgroup."""
    [line] = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return Path("/sys/fs/cgroup") / line.rpartition(":")[2].lstrip("/")


def wait_for(path: Path, limit_s: float = 20.0) -> None:
    """Wait until *path* is there: another process makes it."""
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)
