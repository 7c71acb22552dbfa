"""CPU time by cgroup: everything that a side ever started, also what has ended, and containers in cgroups below.

cgroup v1: ``cpuacct.usage`` (Documentation/admin-guide/cgroup-v1/cpuacct.rst); v2: ``cpu.stat``. Both count what was
used in cgroups below, too, even when those have been removed.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.samples import Sample

_MOUNT = Path("/sys/fs/cgroup")
_SETTLES_WITHIN_S = 2.0
_NURSERY = "runtimed-nurser\n"  # as the kernel cuts it


class Account:
    """The cgroup of one side: ``<name>/side`` for its programs, ``<name>/c/...`` for its containers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_v2 = (_MOUNT / "cgroup.controllers").exists()
        self._hierarchy = _MOUNT if self._is_v2 else _MOUNT / "cpuacct"
        self._directory = self._hierarchy / name
        self._side = self._directory / "side"
        self._side.mkdir(parents=True)

    @property
    def containers(self) -> str:
        """The parent of the containers' cgroups."""
        return f"/{self.name}/c"

    def seconds(self) -> float:
        """Return what all of it has used so far."""
        if self._is_v2:
            text = (self._directory / "cpu.stat").read_text()
            return int(text.partition("usage_usec")[2].split()[0]) / 1e6
        return int((self._directory / "cpuacct.usage").read_text()) / 1e9

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it: what is started here belongs to it. What this process itself uses is left out by :meth:`run`."""
        home = self._hierarchy / _own(self._is_v2)
        (self._side / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()))

    def run(self, work: Callable[[], object], *, settle: bool = True) -> Sample:
        """Do *work* and return what it took; with *settle*, the CPU time until all that it started has ended."""
        with self.entered():
            before = self._processes()
            cpu, own, wall = self.seconds(), time.process_time(), time.perf_counter()
            work()
            wall = time.perf_counter() - wall
            deadline = time.monotonic() + (_SETTLES_WITHIN_S if settle else 0)
            while self._processes() - before and time.monotonic() < deadline:
                time.sleep(0.001)
            used = self.seconds() - cpu - (time.process_time() - own)
        return Sample(wall, max(used, 0.0))

    def remove(self) -> None:
        """Remove its directories, and those of its containers in every hierarchy."""
        tops = [self._hierarchy / self.name, *_MOUNT.glob(f"*/{self.name}"), _MOUNT / self.name]
        for top in tops:
            for path in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    path.rmdir()
            with suppress(OSError):
                top.rmdir()

    def pids(self) -> list[int]:
        """Return its programs: daemon, shims, and what else they have started; not what is in containers."""
        return sorted(map(int, self._processes()))

    def _processes(self) -> set[str]:
        """Return the pids in it, but those of a shim that is forked ahead: it stays until it becomes the next one."""
        return {pid for pid in (self._side / "cgroup.procs").read_text().split() if _name(pid) != _NURSERY}


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:  # it has ended
        return _NURSERY


def _own(is_v2: bool) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (is_v2 and not controllers) or (not is_v2 and "cpuacct" in controllers.split(",")):
            return path.lstrip("/")
    raise AssertionError("/proc/self/cgroup names no cgroup for CPU time")
