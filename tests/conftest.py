"""Fixtures that every kind of test may use, and the check that the suite leaves nothing on the machine."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before grpc is loaded anywhere: tests of the shim fork this process, and grpc's handlers would abort in the child.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.images.busybox import NAME
from tests.images.busybox import busybox as busybox_layout
from tests.registry import Registry, docker_registry
from tests.verdict import Verdict

# How soon after one another an example's steps come is the machine's business.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

# What waits most comes first, so that what is left at the end is short.
_ORDER = ("e2e", "integration", "conformance", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the kinds of tests; skip what needs root where there is none, with the reason (CI runs as root)."""
    items.sort(key=lambda item: [f"/{kind}/" in item.nodeid for kind in _ORDER], reverse=True)
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


@pytest.fixture(scope="session")
def busybox(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of a busybox image in the registry."""
    return registry.push(busybox_layout(tmp_path_factory.mktemp("busybox") / "layout"), "e2e/busybox:1", source=NAME)


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


_BEFORE = pytest.StashKey[set[str]]()


def _is_worker(config: pytest.Config) -> bool:
    """Whether this is one of the processes that `make test` runs tests in; who started them judges them all."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Have the whole run judged, once."""
    if not _is_worker(config):
        config.pluginmanager.register(Verdict())


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what is there before the first test."""
    if not _is_worker(session.config):
        name, _, value = _MARK.partition("=")
        os.environ[name] = value
        session.config.stash[_BEFORE] = _things()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last test no mount, process, netns, cgroup, FIFO or directory is there that was not before."""
    if _is_worker(session.config):
        return
    before = session.config.stash[_BEFORE]
    if left := sorted(_things() - before):
        place = ("tests/conftest.py", None, "nothing_left")
        told = f"the suite left behind: {left}"
        report = pytest.TestReport("nothing_left", place, {}, outcome="failed", longrepr=told, when="teardown")
        session.config.hook.pytest_runtest_logreport(report=report)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands the tests to processes."""
    from tests.distribution import ByFile

    return ByFile(config, log)


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
