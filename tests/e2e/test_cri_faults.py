"""Pods when things go wrong: plugins that fail or hang, a daemon that dies, a machine that starts anew."""

import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.daemon import cgroups

pytestmark = [pytest.mark.root, pytest.mark.e2e]

# Fails in the command that its file of that name stands for, hangs if that says so; notes each call.
PLUGIN = """#!/bin/sh
dir=$(dirname "$0")
echo "$CNI_COMMAND $CNI_CONTAINERID" >> "$dir/calls"
case $(cat "$dir/$CNI_COMMAND" 2>/dev/null) in
    fail) echo '{"cniVersion": "1.0.0", "code": 100, "msg": "told to fail"}'; exit 1;;
    hang) echo $$ >> "$dir/pids"; sleep 1000;;
esac
sed -n 's/.*"prevResult":\\(.*\\)}$/\\1/p'
"""


class Plugin:
    """A plugin after the bridge that does what the test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "faulty"
        path.write_text(PLUGIN)
        path.chmod(0o755)

    def on(self, command: str, what: str) -> None:
        (self.directory / command).write_text(what)

    def heal(self) -> None:
        for command in ("ADD", "DEL"):
            (self.directory / command).unlink(missing_ok=True)

    def calls(self, command: str) -> int:
        path = self.directory / "calls"
        return sum(line.startswith(command) for line in path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    return Plugin(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="module")
def shared(plugins):
    settings = "plugin_limit_s = 2\n"
    with cri_daemon(settings, bin_dirs=["/usr/lib/cni", str(plugins.directory)]) as running:
        running.write_network(running.bridge_plugin(), {"type": "faulty"})
        yield running


@pytest.fixture
def cri(shared, plugins):
    yield shared
    plugins.heal()


def left(cri):
    """Return what there is of pods: networks, files, tasks, addresses."""
    state = cri.daemon.state
    found = [*state.glob("netns/*"), *state.glob("cri/sandboxes/*"), *state.glob("io.containerd*/k8s.io/*")]
    return [path.name for path in found] + cri.addresses()


def test_a_plugin_that_fails_leaves_nothing_and_the_name_is_free(cri, plugins):
    plugins.on("ADD", "fail")
    config = cri.pod_config("failed", uid="failed")
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as failed:
            cri.run(config)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "CNI plugin faulty ADD: told to fail" in str(failed.value)
    assert left(cri) == []
    assert not cri.pods()
    plugins.heal()
    cri.remove_pod(cri.run(config))


def test_a_plugin_that_hangs_is_killed(cri, plugins):
    plugins.on("ADD", "hang")
    with pytest.raises(grpc.RpcError) as failed:
        cri.run_pod("hung")
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "CNI plugin faulty ADD: not done within 2 s, killed" in str(failed.value)
    assert left(cri) == []
    for pid in (plugins.directory / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_pod_that_cannot_leave_its_network_stays_until_it_can(cri, plugins):
    pod = cri.run_pod("stays")
    plugins.on("DEL", "fail")
    for _ in range(2):
        with pytest.raises(grpc.RpcError, match="faulty DEL: told to fail"):
            cri.stop_pod(pod)
    assert cri.pod_status(pod).status.state == pb.SANDBOX_NOTREADY
    with pytest.raises(grpc.RpcError, match="told to fail"):
        cri.remove_pod(pod)
    assert [one.id for one in cri.pods()] == [pod]
    plugins.heal()
    cri.remove_pod(pod)
    assert left(cri) == []


def test_one_that_could_neither_be_made_nor_leave_is_listed_and_can_be_removed(cri, plugins):
    plugins.on("ADD", "fail")
    plugins.on("DEL", "fail")
    config = cri.pod_config("both", uid="both")
    with pytest.raises(grpc.RpcError, match="faulty ADD"):
        cri.run(config)
    [pod] = cri.pods()
    assert pod.state == pb.SANDBOX_NOTREADY
    plugins.heal()
    again = cri.run(config)  # its name is not taken
    assert again != pod.id
    cri.daemon.kill()
    cri.daemon.start()
    cri.reconnect()
    assert {one.id for one in cri.pods()} == {pod.id, again}
    before = plugins.calls("DEL")
    cri.remove_pod(pod.id)
    assert plugins.calls("DEL") > before
    cri.remove_pod(again)
    assert left(cri) == []


def test_lists_and_status_answer_while_pods_are_slow(cri, plugins):
    plugins.on("ADD", "hang")
    with ThreadPoolExecutor(5) as threads:
        slow = [threads.submit(cri.run_pod, f"slow{number}") for number in range(5)]
        while plugins.calls("ADD") == 0:
            cri.runtime.Version(pb.VersionRequest(), timeout=5)
        cri.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=1)
        cri.runtime.ListContainers(pb.ListContainersRequest(), timeout=1)
        cri.runtime.Status(pb.StatusRequest(), timeout=1)
        assert not any(one.done() for one in slow)
        for one in slow:
            assert isinstance(one.exception(), grpc.RpcError)
    assert left(cri) == []


def test_a_database_that_is_slow_to_commit_holds_up_what_writes_and_nothing_else(cri):
    there = cri.run_pod("there", network=pb.NODE)
    with ThreadPoolExecutor(8) as threads, sqlite3.connect(cri.daemon.root / "metadata.db", timeout=20) as other:
        for number in range(3):
            other.execute("BEGIN IMMEDIATE")  # nobody can commit, as while a disk syncs; readers do not notice
            name = f"slow-{number}"
            coming = [threads.submit(cri.run_pod, f"{name}-{one}", network=pb.NODE) for one in range(4)]
            assert there in [pod.id for pod in cri.pods(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))]
            assert cri.pod_status(there, verbose=True).status.state == pb.SANDBOX_READY
            assert not cri.containers()
            assert cri.runtime.Status(pb.StatusRequest(), timeout=TIMEOUT_S).status.conditions[0].status
            cri.images.ListImages(pb.ListImagesRequest(), timeout=TIMEOUT_S)
            assert not any(one.done() for one in coming)
            other.rollback()
            made = [one.result() for one in coming]
            for done in [threads.submit(cri.remove_pod, pod) for pod in made]:
                done.result()
    other.close()
    cri.remove_pod(there)
    assert not left(cri)


def test_a_daemon_that_dies_while_it_makes_a_pod_cleans_up_at_its_next_start(cri, plugins):
    plugins.on("ADD", "hang")
    (plugins.directory / "pids").unlink(missing_ok=True)
    config = cri.pod_config("killed", uid="killed")
    call = cri.runtime.RunPodSandbox.future(pb.RunPodSandboxRequest(config=config), timeout=TIMEOUT_S)
    while not (plugins.directory / "pids").exists():
        cri.runtime.Version(pb.VersionRequest(), timeout=5)
    cri.daemon.kill()
    assert isinstance(call.exception(), grpc.RpcError)
    os.killpg(int((plugins.directory / "pids").read_text().split()[-1]), signal.SIGKILL)
    plugins.heal()
    # What a container being made at that moment leaves: its root file system, mounted to be looked at, twice.
    mountpoint = cri.daemon.state / "cri/mounts/runtimed-mount-killed"
    mountpoint.mkdir(mode=0o700, parents=True)
    for _ in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mountpoint], check=True)
    (cri.daemon.state / "cri/mounts/runtimed-mount-empty").mkdir()
    # What cannot be removed is told, and keeps no daemon from starting.
    stuck = cri.daemon.state / "cri/mapped/killed/0/of-somebody"
    stuck.mkdir(parents=True)
    # And a pod, killed between the file and the namespace on it: plugins say "unknown FS magic", for ever.
    for path in (cri.daemon.state / "netns").iterdir():
        subprocess.run(["umount", path], check=True)
    cri.daemon.start()
    cri.reconnect()
    assert list(mountpoint.parent.iterdir()) == []
    assert stuck.exists()
    assert f"{stuck.parents[1]}" in (cri.daemon.base / "log").read_text()
    shutil.rmtree(stuck.parents[1])
    for pod in cri.pods():
        assert pod.state == pb.SANDBOX_NOTREADY
    new = cri.run(config)  # a kubelet asks again: the name is not taken by what was never made
    for pod in cri.pods():
        cri.remove_pod(pod.id)
    assert new not in [pod.id for pod in cri.pods()]
    assert left(cri) == []


def pids_below(cgroup):
    return [int(pid) for path in cgroup.rglob("cgroup.procs") for pid in path.read_text().split()]


def test_after_a_restart_of_the_machine_pods_are_stopped_and_their_addresses_can_be_freed(plugins, busybox):
    with cri_daemon() as cri:
        cri.write_network()
        cri.pull(busybox)
        pods = [cri.run_pod(f"old{number}") for number in range(3)]
        id = cri.create(pods[0], cri.container_config("one", "sleep 1000", image=busybox))
        cri.start(id)
        pids = [json.loads(cri.pod_status(pod, verbose=True).info["info"])["pid"] for pod in pods]
        cri.daemon.kill()
        # What a restart does: no processes, no mounts, an empty state directory.
        for pid in pids:
            shims = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
            os.kill(int(shims.stdout), signal.SIGKILL)
        for pid in [pid for path in cgroups(cri.daemon.namespace) for pid in pids_below(path)]:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                assert select.select([pidfd], [], [], 20)[0]
                os.close(pidfd)
        for path in [path for top in cgroups(cri.daemon.namespace) for path in top.iterdir() if path.is_dir()]:
            path.rmdir()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if str(cri.daemon.state) in line:
                subprocess.run(["umount", "-l", line.split()[4]], check=True)
        subprocess.run(["rm", "-rf", str(cri.daemon.state)], check=True)
        cri.daemon.start()
        cri.reconnect()
        assert {one.state for one in cri.pods()} == {pb.SANDBOX_NOTREADY}
        status = cri.status(id)
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 255)
        assert len(cri.addresses()) == 3
        for pod in pods:
            cri.stop_pod(pod)
        assert cri.addresses() == []
        for pod in pods:
            cri.remove_pod(pod)
        assert not cri.containers()
