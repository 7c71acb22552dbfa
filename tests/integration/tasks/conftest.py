"""Daemons that run containers with our own shim and runc."""

import secrets
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed.errors import RuntimedError
from tests.fakes.tasks import NS, TaskDaemon, process, short_home

BUSYBOX = Path("/bin/busybox")


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Have a start wait for all that is to be cleaned up, however busy the machine is."""
    monkeypatch.setattr("runtimed.tasks.loading._ALL_LOADED_WITHIN_S", 60.0)


@pytest.fixture
def home():
    with short_home() as home:
        yield home


@pytest.fixture
def rootfs(home):
    for name in ("bin", "proc", "dev"):
        (home / "rootfs" / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, home / "rootfs/bin/busybox")
    return home / "rootfs"


@pytest.fixture
def cgroup():
    """The parent of a test's cgroups, in every hierarchy."""
    parent = f"rt-test-{secrets.token_hex(4)}"
    yield f"/{parent}"
    for directory in [*Path("/sys/fs/cgroup").glob(parent), *Path("/sys/fs/cgroup").glob(f"*/{parent}")]:
        directory.rmdir()


@pytest.fixture
async def daemon(home, cgroup):
    daemon = await TaskDaemon(home).start()
    yield daemon
    for task in await daemon.tasks.list(NS):
        with suppress(RuntimedError):
            await daemon.tasks.kill(NS, task.container_id, "", signal.SIGKILL, all=True)
            await daemon.tasks.wait(NS, task.container_id, "")
        await daemon.tasks.delete(NS, task.container_id)
    await daemon.stop()


@pytest.fixture
def spec(rootfs, cgroup):
    def spec(script: str) -> dict[str, object]:
        """An OCI runtime spec that runs *script*."""
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(rootfs)},
            "process": process(script),
            "mounts": [  # /dev, so that several can be made at once over the same rootfs
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": f"{cgroup}/{secrets.token_hex(4)}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            },
        }

    return spec
