"""The restart monitor with our own shim and runc."""

import asyncio
import json
from dataclasses import replace

import pytest

from runtimed import labels
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.restarts.monitor import RestartMonitor
from runtimed.tasks.client import Status
from tests.fakes.tasks import NS, SPEC_TYPE

pytestmark = pytest.mark.root

STATUS, POLICY, COUNT = labels.RESTART_STATUS, labels.RESTART_POLICY, labels.RESTART_COUNT


@pytest.fixture
def monitor(daemon):
    """One that looks when it is asked to, and at ends when they are told; without a pause."""
    return RestartMonitor(daemon.database, daemon.tasks, {}, daemon.events, interval_s=1e-6, first_pause_s=0.01)


@pytest.fixture
def container(daemon, spec):
    async def container(script, **marks):
        text = json.dumps(spec(script)).encode()
        marks = {f"containerd.io/restart.{key.replace('_', '-')}": value for key, value in marks.items()}
        record = Container(id="c", runtime="io.containerd.runc.v2", spec=Opaque(SPEC_TYPE, text), labels=marks)
        await daemon.database.write(containers.create, NS, record)

    return container


async def looked(monitor):
    """Have it look, and be done."""
    await asyncio.gather(*await monitor.look())


async def ended(daemon):
    """Wait for the next end that is told."""
    return await daemon.topics("/tasks/exit")


async def status(daemon):
    return (await daemon.tasks.get(NS, "c")).status


async def count(daemon):
    return (await daemon.database.read(containers.get, NS, "c")).labels.get(COUNT)


async def test_a_container_that_always_runs_is_started_again_each_time_it_ends(daemon, monitor, container):
    await container("exit 3", status="running", policy="always")
    async with asyncio.timeout(30), monitor.running():
        for _ in range(3):
            await ended(daemon)
    assert int(await count(daemon)) >= 3


async def test_without_a_task_it_is_started_as_after_a_reboot(daemon, monitor, container, home):
    await container("echo hello", status="running", policy="on-failure", loguri=f"file://{home}/log")
    await looked(monitor)  # nobody knows that it failed
    assert await count(daemon) is None
    await _label(daemon, POLICY, "unless-stopped")
    await looked(monitor)
    await ended(daemon)
    assert await count(daemon) == "1"
    await looked(monitor)
    await ended(daemon)
    assert (home / "log").read_text() == "hello\nhello\n"


async def test_a_failure_is_tried_again_as_often_as_the_policy_says(daemon, monitor, container):
    await container("exit 1", status="running", policy="on-failure:2", count="1")
    await _label(daemon, POLICY, "always")
    await looked(monitor)
    await ended(daemon)
    assert await count(daemon) == "2"
    await _label(daemon, POLICY, "on-failure:2")
    await looked(monitor)
    assert (await count(daemon), await status(daemon)) == ("2", Status.STOPPED)
    await _label(daemon, POLICY, "on-failure:3")
    await looked(monitor)
    await ended(daemon)
    assert await count(daemon) == "3"


@pytest.mark.parametrize(
    "marks", [{"policy": "no"}, {"policy": "unless-stopped", "explicitly_stopped": "true"}, {"policy": "sometimes"}]
)
async def test_one_that_is_not_to_run_does_not(daemon, monitor, container, marks):
    await container("exit 1", status="running", **marks)
    await looked(monitor)
    assert await daemon.tasks.list(NS) == []


async def test_one_that_is_to_be_stopped_is_ended_and_one_that_runs_is_left_alone(daemon, monitor, container):
    await container("exec sleep 100", status="running")
    await looked(monitor)
    pid = (await daemon.tasks.get(NS, "c")).pid
    await looked(monitor)
    assert (await daemon.tasks.get(NS, "c")).pid == pid
    await daemon.tasks.pause(NS, "c")
    await looked(monitor)
    assert await status(daemon) is Status.PAUSED
    await daemon.tasks.resume(NS, "c")
    await _label(daemon, STATUS, "stopped")
    await looked(monitor)
    assert await daemon.tasks.list(NS) == []
    await looked(monitor)
    assert await daemon.tasks.list(NS) == []


async def test_a_container_that_was_deleted_does_not_come_back(daemon, monitor, container):
    await container("exit 0", status="running")
    begun = await monitor.look()
    await daemon.database.write(containers.delete, NS, "c")
    await asyncio.gather(*begun)
    assert await daemon.tasks.list(NS) == []


async def test_one_that_cannot_be_started_is_counted_and_tried_again(daemon, monitor, container):
    await container("exit 0", status="running")
    found = await daemon.database.read(containers.get, NS, "c")
    broken = replace(found, spec=Opaque(SPEC_TYPE, b"[]"))
    await daemon.database.write(containers.update, NS, broken, ["spec"])
    for number in ("1", "2"):
        await looked(monitor)
        assert (await count(daemon), await daemon.tasks.list(NS)) == (number, [])


async def test_a_container_that_a_client_has_just_made_is_the_clients(daemon, container):
    monitor = RestartMonitor(daemon.database, daemon.tasks, {}, daemon.events, interval_s=60)
    await container("exit 0", status="running")
    assert await monitor.look() == []


async def _label(daemon, key, value):
    found = await daemon.database.read(containers.get, NS, "c")
    await daemon.database.write(containers.update, NS, replace(found, labels={key: value}), [f"labels.{key}"])
