"""What containers use and may use, by ctr and rctl: metrics, updates, and the end for want of memory."""

import json
import shutil
import signal
import subprocess

import pytest

from runtimed.api.events_pb2 import TaskExit, TaskOOM

pytestmark = [pytest.mark.root, pytest.mark.e2e]

EAT = "x=0123456789; while :; do x=$x$x; done"


@pytest.fixture
def box(daemon, pulled):
    """The ID of a container that sleeps, with 64 MiB of memory."""
    daemon.run("-d", "--memory", "64m", "--pids-limit", "32", pulled, "box", "sleep", "600")
    yield "box"
    daemon.rctl("rm", "-f", "box")


def test_ctr_shows_the_metrics_of_a_task(daemon, box):
    shown = daemon.ctr("tasks", "metrics", "--format", "json", box).stdout
    metrics = json.loads(shown)
    assert "cpu" in metrics
    assert "memory" in metrics
    table = daemon.ctr("tasks", "metrics", box).stdout
    assert str(64 << 20) in table
    refused = daemon.ctr("tasks", "metrics", "nosuch", check=False)
    assert refused.returncode != 0


def test_a_container_over_its_memory_ends_with_an_event_before_its_exit(daemon, pulled):
    with daemon.events("topic~=^/tasks/(oom|exit)") as events:
        done = daemon.run("--rm", "--memory", "16m", pulled, "eater", "sh", "-c", EAT, check=False)
        assert done.returncode == 137
        oom, exit = next(events), next(events)
    assert oom.topic == "/tasks/oom"
    assert TaskOOM.FromString(oom.event.value).container_id == "eater"
    assert TaskExit.FromString(exit.event.value).exit_status == 137


def test_rctl_shows_what_containers_use(daemon, box):
    [shown] = json.loads(daemon.rctl("-o", "json", "stats", "--no-stream", box).stdout)
    assert (shown["id"], shown["memory_limit_bytes"], shown["pids"], shown["pids_limit"]) == (box, 64 << 20, 1, 32)
    assert 0 < shown["memory_bytes"] < 64 << 20
    head, row = daemon.rctl("stats", "--no-stream").stdout.splitlines()
    assert head.split() == ["ID", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN"]
    assert row.startswith("box ")
    assert "64.0 MiB" in row
    assert "1 of 32" in row
    [metrics] = json.loads(daemon.rctl("metrics").stdout)
    assert metrics["type"].startswith("io.containerd.cgroups.v")
    assert metrics["metrics"]["pids"]["limit"] == "32"


def test_rctl_goes_on_showing_until_it_is_interrupted(daemon, box):
    command = daemon.rctl_command("-o", "json", "stats", box)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout
        for _ in range(2):
            assert json.loads(shown.stdout.readline())[0]["id"] == box
        shown.send_signal(signal.SIGINT)
        assert shown.wait(20) == 130


@pytest.mark.parametrize("command", [("stats", "--no-stream"), ("metrics",)])
def test_a_container_of_which_nothing_is_known_is_named(daemon, command):
    done = daemon.rctl(*command, "nosuch", check=False)
    assert done.returncode == 1
    assert "container 'nosuch' has no task" in done.stderr


def test_rctl_changes_limits(daemon, box):
    assert daemon.rctl("update", "--memory", "32m", "--pids-limit", "7", "--cpus", "0.5", box).stdout == f"{box}\n"
    [shown] = json.loads(daemon.rctl("-o", "json", "stats", "--no-stream", box).stdout)
    assert (shown["memory_limit_bytes"], shown["pids_limit"]) == (32 << 20, 7)
    daemon.rctl("update", "--memory", "48m", box)
    [shown] = json.loads(daemon.rctl("-o", "json", "stats", "--no-stream", box).stdout)
    assert (shown["memory_limit_bytes"], shown["pids_limit"]) == (48 << 20, 7)
    done = daemon.rctl("update", "--memory", "1k", box, check=False)
    assert (done.returncode, "give at least 6m" in done.stderr) == (1, True)
    done = daemon.rctl("update", "--pids-limit", "9", "nosuch", box, check=False)
    assert (done.returncode, done.stdout) == (1, f"{box}\n")
    assert "nosuch" in done.stderr


def test_rctl_pauses_and_resumes(daemon, box):
    def status():
        [found] = json.loads(daemon.rctl("-o", "json", "ps", "-a").stdout)
        return found["status"]

    daemon.rctl("pause", box)
    assert status() == "paused"
    daemon.rctl("resume", box)
    assert status() == "running"
    done = daemon.rctl("resume", box, check=False)
    assert (done.returncode, "not paused" in done.stderr) == (1, True)


@pytest.mark.skipif(shutil.which("criu") is not None, reason="criu is there; what it does is tested in tests/vm")
def test_without_criu_a_checkpoint_says_what_to_install(daemon, box, tmp_path):
    ctr = daemon.ctr("tasks", "checkpoint", "--image-path", tmp_path / "a", box, check=False)
    rctl = daemon.rctl("checkpoint", box, tmp_path / "b", check=False)
    for done in (ctr, rctl):
        assert done.returncode == 1
        assert "checkpoints need criu: install it" in done.stderr
    [found] = json.loads(daemon.rctl("-o", "json", "ps").stdout)
    assert found["status"] == "running"


def test_a_checkpoint_that_is_none_is_refused_and_leaves_nothing(daemon, pulled, box):
    daemon.rctl("kill", "-s", "KILL", box)
    done = daemon.rctl("restore", box, "/no/such/checkpoint", check=False)
    while "is running" in done.stderr:  # it is ending
        done = daemon.rctl("restore", box, "/no/such/checkpoint", check=False)
    assert done.returncode == 1
    assert "criu" in done.stderr or "no inventory.img" in done.stderr
    [found] = json.loads(daemon.rctl("-o", "json", "ps", "-a").stdout)
    assert found["status"] == "stopped"
