"""Measures containers and pods when somebody asks, and how fast they use the processor since it was asked before.

Nobody asking, nothing is read. The first rate is that since the start of the container; after that it is the one over
the time between two askings, if that is a second or more.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from runtimed.cri import usage
from runtimed.cri.filesystems import Filesystems, FilesystemUsage
from runtimed.cri.state import Container, Sandbox
from runtimed.cri.usage import Interface, Usage
from runtimed.linux import cgroups
from runtimed.linux.cgroups import Cgroup
from runtimed.threads import blocking

_SHORTEST_NS = 1_000_000_000
_LAYER_AGE_NS = 10_000_000_000  # how old the size of a writable layer may be: to measure it takes long


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a container or pod uses; ``rate`` is ns of processor time a second, None if that is not known yet."""

    usage: Usage | None
    rate: int | None = None
    interfaces: Sequence[Interface] = ()
    file_descriptors: int = 0
    sockets: int = 0
    threads: int = 0
    processes: int = 0
    nofile: int = 0
    layer: FilesystemUsage | None = None


@dataclass(slots=True)
class _Kept:
    cgroup: Cgroup
    before: Usage
    rate: int | None = None


class Sampler:
    """What was measured last, by ID. Belongs to the event loop's thread."""

    def __init__(self, filesystems: Filesystems) -> None:
        self._filesystems = filesystems
        self._kept: dict[str, _Kept] = {}
        self._layers: dict[str, FilesystemUsage] = {}
        self._measuring: asyncio.Task[None] | None = None

    async def containers(self, wanted: Sequence[Container], *, in_depth: bool = False) -> list[Measured]:
        """Measure containers; of those that do not run there is the writable layer only.

        *in_depth*: also count file descriptors and sockets, which takes a look at every process.
        """
        await self._measure_layers(wanted)
        pids = [(one.id, one.pid, one.record.started_at) for one in wanted]
        measured = await blocking(lambda: [self._measure(*one, False, in_depth) for one in pids])
        return [
            Measured(
                usage=found[0],
                rate=found[1],
                layer=self._layers.get(one.id),
                processes=found[2][0],
                threads=found[2][1],
                file_descriptors=found[2][2],
                sockets=found[2][3],
                nofile=found[2][4],
            )
            for one, found in zip(wanted, measured, strict=True)
        ]

    async def sandboxes(self, wanted: Sequence[Sandbox]) -> list[Measured]:
        """Measure pods as a whole: their cgroup if a kubelet gave one, else their first process's."""
        pods = [
            (one.id, one.pid, one.record.created_at, bool(one.config.linux.cgroup_parent), bool(one.record.netns))
            for one in wanted
        ]

        def measure() -> list[Measured]:
            found = []
            for id, pid, began, has_parent, has_network in pods:
                used, rate, _ = self._measure(id, pid, began, has_parent, False)
                links = usage.interfaces(pid) if has_network and pid else []
                found.append(Measured(usage=used, rate=rate, interfaces=links))
            return found

        return await blocking(measure)

    def forget(self, ids: set[str]) -> None:
        """Drop what is kept of others than *ids*."""
        # Item by item of a list: a thread that measures may add some meanwhile.
        self._kept = {id: kept for id, kept in list(self._kept.items()) if id in ids}
        self._layers = {id: layer for id, layer in self._layers.items() if id in ids}

    def _measure(
        self, id: str, pid: int, began_at: int, of_parent: bool, in_depth: bool
    ) -> tuple[Usage | None, int | None, tuple[int, int, int, int, int]]:
        nothing = (0, 0, 0, 0, 0)
        kept = self._kept.get(id)
        cgroup = kept.cgroup if kept else _cgroup(pid, of_parent) if pid else None
        now = usage.read(cgroup) if cgroup else None
        if cgroup is None or now is None:
            return None, None, nothing
        if kept is None:
            # The start is a sample of its own: nothing had been used then.
            age = max(now.at - began_at, 1) if began_at else 0
            start = Usage(at=began_at, clock=now.clock - age)
            kept = self._kept[id] = _Kept(cgroup, start)
        since = now.clock - kept.before.clock
        if since >= _SHORTEST_NS or kept.rate is None:
            kept.rate = max(now.cpu - kept.before.cpu, 0) * 1_000_000_000 // since if since > 0 else None
        if since >= _SHORTEST_NS:
            kept.before = now
        return now, kept.rate, _processes(cgroup) if in_depth else nothing

    async def _measure_layers(self, wanted: Sequence[Container]) -> None:
        """See to it that each layer has been measured; those whose size is old are measured meanwhile, one by one."""
        now = time.time_ns()
        unknown = [one for one in wanted if one.id not in self._layers]
        old = [one for one in wanted if one.id in self._layers and now - self._layers[one.id].at > _LAYER_AGE_NS]
        for one in unknown:
            await self._measure_layer(one)
        if old and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._measure_all(old))

    async def _measure_all(self, containers: Sequence[Container]) -> None:
        for one in containers:
            await self._measure_layer(one)

    async def _measure_layer(self, container: Container) -> None:
        found = await self._filesystems.usage(container.sandbox.snapshotter, container.id)
        if found is not None:
            self._layers[container.id] = found

    async def close(self) -> None:
        """End what is being measured."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.wait([self._measuring])


def _cgroup(pid: int, of_parent: bool) -> Cgroup | None:
    found = cgroups.of(pid)
    return found.parent() if found and of_parent else found


def _processes(cgroup: Cgroup) -> tuple[int, int, int, int, int]:
    """Return how many processes and threads, file descriptors and sockets there are, and the limit of the second last.

    Processes that end meanwhile do not count.
    """
    pids = cgroup.text("pids", "cgroup.procs").split()
    threads = len(cgroup.text("pids", "cgroup.threads" if cgroup.is_unified else "tasks").split())
    descriptors = sockets = nofile = 0
    for number, pid in enumerate(pids):
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  strings all the way
                descriptors += 1
                with suppress(OSError):
                    sockets += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")  # noqa: PTH115
        if number == 0:
            nofile = _nofile(cgroups.text(f"/proc/{pid}/limits"))
    return len(pids), threads, descriptors, sockets, nofile


def _nofile(limits: str) -> int:
    """Return the soft limit of open files in a proc_pid_limits(5)."""
    line = next((line for line in limits.splitlines() if line.startswith("Max open files")), "")
    words = line.removeprefix("Max open files").split()
    return cgroups.integer(words[0]) if words and words[0] != "unlimited" else 0
