"""What containers use and may use, by ctr and rctl: metrics, updates, and the end for want of memory."""

import json

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
