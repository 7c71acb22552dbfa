"""Fixtures that every kind of test may use, and the check that the suite leaves nothing on the machine."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Before grpc is loaded anywhere: tests of the shim fork this process, and grpc's handlers would abort in the child.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.registry import Registry, docker_registry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none, with the reason; CI runs as root, so nothing is skipped there."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: real mounts, runc, cgroups (run `make test` as root)")
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("e2e"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Debian's docker-registry, shared by all tests: push under names of your own."""
    with docker_registry() as running:
        yield running


# Where something of ours, or of what we drive, could be left lying.
_PLACES = (
    ("/tmp", "rtd-*"),
    ("/tmp", "runtimed-*"),
    ("/tmp", "rctl-*"),
    ("/run", "rctl-*"),
    ("/run", "runtimed*"),
    ("/run/netns", "*"),
    ("/run/containerd", "*/*"),  # other shims and clients cannot be told to stay away from it
    ("/sys/fs/cgroup", "*/*rtd*"),
    ("/sys/fs/cgroup", "*/*rctl*"),
    ("/sys/fs/cgroup", "*/runtimed*"),
)
# In the environment of whatever the tests start, and what that starts in turn: other daemons on the machine, and other
# runs of this suite, are not ours to judge.
_MARK = f"RUNTIMED_TEST_RUN={os.getpid()}-{time.time_ns()}"


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """After the last test no mount, process, netns, cgroup, FIFO or directory is there that was not before."""
    name, _, value = _MARK.partition("=")
    os.environ[name] = value
    before = _things()
    yield
    left = sorted(_things() - before)
    assert not left, f"the suite left behind: {left}"


def _things() -> set[str]:
    things = {str(path) for place, pattern in _PLACES for path in Path(place).glob(pattern)}
    things |= {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if _MARK.encode() in (entry / "environ").read_bytes():
                things.add(f"process {entry.name}: {(entry / 'cmdline').read_bytes()!r}")
    return things
