"""CheckpointContainer with CRIU: what is in the archive, and that the container goes on."""

import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, Cri
from tests.daemon import PrivateDaemon

pytestmark = pytest.mark.root

# Says what it counted whenever a file asks for it.
COUNT = (
    "n=0; echo mine > /etc/mine; echo begun;"
    " while :; do n=$((n+1)); [ ! -e /ask ] || { echo told $n; exec sleep 1000; }; done"
)


@pytest.fixture
def cri(daemon: PrivateDaemon, image: str) -> Iterator[Cri]:
    running = Cri(daemon)
    running.pull(image)
    yield running
    running.clear()
    running.close()


def test_a_checkpoint_of_a_pods_container_is_an_archive_and_the_container_goes_on(cri: Cri, image: str, tmp_path: Path):
    pod = cri.run_pod("pod", network=pb.NODE, privileged=True)
    unconfined = {"apparmor": pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)}
    id = cri.create(pod, cri.container_config("counts", COUNT, image=image, security=unconfined))
    cri.start(id)
    log = Path(cri.status(id).log_path)
    deadline = time.monotonic() + 60
    while "begun" not in log.read_text():
        assert time.monotonic() < deadline
    location = tmp_path / "checkpoint.tar"
    request = pb.CheckpointContainerRequest(container_id=id, location=str(location), timeout=200)
    cri.runtime.CheckpointContainer(request, timeout=4 * TIMEOUT_S)

    assert location.stat().st_mode & 0o777 == 0o600
    with tarfile.open(location) as archive:
        names = archive.getnames()
        assert {"checkpoint/inventory.img", "checkpoint/pages-1.img", "stats-dump", "container.log"} <= set(names)

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        config, status, spec = (json.loads(read(name)) for name in ("config.dump", "status.dump", "spec.dump"))
        assert (config["id"], config["rootfsImage"]) == (id, image)
        assert status["metadata"] == {"name": "counts"}
        assert status["created_at"] == cri.status(id).created_at
        assert json.loads(read("status"))["StartedAt"] == cri.status(id).started_at
        assert spec["process"]["args"][:2] == ["/bin/sh", "-c"]
        assert b"begun" in read("container.log")
        diff = archive.extractfile("rootfs-diff.tar")
        with tarfile.open(fileobj=diff) as changes:
            assert "etc/mine" in changes.getnames()
    # It goes on, and nothing is left of the making.
    assert cri.status(id).state == pb.CONTAINER_RUNNING
    probe = pb.ExecSyncRequest(container_id=id, cmd=["sh", "-c", "> /ask"], timeout=100)
    cri.runtime.ExecSync(probe, timeout=2 * TIMEOUT_S)
    while "told" not in log.read_text():
        assert time.monotonic() < deadline + 120
    assert not list(cri.daemon.root.glob("cri/containers/*/checkpoint-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.tar"]
