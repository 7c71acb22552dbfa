"""The daemon is killed with SIGKILL at bad moments; after the next start everything is right and nothing is left."""

import json
import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtimed.api.events_pb2 import TaskExit
from tests.daemon import PrivateDaemon
from tests.fakes.gate import gate
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]

MIB = 1024 * 1024
WAIT_FOR_GO = "echo up; while [ ! -e /mnt/go ]; do sleep 0.05; done; exit 6"


@pytest.fixture
def pulled(fresh: PrivateDaemon, busybox: str) -> str:
    fresh.rctl("pull", busybox)
    return busybox


def task(daemon: PrivateDaemon, id: str) -> dict[str, object]:
    """Return what ``rctl ps`` says of a container."""
    (row,) = [row for row in json.loads(daemon.rctl("-o", "json", "ps", "-a").stdout) if row["id"] == id]
    return dict(row)


def wait_for_exit(pid: int) -> None:
    """Return when process *pid*, which is not our child, has gone."""
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)


def test_a_container_goes_on_and_is_found_again_with_its_pid(fresh, pulled, tmp_path):
    fresh.run("-d", "-v", f"{tmp_path}:/mnt", pulled, "going", "sh", "-c", WAIT_FOR_GO)
    before = task(fresh, "going")
    fresh.kill()
    assert Path(f"/proc/{before['pid']}").exists()
    fresh.start()
    after = task(fresh, "going")
    assert (after["pid"], after["status"]) == (before["pid"], before["status"])
    assert fresh.rctl("exec", "going", "echo", "still here").stdout == "still here\n"

    with fresh.events("topic==/tasks/exit") as events:
        (tmp_path / "go").touch()
        exited = TaskExit.FromString(next(events).event.value)
    assert (exited.container_id, exited.pid, exited.exit_status) == ("going", before["pid"], 6)
    assert task(fresh, "going")["exit_status"] == 6
    assert fresh.rctl("logs", "going").stdout == "up\n"
    fresh.rctl("rm", "going")


def test_a_client_that_waits_through_the_crash_gets_the_status(fresh, pulled, tmp_path):
    command = fresh.rctl_command(
        "run", "--rm", "--cgroup-parent", fresh.cgroup_parent, "-v", f"{tmp_path}:/mnt", pulled
    )
    with subprocess.Popen([*command, "--", "sh", "-c", WAIT_FOR_GO], stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        fresh.kill()
        fresh.start()
        (tmp_path / "go").touch()
        assert running.wait(30) == 6
    assert fresh.rctl("ps", "-aq").stdout == ""


def test_a_container_that_ends_while_the_daemon_is_away_keeps_its_status(fresh, pulled, tmp_path):
    fresh.run("-d", "-v", f"{tmp_path}:/mnt", pulled, "ending", "sh", "-c", WAIT_FOR_GO)
    pid = int(str(task(fresh, "ending")["pid"]))
    fresh.kill()
    (tmp_path / "go").touch()
    wait_for_exit(pid)
    fresh.start()
    ended = task(fresh, "ending")
    assert (str(ended["status"]).lower(), ended["exit_status"]) == ("exited", 6)
    fresh.rctl("rm", "ending")


def test_a_daemon_that_is_stopped_leaves_containers_running(fresh, pulled, tmp_path):
    fresh.run("-d", "-v", f"{tmp_path}:/mnt", pulled, "staying", "sh", "-c", WAIT_FOR_GO)
    pid = task(fresh, "staying")["pid"]
    fresh.stop()
    assert Path(f"/proc/{pid}").exists()
    fresh.start()
    assert task(fresh, "staying")["pid"] == pid


def test_a_shim_that_is_killed_takes_its_container_along(fresh, pulled, tmp_path):
    fresh.run("-d", "-v", f"{tmp_path}:/mnt", pulled, "orphan", "sh", "-c", WAIT_FOR_GO)
    pid = int(str(task(fresh, "orphan")["pid"]))
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    pidfd = os.pidfd_open(pid)
    try:
        with fresh.events("topic==/tasks/exit") as events:
            os.kill(shim, signal.SIGKILL)
            exited = TaskExit.FromString(next(events).event.value)
        assert (exited.container_id, exited.pid, exited.exit_status) == ("orphan", pid, 137)
        assert select.select([pidfd], [], [], 0)[0]  # it had ended when that was told
    finally:
        os.close(pidfd)
    fresh.rctl("rm", "-f", "orphan")


def test_a_pull_that_the_crash_interrupted_goes_on_where_it_was(fresh, registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    noise = random.Random(7).randbytes(24 * MIB)
    layout.image("big", [layout.layer({"noise": noise})], platform=PLATFORM)
    registry.push(layout.root, "e2e/big:1", source="big")
    with gate(registry.host, limit=12 * MIB) as slow:
        reference = f"{slow.host}/e2e/big:1"
        with subprocess.Popen(fresh.rctl_command("pull", reference), stdout=-3, stderr=subprocess.PIPE) as pulling:
            assert slow.reached.wait(30)
            fresh.kill()
            slow.open()
            assert pulling.wait(30) == 1
        first = slow.passed
        fresh.start()
        fresh.rctl("pull", reference)
        assert slow.passed - first < len(noise) - 2 * MIB  # what had not been written yet, not everything
    done = fresh.run("--rm", "runtimed.io/hello:latest", "after")
    assert done.returncode == 0
    assert reference in fresh.rctl("images").stdout


def test_a_layer_that_had_arrived_before_the_crash_is_not_fetched_again(fresh, registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    noise = random.Random(8)
    small, big = (layout.layer({name: noise.randbytes(size * MIB)}) for name, size in (("small", 4), ("big", 24)))
    layout.image("two", [small, big], platform=PLATFORM)
    registry.push(layout.root, "e2e/two:1", source="two")
    with gate(registry.host, limit=12 * MIB) as slow:
        reference = f"{slow.host}/e2e/two:1"
        with subprocess.Popen(fresh.rctl_command("pull", reference), stdout=-3, stderr=-3):
            assert slow.reached.wait(30)
            deadline = time.monotonic() + 30
            while not (fresh.root / "content/blobs/sha256" / small.digest.removeprefix("sha256:")).exists():
                assert time.monotonic() < deadline
            fresh.kill()
            slow.open()
        fresh.start()
        fresh.rctl("gc", "run")
        rows = fresh.ctr("content", "ls").stdout
        assert small.digest in rows
        assert "containerd.io/gc.expire" in rows
        fresh.rctl("pull", reference)
        assert "containerd.io/gc.expire" not in fresh.ctr("content", "ls").stdout
        fresh.rctl("rmi", reference)
        fresh.rctl("gc", "run")
        assert fresh.ctr("content", "ls", "-q").stdout == ""


def test_crashes_between_runs_leave_no_half_made_containers(fresh, pulled):
    """The daemon dies while containers are being made; whatever stage they were at, their names are free afterwards."""
    chance = random.Random(20)
    for round_number in range(6):
        command = fresh.rctl_command("run", "--rm", "--cgroup-parent", fresh.cgroup_parent, pulled)
        running = [
            subprocess.Popen([*command, f"c{number}", "sh", "-c", "sleep 0.1"], stdout=-3, stderr=-3)
            for number in range(3)
        ]
        # Some point of three lives that overlap, another one each round.
        assert select.select([], [], [], 0.25 + chance.random() * 0.4) == ([], [], [])
        fresh.kill()
        for process in running:
            process.kill()
            process.wait()
        fresh.start()
        for number in range(3):
            fresh.rctl("rm", "-f", f"c{number}", check=False)
            done = fresh.run("--rm", pulled, f"c{number}", "echo", str(round_number))
            assert done.stdout == f"{round_number}\n"
