"""Children and how they end: pidfds, exit statuses.

The worker has two kinds. What it starts itself is its own: the OCI runtime, processes forked for some work. What the
runtime leaves behind, a container's first process and what is started by exec, becomes a child of the keeper's
(``shim.keeper``), which says how it has ended. So does a child of the worker's own that outlasts it.
"""

import os
import select
import signal
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from runtimed.errors import InvalidArgument, NotFound, ResourceExhausted
from shim import loop, poller
from shim.link import Link

# Python and the shim ignore some; an ignored signal would stay ignored in every program that a container runs.
_DEFAULT_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

_STATUS_UNKNOWN = 255  # of a process that was neither our child nor the keeper's


class Exit(NamedTuple):
    """How a process ended: exit code, or 128 + signal, and when, in nanoseconds since the epoch."""

    status: int
    at: int

    @classmethod
    def now(cls, status: int) -> "Exit":
        return cls(status, time.time_ns())


def too_many_processes() -> ResourceExhausted:
    """Return what is raised where EAGAIN says that there can be no further process (fork(2))."""
    return ResourceExhausted(
        "no process can be started: a limit is reached, pids.max of the cgroup, RLIMIT_NPROC or kernel.pid_max"
    )


class Child:
    """A process, until its end. It stays a zombie until its parent reaps it, so its pid is not reused before."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited: loop.Future[Exit] = loop.Future()
        self._pidfd = os.pidfd_open(pid)

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

    def is_gone(self) -> bool:
        """Return whether the process has ended, be it known how or not."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return self.exited.done() or bool(poll.poll(0))

    def reap_at_end(self, *, resumable: bool = False) -> None:
        """Wait for the process, as its parent."""
        poller.add_reader(self._pidfd, self._reap, resumable=resumable)

    def ended(self, exit: Exit) -> None:
        os.close(self._pidfd)
        self.exited.set_result(exit)

    def _reap(self) -> None:
        poller.remove_reader(self._pidfd)
        try:
            _, status = os.waitpid(self.pid, 0)  # it has ended, so this returns at once
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            code = _STATUS_UNKNOWN
        self.ended(Exit.now(code if code >= 0 else 128 - code))


class Children:
    """The processes that a worker watches. Without *link* there is no keeper, and none can be adopted."""

    def __init__(self, link: Link | None = None) -> None:
        self.link = link
        self._adopted: dict[int, Child] = {}
        self._lasting: dict[int, Child] = {}  # the worker's own that the keeper inherits from it
        self._expecting = 0

    def __getstate__(self) -> dict[str, Any]:
        # The next worker has a link of its own.
        return {**vars(self), "link": None, "_adopted": self._adopted | self._lasting, "_lasting": {}}

    @property
    def lasting(self) -> list[int]:
        """The pids of the worker's own children that it need not wait for the end of."""
        return list(self._lasting)

    def spawn(
        self, argv: list[str], env: dict[str, str], stdio: Sequence[int], *, lasting: bool = False, program: str = ""
    ) -> Child:
        """Start the program ``argv[0]`` (looked for on the shim's PATH) with *stdio* as its first descriptors.

        A path *program* is executed in its place. No other descriptor of the shim's is passed on. A *lasting* one does
        not keep the worker awake. Raises OSError, FileNotFoundError above all, and ResourceExhausted.
        """
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        try:
            pid = os.posix_spawnp(
                program or argv[0], argv, env, file_actions=actions, setsigdef=_DEFAULT_SIGNALS, setsigmask=()
            )
        except BlockingIOError:
            raise too_many_processes() from None
        return self.own(pid, lasting=lasting)

    def own(self, pid: int, *, lasting: bool = False) -> Child:
        """Wait for *pid*, a child of this process."""
        child = Child(pid)
        child.reap_at_end(resumable=lasting)
        if lasting:
            self._lasting[pid] = child
            child.exited.add_callback(partial(self._lasting.__delitem__, pid))
        return child

    def adopt(self, pid: int) -> Child:
        """Watch over *pid*, a child of the keeper's that is there or has ended unreaped. Raises ProcessLookupError."""
        child = self._adopted[pid] = Child(pid)
        self._say("adopt", pid)
        return child

    def expect(self) -> None:
        """Have the keeper hold back from its children while one of them may turn out to be a process to adopt."""
        self._expecting += 1
        if self._expecting == 1:
            self._say("hold")

    def expect_no_more(self) -> None:
        """Undo one :meth:`expect`."""
        self._expecting -= 1
        if not self._expecting:
            self._say("free")

    def ended(self, pid: int, exit: Exit) -> None:
        """Take note of how an adopted one has ended, as the keeper says."""
        self._adopted.pop(pid).ended(exit)

    def lost(self, pid: int) -> None:
        """Take note that it is not the keeper's child: there is nobody who could say how it ends."""
        self._adopted.pop(pid).reap_at_end()

    def _say(self, *words: object) -> None:
        assert self.link is not None
        self.link.say(*words)
