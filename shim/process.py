"""What the processes of a task have in common: status, streams, end."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Any

from runtimed.errors import FailedPrecondition, Internal, RuntimedError
from shim import files, log, loop
from shim import messages as pb
from shim.console import ConsoleSocket, Terminal
from shim.exits import Child, Children, Exit
from shim.proto import Message
from shim.sinks import Origin, Sinks
from shim.stdio import Paths, Pipes

Publish = Callable[[Message], None]
Launch = Callable[[Sequence[int], str], Awaitable[None]]  # stdio descriptors, path of the console socket or ""

# Seconds. A client that reads at all has the last output of a terminal (64 KiB at most) long before.
_DRAIN_LIMIT_S = 2.0
# From the death of a process that was killed to the keeper's word of it, on a machine that is very busy.
_TOLD_LIMIT_S = 5.0


class Status(StrEnum):
    NEW = "new"  # announced, or being created
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


# What may be done to a process, by its status.
_ALLOWED = {
    "start": {Status.CREATED},
    "pause": {Status.RUNNING},
    "resume": {Status.RUNNING, Status.PAUSED},  # of a running one the runtime says itself what is wrong
    "checkpoint": {Status.RUNNING, Status.PAUSED},
    "update": {Status.CREATED, Status.RUNNING, Status.PAUSED},
    "delete": {Status.CREATED, Status.STOPPED},
}


class Process(ABC):
    """A process of a task: status, streams, end."""

    def __init__(self, what: str, paths: Paths, *, terminal: bool, children: Children, publish: Publish) -> None:
        self.paths = paths
        self.terminal = terminal
        self.status = Status.NEW
        self.pid = 0
        self.exit: Exit | None = None  # set with status STOPPED
        self.exited = loop.Event()  # set once the exit is published; also if an exec is deleted that never ran
        self.what = what
        self._children = children
        self._publish = publish
        self._child: Child | None = None
        self._streams: Pipes | Terminal | None = None
        self._sinks: Sinks | None = None  # with the streams
        self._size: tuple[int, int] | None = None
        self._watching: loop.Task[None] | None = None
        self.lock = loop.Lock()  # one action at a time; an exit is published between two

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_watching": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._child is not None and self.exit is None:
            self._begin_to_watch(self._child)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, though its exit may not have been published yet."""
        return self._child is not None and self._child.exited.done()

    def kill(self, number: int) -> None:
        """Send a signal.

        Raises:
            NotFound: the process has ended.
            FailedPrecondition: it has not been started.
            InvalidArgument: there is no such signal.
        """
        if self._child is None:
            raise FailedPrecondition(f"{self.what} has no process yet")
        self._child.send_signal(number)
        self._insist_on(number)

    def _insist_on(self, number: int) -> None:
        """See to it that the end by SIGKILL is told, even if not by the keeper."""
        if number == signal.SIGKILL and self._child is not None:
            loop.spawn(_told(self._child))

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, in characters; may come before the start. Nothing without a terminal."""
        if self.status is Status.STOPPED:
            raise RuntimedError("cannot resize a stopped container")  # containerd's words; Docker looks for them
        self._size = (width, height)
        if self._streams is not None:
            self._streams.resize(width, height)

    def close_stdin(self) -> None:
        """End the input once no client has it open any more."""
        if self._streams is not None:
            self._streams.close_client()

    def attach(self, path: str) -> None:
        """Give the output to a client on the FIFO *path* too.

        Raises:
            FailedPrecondition: the process has ended, has not been made, or its output goes to no log.
            InvalidArgument, NotFound: *path* is no FIFO that somebody has open for reading.
        """
        if self._sinks is None or self.has_ended:
            raise FailedPrecondition(f"{self.what} has no process that runs")
        self._sinks.attach(path)

    def _doing(self, action: str) -> "_Action":
        """One action at a time, and only where the status allows it.

        Raises:
            FailedPrecondition: say, starting a stopped task.
        """
        return _Action(self, action)

    async def _launch(self, launch: Launch, bundle: str, name: str, origin: Origin) -> None:
        """Have the runtime make the process, with its streams, and begin to watch it."""
        sinks = Sinks(origin)
        streams: Pipes | Terminal | None = None
        try:
            streams = Terminal(self.paths, sinks) if self.terminal else Pipes(self.paths, sinks)
            await sinks.open()
            self._children.expect()
            try:
                if isinstance(streams, Terminal):
                    await _launch_on(streams, launch, bundle, name)
                else:
                    await launch(streams.fds, "")
                streams.handed_over()
                self._child = self._children.adopt(read_pid(f"{bundle}/{name}.pid"))
            except BaseException:
                await self._abandon()
                raise
            finally:
                self._children.expect_no_more()
        except BaseException:
            await _closed(streams, sinks)
            raise
        self.pid = self._child.pid
        self._streams, self._sinks = streams, sinks
        if self._size is not None:
            streams.resize(*self._size)
        self._begin_to_watch(self._child)

    def _begin_to_watch(self, child: Child) -> None:
        self._watching = loop.spawn(self._watch(child), resumable=True)

    def _start_input(self) -> None:
        if self._streams is not None:
            try:
                self._streams.start()
            except RuntimedError as exc:  # the process runs; it has lost its input, no more
                log.warning(f"{self.what}: {exc}")

    async def _watch(self, child: Child) -> None:
        exit = await child.exited
        async with self.lock:
            pass  # a start under way is published before the exit
        await self._before_exit()
        if self._sinks is not None:
            self._sinks.settle()
        self.status = Status.STOPPED
        self.exit = exit
        self._publish(self._exit_event(exit))
        self.exited.set()

    async def _close_streams(self) -> None:
        if self._streams is not None and self._sinks is not None:
            with suppress(TimeoutError), loop.timeout(_DRAIN_LIMIT_S):
                await self._streams.drained()
                await self._sinks.drained()
            await _closed(self._streams, self._sinks)
            self._streams = self._sinks = None

    @abstractmethod
    async def _abandon(self) -> None:
        """End what there is of a process that could not be made and that nothing else ends."""

    @abstractmethod
    async def _before_exit(self) -> None:
        """Do what comes between the end of the process and its exit event."""

    @abstractmethod
    def _exit_event(self, exit: Exit) -> pb.TaskExit: ...


class _Action:
    """``async with``: what :meth:`Process._doing` returns."""

    __slots__ = ("_name", "_process")

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name

    async def __aenter__(self) -> None:
        process = self._process
        await process.lock.acquire()
        status = process.status
        if process.has_ended and status is not Status.DELETED:
            status = Status.STOPPED
        if status not in _ALLOWED[self._name]:
            process.lock.release()
            raise FailedPrecondition(f"cannot {self._name} {process.what}: it is {status}")

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.lock.release()


async def _closed(streams: Pipes | Terminal | None, sinks: Sinks) -> None:
    if streams is not None:
        streams.close()
    sinks.close()
    await sinks.closed()


async def _launch_on(terminal: Terminal, launch: Launch, bundle: str, name: str) -> None:
    with ConsoleSocket(bundle, name) as console:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            await launch((null, null, null), console.path)
        finally:
            os.close(null)
        terminal.attach(console.receive())


async def _told(child: Child) -> None:
    """Wait until the end of a process that was killed is known; end the shim if its keeper does not say it.

    Somebody may have stopped the keeper (SIGSTOP), and whoever kills by force waits. What is lost is no status: the
    daemon, which ends the rest, tells the same one.
    """
    try:
        with loop.timeout(_TOLD_LIMIT_S):
            await child.exited
    except TimeoutError:
        if child.is_gone():
            log.error("the keeper of the shim does not say how a killed process has ended: the shim ends")
            os._exit(1)


def read_pid(path: str) -> int:
    try:
        return int(files.read(path))
    except (OSError, ValueError) as exc:
        raise Internal(f"the OCI runtime left no pid in {path}: {exc}") from exc
