"""The first process of a container, and what it has in common with further ones."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtimed.errors import FailedPrecondition, Internal, NotFound, RuntimedError, os_errors
from shim import cgroup, failpoints, files, log, loop, rootfs
from shim import checkpoint as checkpoints
from shim import messages as pb
from shim.console import ConsoleSocket, Terminal
from shim.exits import Child, Children, Exit
from shim.forked import forked
from shim.hierarchies import Cgroups
from shim.oom import OomWatch
from shim.proto import Message
from shim.runc import Runc
from shim.sinks import Origin, Sinks
from shim.stats import stats
from shim.stdio import Paths, Pipes

if TYPE_CHECKING:
    from shim.exec import Exec

Publish = Callable[[Message], None]
Launch = Callable[[Sequence[int], str], Awaitable[None]]  # stdio descriptors, path of the console socket or ""

# Seconds. A client that reads at all has the last output of a terminal (64 KiB at most) long before.
_DRAIN_LIMIT_S = 2.0
# Execs of a container that has ended are killed with it; this is for one that the kernel cannot kill.
_EXECS_LIMIT_S = 10.0
# From the death of a process that was killed to the keeper's word of it, on a machine that is very busy.
_TOLD_LIMIT_S = 5.0


class Status(StrEnum):
    NEW = "new"  # announced, or being created
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


# Signals that a container which is to be restored ends by before it has a process to send them to.
_ENDING = frozenset({signal.SIGKILL, signal.SIGTERM})

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


class Init(Process):
    """The first process of a container; with it the container starts, ends and is deleted."""

    def __init__(
        self, id: str, bundle: str, paths: Paths, runc: Runc, *, terminal: bool, children: Children, publish: Publish
    ) -> None:
        super().__init__(f"task {id!r}", paths, terminal=terminal, children=children, publish=publish)
        self.id = id
        self.bundle = bundle
        self.runc = runc
        self.execs: dict[str, Exec] = {}
        self._checkpoint = ""  # the directory it is to be restored from, until it is
        self._cgroups = Cgroups("")
        self._oom: OomWatch | None = None
        self._owns_pids = True
        self._is_flat = False  # nothing is mounted below the rootfs

    async def create(self, mounts: Sequence[pb.Mount], checkpoint: str = "") -> None:
        """Mount the rootfs and create the container. When it fails nothing of it is left.

        One that is restored from the directory *checkpoint* has no process before its start.

        Raises:
            RuntimedError: the runtime's own error.
            InvalidArgument: a mount or a stream that cannot be.
            NotFound: there is no checkpoint.
        """
        if checkpoint:
            checkpoints.restore_from(checkpoint, self.bundle)
        options = self.runc.options
        is_others = self.runc.knows(self.id)  # then create says so, and it is not ours to delete
        is_prepared = False

        async def launch(stdio: Sequence[int], console_socket: str) -> None:
            pid_file = f"{self.bundle}/init.pid"
            await self.runc.create(self.id, stdio, pid_file=pid_file, console_socket=console_socket)
            await failpoints.hit("shim.create.made")

        try:
            await failpoints.hit("shim.create.begun")
            self._is_flat = not any(mount.target for mount in mounts)
            if all(
                mount.type == "overlay" and not _is_mapped(mount) for mount in mounts
            ):  # of local directories: there is nothing to wait for
                with os_errors(f"bundle {self.bundle}"):
                    rootfs.prepare(options, mounts, self.bundle)
            else:
                await forked(self._children, rootfs.prepare, options, mounts, self.bundle)
            is_prepared = True
            await failpoints.hit("shim.create.mounted")
            if checkpoint:
                self._checkpoint = checkpoint
            else:
                await self._launch(launch, self.bundle, "init", self._origin())
        except BaseException:
            await self._undo_create(delete=is_prepared and not is_others, unmount=bool(mounts))
            raise
        self._know_process()
        self.status = Status.CREATED

    def _know_process(self) -> None:
        """Learn what is to be known of the first process while it is sure to be there."""
        if self.pid:
            self._owns_pids = _is_init_of_its_pids(self.pid)
            self._cgroups = Cgroups.of(self.pid)
            self._oom = OomWatch(self._cgroups, self._tell_oom)

    async def _undo_create(self, *, delete: bool, unmount: bool) -> None:
        try:
            if delete:
                await self.runc.delete(self.id, force=True)
                await forked(self._children, cgroup.remove_left, self.bundle)
        except RuntimedError as exc:
            log.error(f"{self.what} could not be created, and what there is of it not deleted: {exc}")
        finally:
            if unmount:
                await self._unmount()

    async def start(self) -> None:
        """Run the container's program."""
        async with self._doing("start"):
            await failpoints.hit("shim.start.begun")
            if self._checkpoint:
                await self._restore()
            else:
                await self.runc.start(self.id)
            await failpoints.hit("shim.start.started")
            self.status = Status.RUNNING
            self._publish(pb.TaskStart(container_id=self.id, pid=self.pid))
            self._start_input()

    def _origin(self) -> Origin:
        options = self.runc.options
        return Origin(self._children, self.runc.namespace, self.id, options.io_uid, options.io_gid)

    async def _restore(self) -> None:
        options = self.runc.options

        async def launch(stdio: Sequence[int], console_socket: str) -> None:
            restore = checkpoints.restore_from(self._checkpoint, self.bundle, options.criu_work_path, stdio)
            await self.runc.restore(
                self.id,
                stdio,
                restore.arguments,
                pid_file=f"{self.bundle}/init.pid",
                console_socket=console_socket,
                criu_config=restore.config,
            )

        try:
            await self._launch(launch, self.bundle, "init", self._origin())
        except RuntimedError as exc:
            with suppress(RuntimedError):
                await self.runc.delete(self.id, force=True)
            if isinstance(exc, FailedPrecondition):
                raise  # CRIU had no part in it
            raise checkpoints.restore_error(exc, self.bundle, options.criu_work_path) from exc
        self._checkpoint = ""
        self._know_process()

    async def checkpoint(self, path: str, options: pb.CheckpointOptions) -> None:
        """Save the container to a directory; with the option ``exit`` it ends then. Raises as checkpoint.dump."""
        async with self._doing("checkpoint"):
            with os_errors(f"checkpoint {path!r}"):
                await checkpoints.dump(self.runc, self.id, self.bundle, path, options)
            self._publish(pb.TaskCheckpointed(container_id=self.id, checkpoint=path))

    async def signal(self, number: int, *, all: bool) -> None:
        """Signal the process, or with *all* every one of the container. Raises as :meth:`kill`."""
        if self.status is Status.STOPPED:
            raise NotFound("process already finished")
        if self._checkpoint and number in _ENDING:
            async with self.lock:  # a restore that is under way comes first
                if self._checkpoint:
                    self._end_unrestored(number)
                    return
        if all or self.status is Status.PAUSED:  # a frozen container does not die before it is thawed
            await self.runc.kill(self.id, number, all=all)
            self._insist_on(number)
        else:
            self.kill(number)

    def _end_unrestored(self, number: int) -> None:
        """End what has no process yet: to whoever waits for it, as if it had had one."""
        self._checkpoint = ""
        self.exit = Exit.now(128 + number)
        self.status = Status.STOPPED
        self._publish(self._exit_event(self.exit))
        self.exited.set()

    async def pause(self) -> None:
        async with self._doing("pause"):
            await self.runc.pause(self.id)
            self.status = Status.PAUSED
            self._publish(pb.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        async with self._doing("resume"):
            await self.runc.resume(self.id)
            self.status = Status.RUNNING
            self._publish(pb.TaskResumed(container_id=self.id))

    async def update(self, resources: bytes) -> None:
        """Change limits, by the JSON of a LinuxResources."""
        async with self._doing("update"):
            await self.runc.update(self.id, resources)

    def stats(self) -> pb.Any:
        """Return what the container uses. Raises NotFound when its cgroup is gone."""
        try:
            return stats(self._cgroups)
        except NotFound as exc:
            raise NotFound(f"no metrics of {self.what}: {exc}") from None

    def look_for_oom(self) -> None:
        """Tell of a process that was killed for want of memory, before the end of a process is told."""
        if self._oom is not None:
            self._oom.look()

    def _tell_oom(self) -> None:
        self._publish(pb.TaskOOM(container_id=self.id))

    def _end_oom(self) -> None:
        if self._oom is not None:
            self._oom.look()
            self._oom.close()
            self._oom = None

    async def delete(self) -> None:
        """Give back all that the container holds: streams, the runtime's state, the rootfs.

        Raises:
            FailedPrecondition: it is running.
        """
        if self.status is Status.CREATED and self._checkpoint:
            self.exited.set()  # of a process that there never was
        elif self.status is Status.CREATED:
            with suppress(NotFound):
                self.kill(signal.SIGKILL)
            await self.exited.wait()
        elif self.has_ended:
            await self.exited.wait()
        async with self._doing("delete"):
            await failpoints.hit("shim.delete.begun")
            await self.runc.delete(self.id)
            await failpoints.hit("shim.delete.runtime")
            for process in self.execs.values():
                await process.close()
            await self._close_streams()
            await failpoints.hit("shim.delete.streams")
            await self._unmount()
            await failpoints.hit("shim.delete.unmounted")
            self.status = Status.DELETED

    async def _unmount(self) -> None:
        if not (self._is_flat and rootfs.is_unmounted(f"{self.bundle}/rootfs")):
            await forked(self._children, rootfs.unmount, self.bundle)

    async def _abandon(self) -> None:
        pass  # the runtime's delete does

    async def _before_exit(self) -> None:
        if not self._owns_pids:
            # The kernel kills what is left of a pid namespace, not what is left in the host's or another container's.
            with suppress(RuntimedError):
                await self.runc.kill(self.id, signal.SIGKILL, all=True)
        with suppress(TimeoutError), loop.timeout(_EXECS_LIMIT_S):
            for process in list(self.execs.values()):
                await process.settled()
        self._end_oom()

    def _exit_event(self, exit: Exit) -> pb.TaskExit:
        at = pb.Timestamp.of(exit.at)
        return pb.TaskExit(container_id=self.id, id=self.id, pid=self.pid, exit_status=exit.status, exited_at=at)


def read_pid(path: str) -> int:
    try:
        return int(files.read(path))
    except (OSError, ValueError) as exc:
        raise Internal(f"the OCI runtime left no pid in {path}: {exc}") from exc


def _is_init_of_its_pids(pid: int) -> bool:
    """Return whether *pid* is process 1 of a pid namespace other than ours (NSpid in proc_pid_status(5))."""
    with suppress(OSError):
        for line in files.read(f"/proc/{pid}/status").split(b"\n"):
            if line.startswith(b"NSpid:"):
                numbers = line.split()[1:]
                return len(numbers) > 1 and numbers[-1] == b"1"
    return False


def _is_mapped(mount: pb.Mount) -> bool:
    """Say whether *mount* takes a user namespace, and so a process to make it."""
    return any(option.startswith(("uidmap=", "gidmap=")) for option in mount.options)
