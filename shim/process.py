"""The first process of a container, and what it has in common with further ones."""

import asyncio
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from runtimed.api import events_pb2 as events
from runtimed.errors import FailedPrecondition, Internal, NotFound, RuntimedError
from runtimed.mounts import Mount, mount_all, unmount_all
from runtimed.rollback import Rollback
from runtimed.threads import blocking
from shim.console import ConsoleSocket, Terminal
from shim.exits import Child, Children, Exit
from shim.runc import Runc
from shim.stdio import Paths, Pipes

if TYPE_CHECKING:
    from shim.exec import Exec

log = logging.getLogger(__name__)

Publish = Callable[[Message], None]
Launch = Callable[[Sequence[int], str], Awaitable[None]]  # stdio descriptors, path of the console socket or ""

# Seconds. A client that reads at all has the last output of a terminal (64 KiB at most) long before.
_DRAIN_LIMIT_S = 2.0
# Execs of a container that has ended are killed with it; this is for one that the kernel cannot kill.
_EXECS_LIMIT_S = 10.0


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
        self.exited = asyncio.Event()  # set once the exit is published; also if an exec is deleted that never ran
        self._what = what
        self._children = children
        self._publish = publish
        self._child: Child | None = None
        self._streams: Pipes | Terminal | None = None
        self._size: tuple[int, int] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # one action at a time; an exit is published between two

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
            raise FailedPrecondition(f"{self._what} has no process yet")
        self._child.send_signal(number)

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

    @asynccontextmanager
    async def _doing(self, action: str) -> AsyncIterator[None]:
        """One action at a time, and only where the status allows it.

        Raises:
            FailedPrecondition: say, starting a stopped task.
        """
        async with self._lock:
            status = Status.STOPPED if self.has_ended and self.status is not Status.DELETED else self.status
            if status not in _ALLOWED[action]:
                raise FailedPrecondition(f"cannot {action} {self._what}: it is {status}")
            yield

    async def _launch(self, launch: Launch, bundle: Path, name: str, uid: int, gid: int) -> None:
        """Have the runtime make the process, with its streams, and begin to watch it."""
        with ExitStack() as undo, self._children.expecting():
            streams: Pipes | Terminal
            if self.terminal:
                streams = terminal = Terminal(self.paths, uid, gid)
                undo.callback(streams.close)
                with ConsoleSocket(bundle, name) as console:
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        await launch((null, null, null), console.path)
                    finally:
                        os.close(null)
                    terminal.attach(console.receive())
            else:
                streams = pipes = Pipes(self.paths, uid, gid)
                undo.callback(streams.close)
                await launch(pipes.fds, "")
            streams.handed_over()
            self._child = self._children.adopt(_read_pid(bundle / f"{name}.pid"))
            undo.pop_all()
        self.pid = self._child.pid
        self._streams = streams
        if self._size is not None:
            streams.resize(*self._size)
        self._watching = asyncio.create_task(self._watch(self._child))

    def _start_input(self) -> None:
        if self._streams is not None:
            try:
                self._streams.start()
            except RuntimedError as exc:  # the process runs; it has lost its input, no more
                log.warning("%s: %s", self._what, exc)

    async def _watch(self, child: Child) -> None:
        exit = await asyncio.shield(child.exited)
        async with self._lock:
            pass  # a start under way is published before the exit
        await self._before_exit()
        self.status = Status.STOPPED
        self.exit = exit
        self._publish(self._exit_event(exit))
        self.exited.set()

    async def _close_streams(self) -> None:
        if self._streams is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_LIMIT_S):
                    await self._streams.drained()
            self._streams.close()
            self._streams = None

    @abstractmethod
    async def _before_exit(self) -> None:
        """Do what comes between the end of the process and its exit event."""

    @abstractmethod
    def _exit_event(self, exit: Exit) -> events.TaskExit: ...


class Init(Process):
    """The first process of a container; with it the container starts, ends and is deleted."""

    def __init__(
        self, id: str, bundle: Path, paths: Paths, runc: Runc, *, terminal: bool, children: Children, publish: Publish
    ) -> None:
        super().__init__(f"task {id!r}", paths, terminal=terminal, children=children, publish=publish)
        self.id = id
        self.bundle = bundle
        self.runc = runc
        self.execs: dict[str, Exec] = {}
        self._rootfs = bundle / "rootfs"
        self._owns_pids = True

    async def create(self, mounts: Sequence[Mount]) -> None:
        """Mount the rootfs and create the container. When it fails nothing of it is left.

        Raises:
            RuntimedError: the runtime's own error.
            InvalidArgument: a mount or a stream that cannot be.
        """
        options = self.runc.options
        async with Rollback() as steps:
            if mounts:
                steps.undo("unmount the rootfs", blocking, unmount_all, self._rootfs)
                mount_all(mounts, self._rootfs)  # no thread: one would cost the shim more memory than the rest of it
            if not self.runc.knows(self.id):  # else it is somebody else's, and create says so
                steps.undo("delete the container", partial(self.runc.delete, self.id, force=True))

            def launch(stdio: Sequence[int], console_socket: str) -> Awaitable[None]:
                pid_file = self.bundle / "init.pid"
                return self.runc.create(self.id, stdio, pid_file=pid_file, console_socket=console_socket)

            await self._launch(launch, self.bundle, "init", options.io_uid, options.io_gid)
            steps.commit()
        self._owns_pids = _is_init_of_its_pids(self.pid)
        self.status = Status.CREATED

    async def start(self) -> None:
        """Run the container's program."""
        async with self._doing("start"):
            await self.runc.start(self.id)
            self.status = Status.RUNNING
            self._publish(events.TaskStart(container_id=self.id, pid=self.pid))
            self._start_input()

    async def signal(self, number: int, *, all: bool) -> None:
        """Signal the process, or with *all* every one of the container. Raises as :meth:`kill`."""
        if self.status is Status.STOPPED:
            raise NotFound("process already finished")
        if all or self.status is Status.PAUSED:  # a frozen container does not die before it is thawed
            await self.runc.kill(self.id, number, all=all)
        else:
            self.kill(number)

    async def pause(self) -> None:
        async with self._doing("pause"):
            await self.runc.pause(self.id)
            self.status = Status.PAUSED
            self._publish(events.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        async with self._doing("resume"):
            await self.runc.resume(self.id)
            self.status = Status.RUNNING
            self._publish(events.TaskResumed(container_id=self.id))

    async def delete(self) -> None:
        """Give back all that the container holds: streams, the runtime's state, the rootfs.

        Raises:
            FailedPrecondition: it is running.
        """
        if self.status is Status.CREATED:
            with suppress(NotFound):
                self.kill(signal.SIGKILL)
            await self.exited.wait()
        elif self.has_ended:
            await self.exited.wait()
        async with self._doing("delete"):
            await self.runc.delete(self.id)
            for process in self.execs.values():
                await process.close()
            await self._close_streams()
            try:
                await blocking(unmount_all, self._rootfs)
            except OSError as exc:
                raise Internal(f"unmounting the rootfs of {self._what}: {exc.strerror}") from exc
            self.status = Status.DELETED

    async def _before_exit(self) -> None:
        if not self._owns_pids:
            # The kernel kills what is left of a pid namespace, not what is left in the host's or another container's.
            with suppress(RuntimedError):
                await self.runc.kill(self.id, signal.SIGKILL, all=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXECS_LIMIT_S):
                for process in list(self.execs.values()):
                    await process.settled()

    def _exit_event(self, exit: Exit) -> events.TaskExit:
        event = events.TaskExit(container_id=self.id, id=self.id, pid=self.pid, exit_status=exit.status)
        event.exited_at.FromNanoseconds(exit.at)
        return event


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as exc:
        raise Internal(f"the OCI runtime left no pid in {path}: {exc}") from exc


def _is_init_of_its_pids(pid: int) -> bool:
    """Return whether *pid* is process 1 of a pid namespace other than ours (NSpid in proc_pid_status(5))."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return len(numbers) > 1 and numbers[-1] == "1"
    return False
