"""The doctor finds nothing where pods and sandboxes of shims live, and leaves all that is theirs as it is."""

from pathlib import Path

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.mounts import mounts_below
from tests.cri import cri_daemon
from tests.e2e.test_sandboxes import Sandboxes, shim_program

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def cri(busybox):
    with cri_daemon() as running:
        running.write_network()
        running.pull(busybox)
        yield running


def test_pods_and_sandboxes_are_no_strays(cri, busybox):
    daemon = cri.daemon
    cri.run_pod("host", network=pb.NODE)
    pod = cri.run_pod("pod")
    running, ended, created = (
        cri.create(pod, cri.container_config(name, "sleep 1000", image=busybox)) for name in ("r", "e", "c")
    )
    cri.start(running)
    cri.start(ended)
    cri.stop(ended)
    cri.stop_pod(cri.run_pod("stopped"))
    sandboxes = Sandboxes(daemon)
    sandboxes.record("vm", "shim", runtime=shim_program(daemon), fake={})
    sandboxes.call("Create", "vm")
    shim = sandboxes.call("Start", "vm").pid

    before = _theirs(daemon.state), cri.addresses()
    assert "nothing is wrong" in daemon.rctl("doctor").stdout
    daemon.stop()
    daemon.start()
    cri.reconnect()
    assert "nothing is wrong" in daemon.rctl("doctor", "--repair").stdout
    assert (_theirs(daemon.state), cri.addresses()) == before

    assert cri.status(running).state == pb.CONTAINER_RUNNING
    assert cri.status(ended).state == pb.CONTAINER_EXITED
    assert cri.status(created).state == pb.CONTAINER_CREATED
    exec = pb.ExecSyncRequest(container_id=running, cmd=["ip", "addr", "show", "eth0"])
    assert cri.subnet in cri.runtime.ExecSync(exec).stdout.decode()
    sandboxes.channel.close()
    again = Sandboxes(daemon)
    assert (again.call("Status", "vm").state, again.call("Status", "vm").pid) == ("SANDBOX_READY", shim)
    again.call("Stop", "vm")
    again.call("Shutdown", "vm")
    again.forget("vm")
    again.channel.close()


def _theirs(state: Path) -> list[str]:
    """What pods and sandboxes have below the state directory."""
    found = [str(path) for top in ("netns", "cri", "s") for path in (state / top).rglob("*")]
    found += [f"mounted {path}" for path in mounts_below(state)]
    return sorted(found)
