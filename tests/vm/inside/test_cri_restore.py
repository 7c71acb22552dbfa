"""A container of a pod, from its checkpoint on, in a new pod: what it had in memory and what it had written."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri, cri_daemon
from tests.vm.inside.conftest import cgroup_of, pushed

pytestmark = pytest.mark.root

# Counts, and says how far whenever a file asks for it.
COUNT = (
    "n=0; echo mine > /etc/mine; rm /etc/motd; echo begun;"
    " while :; do n=$((n+1)); [ ! -e /ask ] || { echo told $n; rm /ask; }; done"
)
UNCONFINED = {"apparmor": pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)}


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with cri_daemon() as running, pushed(tmp_path_factory.mktemp("image")) as image:
        running.write_network()
        running.pull(image)
        running.image = image
        yield running


def logged(cri: Cri, id: str, text: str) -> str:
    """Return the log of a container, once *text* is in it."""
    log = Path(cri.status(id).log_path)
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return log.read_text()


def counted(cri: Cri, id: str, times: int) -> int:
    """Ask for the *times*th time how far it has counted."""
    request = pb.ExecSyncRequest(container_id=id, cmd=["sh", "-c", "> /ask"], timeout=100)
    cri.runtime.ExecSync(request, timeout=2 * TIMEOUT_S)
    deadline = time.monotonic() + 120
    log = Path(cri.status(id).log_path)
    while log.read_text().count("told") < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return int(log.read_text().rpartition("told ")[2].split()[0])


def test_a_container_goes_on_from_its_checkpoint_in_another_pod(cri: Cri, tmp_path: Path):
    old = cri.run_pod("old")
    config = cri.container_config("counts", COUNT, image=cri.image, security=UNCONFINED)
    id = cri.create(old, config)
    cri.start(id)
    logged(cri, id, "begun")
    before = counted(cri, id, 1)
    archive = tmp_path / "checkpoint.tar"
    request = pb.CheckpointContainerRequest(container_id=id, location=str(archive), timeout=200)
    cri.runtime.CheckpointContainer(request, timeout=4 * TIMEOUT_S)
    cri.remove_pod(old)

    new = cri.run_pod("new")
    config.image.image = str(archive)
    config.linux.resources.memory_limit_in_bytes = 256 << 20
    restored = cri.create(new, config)
    directory = cri.daemon.root / "cri/containers" / restored / "restore"
    assert (directory / "checkpoint/inventory.img").exists()
    cri.daemon.kill()  # what it is to be started from is still there afterwards
    cri.daemon.start()
    cri.reconnect()
    cri.start(restored)

    status = cri.status(restored)
    assert status.state == pb.CONTAINER_RUNNING
    assert status.started_at > status.created_at
    assert (status.image.image, cri.container_info(restored)["pid"] > 0) == (cri.image, True)
    assert not directory.exists()
    assert "begun" in Path(status.log_path).read_text()  # of the one that it was
    assert counted(cri, restored, 2) > before
    assert cri.shell(restored, "cat /etc/mine; ls /etc/motd").split()[0] == "mine"
    assert "No such file" in cri.shell(restored, "cat /etc/motd")
    # It is in the new pod: its network, and its cgroup.
    pid, pause = cri.container_info(restored)["pid"], cri.info(new)["pid"]
    assert Path(f"/proc/{pid}/ns/net").stat().st_ino == Path(f"/proc/{pause}/ns/net").stat().st_ino
    assert cgroup_of(pid).name == restored
    assert cri.shell(restored, "cat /proc/1/cgroup") == "0::/\n"
    assert (cgroup_of(pid) / "memory.max").read_text() == f"{256 << 20}\n"  # not what it had then

    cri.stop(restored)
    assert cri.status(restored).exit_code == 137
    cri.remove(restored)
    assert not list((cri.daemon.root / "cri/containers").iterdir())
