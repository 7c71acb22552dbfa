"""The first process of a container; with it the container starts, ends and is deleted."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from runtimed.errors import FailedPrecondition, NotFound, RuntimedError, os_errors
from shim import cgroup, failpoints, files, log, loop, rootfs
from shim import checkpoint as checkpoints
from shim import messages as pb
from shim.exits import Children, Exit
from shim.forked import forked
from shim.hierarchies import Cgroups
from shim.oom import OomWatch
from shim.process import Process, Publish, Status
from shim.runc import Runc
from shim.sinks import Origin
from shim.stats import stats
from shim.stdio import Paths

if TYPE_CHECKING:
    from shim.exec import Exec

# Execs of a container that has ended are killed with it; this is for one that the kernel cannot kill.
_EXECS_LIMIT_S = 10.0

# Signals that a container which is to be restored ends by before it has a process to send them to.
_ENDING = frozenset({signal.SIGKILL, signal.SIGTERM})


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
