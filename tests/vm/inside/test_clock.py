"""The time of day is set while containers run: only what is displayed may follow it."""

import time
from collections.abc import Iterator

import pytest

from runtimed.api import events_pb2
from tests.daemon import PrivateDaemon

pytestmark = pytest.mark.root

YEAR_S = 365 * 24 * 3600


@pytest.fixture
def clock() -> Iterator[None]:
    """Have the clock be right again afterwards."""
    ahead = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    yield
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_BOOTTIME) + ahead)


@pytest.mark.usefixtures("clock")
def test_a_jump_of_the_clock_disturbs_no_container(daemon: PrivateDaemon, image):
    daemon.run("-d", image, "box", "sleep", "600")
    try:
        for jump_s in (YEAR_S, -2 * YEAR_S, YEAR_S + 3600, -3600):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + jump_s)
            done = daemon.rctl("exec", "box", "sh", "-c", "sleep 1; exit 3", check=False)  # a wait, too
            assert (done.returncode, done.stderr) == (3, "")
            assert daemon.run("--rm", image, "--", "sh", "-c", "exit 4", check=False).returncode == 4
        with daemon.events("topic==/tasks/exit") as events:
            before = time.time()
            daemon.rctl("kill", "--signal", "KILL", "box")
            told = events_pb2.TaskExit.FromString(next(events).event.value)
            assert told.exit_status == 137
            assert before <= told.exited_at.ToNanoseconds() / 1e9 <= time.time()
    finally:
        daemon.rctl("rm", "-f", "box")
