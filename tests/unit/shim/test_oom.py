"""The watch over a container's memory, on trees that look like the kernel's and on a real cgroup."""

import os
import subprocess
from pathlib import Path

import pytest

from shim import loop, oom, poller
from shim.hierarchies import Cgroups
from shim.oom import OomWatch
from tests.unit.shim.loops import on_loop

EVENTS = "low 0\nhigh 0\nmax 9\noom 5\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


class Told:
    """What a watch calls, and a way to wait for it."""

    def __init__(self):
        self.times = 0
        self._event = loop.Event()

    def __call__(self):
        self.times += 1
        self._event.set()

    async def again(self):
        await self._event.wait()
        self._event.clear()


@pytest.fixture
def v1(tmp_path):
    """A version 1 cgroup of files: what would register with the kernel is in cgroup.event_control."""
    path = tmp_path / "memory/c"
    path.mkdir(parents=True)
    (path / "memory.oom_control").write_text(CONTROL.format(0))
    (path / "cgroup.event_control").touch()
    return path, Cgroups("1:memory:/c\n", str(tmp_path), str(tmp_path / "mounts"))


def fds():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@on_loop
async def test_a_kill_is_told_once_and_a_notice_without_one_not(v1):
    path, cgroups = v1
    told = Told()
    watch = OomWatch(cgroups, told)
    eventfd, _ = (path / "cgroup.event_control").read_text().split()
    assert watch.fd == int(eventfd)
    os.eventfd_write(watch.fd, 1)
    await loop.sleep(0.2)
    assert told.times == 0
    (path / "memory.oom_control").write_text(CONTROL.format(2))
    os.eventfd_write(watch.fd, 1)
    await told.again()
    watch.look()
    assert (told.times, watch.kills) == (1, 2)
    watch.close()


@on_loop
async def test_a_kill_that_is_counted_after_the_notice_is_told(v1, monkeypatch):
    path, cgroups = v1
    told = Told()
    monkeypatch.setattr(oom, "_AGAIN_S", (0.2,))
    watch = OomWatch(cgroups, told)
    os.eventfd_write(watch.fd, 1)
    await loop.sleep(0)
    await loop.sleep(0)
    (path / "memory.oom_control").write_text(CONTROL.format(1))
    await told.again()
    watch.close()


@on_loop
async def test_a_watch_that_is_taken_up_again_tells_what_came_meanwhile(v1):
    path, cgroups = v1
    told = Told()
    (path / "memory.oom_control").write_text(CONTROL.format(3))
    OomWatch(cgroups, told, kills=3).close()
    assert told.times == 0
    OomWatch(cgroups, told, kills=2).close()
    assert told.times == 1


@on_loop
async def test_the_removal_of_the_cgroup_ends_the_watch_and_gives_back_what_it_holds(v1):
    path, cgroups = v1
    before = fds()
    told = Told()
    watch = OomWatch(cgroups, told)
    (path / "memory.oom_control").unlink()
    os.eventfd_write(watch.fd, 1)
    await loop.sleep(0)
    await loop.sleep(0)
    assert (watch.fd, told.times, fds()) == (-1, 0, before)
    watch.look()
    watch.close()


@on_loop
async def test_without_a_cgroup_of_its_own_or_a_counter_nothing_is_watched(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "memory/c").mkdir(parents=True)
    before = fds()
    for text in ("", "0::/\n", "0::/gone\n", "0::/c\n", "1:memory:/c\n", "1:pids:/c\n"):
        watch = OomWatch(Cgroups(text, str(tmp_path), str(tmp_path / "mounts")), Told())
        assert watch.fd == -1
        watch.look()
        watch.close()
    assert fds() == before


@pytest.fixture
def unified():
    """An empty cgroup of version 2."""
    mounted = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if not mounted:
        pytest.skip("needs cgroup version 2 mounted")
    path = Path(mounted[0][4], f"runtimed-test-oom-{os.getpid()}")
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.root
@on_loop
async def test_a_change_that_the_kernel_makes_is_readable_until_the_file_is_read(unified, process):
    # Any file by whose change the kernel tells of something will do: memory may be in version 1.
    file = os.open(unified / "cgroup.events", os.O_RDONLY)
    told = Told()
    fd = oom.changes(file)
    found = []

    def read():
        found.append(os.pread(file, 4096, 0))
        told()

    poller.add_reader(fd, read)
    await loop.sleep(0.05)
    assert told.times == 0  # to be open and readable is no change
    (unified / "cgroup.procs").write_text(str(process.pid))
    await told.again()
    await loop.sleep(0.05)
    assert len(found) == 1
    assert found[0].startswith(b"populated 1")
    poller.remove_reader(fd)
    os.close(fd)
    os.close(file)
