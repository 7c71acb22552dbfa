"""Children and how they end: pidfds, exit statuses, orphans.

The shim is a subreaper, so the processes that runc leaves behind become its children: a container's first process, what
is started by exec, and orphans of both. Nobody else may wait for a child: a ``waitpid`` for any of them would take an
exit status away from whoever needs it.
"""

import os
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from runtimed.errors import InvalidArgument, NotFound
from shim import loop

# Python and the shim ignore some; an ignored signal would stay ignored in every program that a container runs.
_DEFAULT_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

_STATUS_UNKNOWN = 255  # of a process that was not our child after all


class Exit(NamedTuple):
    """How a process ended: exit code, or 128 + signal, and when, in nanoseconds since the epoch."""

    status: int
    at: int


class Child:
    """A child process, from its adoption until its end.

    The pid stays a zombie until it is reaped here, so a process that has ended before anyone asks is not missed, and
    its pid is not reused while it can be signalled.
    """

    def __init__(self, children: "Children", pid: int) -> None:
        self.pid = pid
        self.exited: loop.Future[Exit] = loop.Future()
        self._children = children
        self._pidfd = os.pidfd_open(pid)
        loop.add_reader(self._pidfd, self._reap)

    def send_signal(self, number: int) -> None:
        """Send a signal.

        Raises:
            NotFound: the process has ended.
            InvalidArgument: there is no such signal.
        """
        if self.exited.done():
            raise NotFound("process already finished")
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            raise NotFound("process already finished") from None
        except (OSError, ValueError, OverflowError):
            raise InvalidArgument(f"signal {number}: there is no such signal") from None

    def _reap(self) -> None:
        loop.remove_reader(self._pidfd)
        try:
            _, status = os.waitpid(self.pid, 0)  # it has ended, so this returns at once
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            code = _STATUS_UNKNOWN
        os.close(self._pidfd)
        self.exited.set_result(Exit(code if code >= 0 else 128 - code, time.time_ns()))
        self._children.forget(self)


class Children:
    """All children of the shim, and the orphans it inherits."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._expecting = 0

    def reap_orphans(self) -> None:
        """Begin to reap children that nobody adopted, now and whenever one ends."""
        loop.on_signal(signal.SIGCHLD, self._reap_unknown)
        self._reap_unknown()

    def spawn(self, argv: list[str], env: dict[str, str], stdio: Sequence[int]) -> Child:
        """Start the program ``argv[0]`` (looked for on the shim's PATH) with three descriptors as its stdio.

        No other descriptor of the shim's is passed on. Raises OSError, FileNotFoundError above all.
        """
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsigdef=_DEFAULT_SIGNALS, setsigmask=())
        return self.adopt(pid)

    def adopt(self, pid: int) -> Child:
        """Watch over *pid*, a child that is there or has ended unreaped. Raises ProcessLookupError."""
        child = Child(self, pid)
        self._known.add(pid)
        return child

    def expect(self) -> None:
        """Hold back from orphans while one of them may turn out to be a process to :meth:`adopt`."""
        self._expecting += 1

    def expect_no_more(self) -> None:
        """Undo one :meth:`expect`."""
        self._expecting -= 1
        self._reap_unknown()

    def forget(self, child: Child) -> None:
        self._known.discard(child.pid)
        self._reap_unknown()  # it may have stood before others, see there

    def _reap_unknown(self) -> None:
        while not self._expecting:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return  # no children at all
            # The kernel names the same one until it is reaped: behind a known one there may be orphans, whose turn
            # comes when that one has been reaped by its watcher.
            if found is None or found.si_pid in self._known:
                return
            os.waitpid(found.si_pid, 0)
