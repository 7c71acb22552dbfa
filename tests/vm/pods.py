"""What runs in the guests of test_reboot.py: pods before the power goes, and what a node sees of them afterwards.

The root of the daemon is on the disk, its state where a boot finds nothing, as on a node. What the first boot has made,
it tells the second in a file.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import Cri
from tests.daemon import PrivateDaemon
from tests.vm.inside.conftest import pushed

BASE = Path("/data/pods")
STATE = Path("/run/rtd-pods")
MADE = BASE / "made.json"
IDS = [pb.IDMapping(host_id=300000, container_id=0, length=65536)]


@contextmanager
def node() -> Iterator[Cri]:
    BASE.mkdir(mode=0o711, exist_ok=True)
    daemon = PrivateDaemon(BASE, namespace="rtd-pods")
    daemon.state = STATE
    daemon.config.write_text(f'version = 1\n[cri.cni]\nconf_dir = "{BASE}/net.d"\nbin_dirs = ["/usr/lib/cni"]\n')
    cri = Cri(daemon)
    daemon.start()
    try:
        yield cri
    finally:
        cri.close()
        daemon.stop()


def wait_for_end(cri: Cri, id: str) -> None:
    with cri.events() as events:
        if cri.status(id).state != pb.CONTAINER_EXITED:
            next(
                one
                for one in events
                if one.container_id == id and one.container_event_type == pb.CONTAINER_STOPPED_EVENT
            )


def before() -> None:
    """Make pods and containers in every state there is; then wait for the power to go."""
    with tempfile.TemporaryDirectory() as place, pushed(Path(place)) as image, node() as cri:
        cri.write_network()
        cri.pull(image)
        pods = {
            "plain": cri.run_pod("plain", uid="plain"),
            "mapped": cri.run_pod("mapped", userns=pb.UserNamespace(mode=pb.POD, uids=IDS, gids=IDS)),
            "stopped": cri.run_pod("stopped", network=pb.NODE),
        }

        def create(name: str, pod: str, command: str) -> str:
            return cri.create(pods[pod], cri.container_config(name, command, image=image))

        made = {
            "running": create("running", "plain", "echo before; exec sleep 1000"),
            "mapped": create("mapped", "mapped", "exec sleep 1000"),
            "failed": create("failed", "plain", "exit 7"),
            "created": create("created", "plain", "true"),
            "stopped": create("stopped", "stopped", "exec sleep 1000"),
        }
        for name in ("running", "mapped", "failed", "stopped"):
            cri.start(made[name])
        wait_for_end(cri, made["failed"])
        cri.stop_pod(pods["stopped"])
        assert len(cri.addresses()) == 2
        with MADE.open("w") as file:
            json.dump({"pods": pods, "containers": made, "image": image}, file)
            file.flush()
            os.fsync(file.fileno())
        print("made", flush=True)
        signal.pause()


def after() -> None:
    """See that all is told as it was, and can be removed and made again."""
    made = json.loads(MADE.read_text())
    pods, containers = made["pods"], made["containers"]
    with node() as cri:
        assert {one.id: one.state for one in cri.pods()} == {id: pb.SANDBOX_NOTREADY for id in pods.values()}
        told = {name: cri.status(id) for name, id in containers.items()}
        assert {name: (one.state, one.exit_code) for name, one in told.items()} == {
            "running": (pb.CONTAINER_EXITED, 255),
            "mapped": (pb.CONTAINER_EXITED, 255),
            "failed": (pb.CONTAINER_EXITED, 7),
            "created": (pb.CONTAINER_CREATED, 0),
            "stopped": (pb.CONTAINER_EXITED, 137),
        }
        assert all(one.finished_at >= one.started_at > 0 for name, one in told.items() if name != "created")
        assert " stdout F before\n" in Path(told["running"].log_path).read_text()
        assert cri.status(containers["failed"]).reason == "Error"
        for directory in ("netns", "userns", "cri/sandboxes", "cri/mapped", "io.containerd.runtime.v2.task/k8s.io"):
            assert not [*(STATE / directory).glob("*")], directory
        with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
            cri.start(containers["created"])  # its pod does not run
        assert len(cri.addresses()) == 2
        for pod in pods.values():
            cri.stop_pod(pod)
        assert cri.addresses() == []
        # A kubelet makes the pod anew before the old one is removed, from the image that is still there.
        new = cri.run_pod("plain", uid="plain", attempt=1)
        id = cri.create(new, cri.container_config("running", "exec sleep 1000", image=made["image"], attempt=1))
        cri.start(id)
        assert cri.status(id).state == pb.CONTAINER_RUNNING
        for pod in (new, *pods.values()):
            cri.remove_pod(pod)
        assert not cri.pods()
        assert not cri.containers()
        assert cri.addresses() == []
        assert not [*(STATE / "io.containerd.runtime.v2.task/k8s.io").glob("*")]
    print("as it was", flush=True)


if __name__ == "__main__":
    {"before": before, "after": after}[sys.argv[1]]()
