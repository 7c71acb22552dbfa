"""The daemon takes as many descriptors as it may; what it starts gets the limit that the daemon was given."""

import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.processes import descendants

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SOFT, HARD = 1000, 3000


class LimitedDaemon(PrivateDaemon):
    def command(self) -> list[str]:
        return ["prlimit", f"--nofile={SOFT}:{HARD}", *super().command()]


@pytest.fixture
def limited() -> Iterator[PrivateDaemon]:
    with private_daemon(start=False) as plain:
        daemon = LimitedDaemon(plain.base, namespace=plain.namespace)
        daemon.start()
        yield daemon
        daemon.clear()
        daemon.stop()


def limit(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


def named(pid, name):
    """Return the descendant of *pid* that runs *name*."""
    for one in descendants(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends
            if Path(f"/proc/{one}/comm").read_text().strip() == name:
                return one
    return None


def test_the_daemon_raises_its_limit_and_nobody_inherits_that(limited, busybox):
    limited.rctl("pull", busybox)
    limited.run("-d", busybox, "t", "sleep", "1000")
    assert limit(limited.pid) == (HARD, HARD)
    deadline = time.monotonic() + 20
    while (sleep := named(limited.pid, "sleep")) is None:  # a task is started before its program is loaded
        assert time.monotonic() < deadline
        time.sleep(0.01)
    programs = {"sleep": limit(sleep)}
    for pid in descendants(limited.pid):
        programs.setdefault(Path(f"/proc/{pid}/comm").read_text().strip(), limit(pid))
    assert programs.pop("sleep") == (1024, 1024)  # what its spec says
    assert programs.pop("python", (HARD, HARD)) == (HARD, HARD)  # workers raise it themselves
    assert {"runtimed-nurser"} <= programs.keys()
    assert set(programs.values()) == {(SOFT, HARD)}, programs
