"""Out of memory: when the kernel has killed a process of a container, its clients are told.

The counter of such kills in the container's cgroup is what counts: a notice comes before the kernel has chosen whom to
kill, comes for what happened in a cgroup above, and (version 1) when the cgroup is removed.
"""

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runtimed.errors import NotFound
from shim import files, log, poller
from shim.hierarchies import Cgroups

# Seconds after a notice at which the counter is looked at again.
_AGAIN_S = (0.01, 0.1)


class OomWatch:
    """Calls *tell* whenever the counter of a container's kills has risen above ``kills``.

    Where there is no counter (no memory controller, no cgroup of its own) nothing is watched. Idle it is a descriptor
    or two; ``fd`` is readable when there is a notice, -1 if nothing is watched. *kills* is what is known already.
    """

    __slots__ = ("_again", "_counter", "_file", "_is_v2", "_tell", "fd", "kills")

    def __init__(self, cgroups: Cgroups, tell: Callable[[], None], kills: int = 0) -> None:
        self.kills = kills
        self.fd = -1
        self._tell = tell
        self._file = -1
        self._again: list[poller.Timer] = []
        self._is_v2 = cgroups.is_unified
        if not cgroups.is_own("memory"):
            return
        try:
            directory = cgroups.directory("memory")
            self._counter = f"{directory}/memory.events" if self._is_v2 else f"{directory}/memory.oom_control"
            self.fd = self._poll() if self._is_v2 else self._register(f"{directory}/cgroup.event_control")
        except NotFound:
            return
        except OSError as exc:
            log.warning(f"nobody will learn when this container runs out of memory: {exc}")
            self.close()
            return
        poller.add_reader(self.fd, self._notice, resumable=True)
        self.look()  # what came between the making of the container and this

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "_again" and hasattr(self, name)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._again = []
        if self.fd != -1:
            poller.add_reader(self.fd, self._notice, resumable=True)

    def look(self) -> None:
        """Read the counter, and tell if it has risen. Nothing without a watch."""
        if self.fd == -1:
            return
        try:
            text = os.pread(self._file, 4096, 0) if self._is_v2 else files.read(self._counter)
        except OSError:
            self.close()  # the cgroup has been removed
            return
        for line in text.split(b"\n"):
            if line.startswith(b"oom_kill "):
                kills = int(line.split()[1])
                if kills > self.kills:
                    self.kills = kills
                    self._tell()

    def close(self) -> None:
        for timer in self._again:
            timer.cancel()
        self._again.clear()
        if self.fd != -1:
            poller.remove_reader(self.fd)
            os.close(self.fd)
        if self._file != -1:
            os.close(self._file)
        self.fd = self._file = -1

    def _notice(self) -> None:
        if not self._is_v2:
            with suppress(BlockingIOError):
                os.eventfd_read(self.fd)
        self.look()
        for timer in self._again:
            timer.cancel()
        self._again = [] if self.fd == -1 else [poller.call_later(seconds, self.look) for seconds in _AGAIN_S]

    def _register(self, control: str) -> int:
        """Return an eventfd to which the kernel writes when there is not enough memory in a version 1 cgroup."""
        events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        counter = -1
        try:
            counter = os.open(self._counter, os.O_RDONLY | os.O_CLOEXEC)
            fd = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"{events} {counter}".encode())
            finally:
                os.close(fd)
        except BaseException:
            os.close(events)
            raise
        finally:
            if counter != -1:
                os.close(counter)
        return events

    def _poll(self) -> int:
        self._file = os.open(self._counter, os.O_RDONLY | os.O_CLOEXEC)
        return changes(self._file)


def changes(fd: int) -> int:
    """Return a descriptor that is readable when *fd*, a file of a version 2 cgroup, has changed since it was read.

    The file itself always is readable, and inotify would have a small limit for all shims together
    (fs.inotify.max_user_instances); but a change is an exceptional condition (poll(2)) until it is read.
    """
    os.pread(fd, 4096, 0)
    poll = select.epoll(1)
    try:
        poll.register(fd, select.EPOLLPRI)
        return os.dup(poll.fileno())
    finally:
        poll.close()
