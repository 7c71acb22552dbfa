"""A further process in a container."""

import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runtimed.errors import FailedPrecondition, RuntimedError, os_errors
from shim import failpoints, files
from shim import messages as pb
from shim.exits import Children, Exit
from shim.init import Init
from shim.process import Process, Publish, Status, read_pid
from shim.sinks import Origin
from shim.stdio import Paths


class Exec(Process):
    """A process that is announced by Exec, runs from Start, and is known by its ID until Delete."""

    def __init__(
        self,
        id: str,
        init: Init,
        spec: dict[str, Any],
        paths: Paths,
        *,
        terminal: bool,
        children: Children,
        publish: Publish,
    ) -> None:
        what = f"exec {id!r} of task {init.id!r}"
        super().__init__(what, paths, terminal=terminal, children=children, publish=publish)
        self.id = id
        self._init = init
        self._spec = {**spec, "terminal": terminal}
        self._name = f"exec-{id}"  # of its files in the bundle
        self._pid_file = f"{init.bundle}/{self._name}.pid"
        self.status = Status.CREATED

    async def start(self) -> None:
        """Run the process. It may have ended before this returns.

        Raises:
            FailedPrecondition: it was started before, or its container has ended.
            RuntimedError: the runtime's own error.
        """
        async with self._doing("start"):
            if self._init.has_ended:
                raise FailedPrecondition(f"cannot start {self.what}: the task is stopped")
            process = f"{self._init.bundle}/{self._name}.json"
            try:
                files.remove(self._pid_file)
                with os_errors(self.what):
                    files.write(process, json.dumps(self._spec).encode())

                async def launch(stdio: Sequence[int], console_socket: str) -> None:
                    await self._init.runc.exec(
                        self._init.id, stdio, process=process, pid_file=self._pid_file, console_socket=console_socket
                    )
                    await failpoints.hit("shim.exec.made")

                runc = self._init.runc
                origin = Origin(self._children, runc.namespace, self.id, runc.options.io_uid, runc.options.io_gid)
                await failpoints.hit("shim.exec.begun")
                await self._launch(launch, self._init.bundle, self._name, origin)
                await failpoints.hit("shim.exec.started")
            finally:
                files.remove(process)  # it has the environment in it
            self.status = Status.RUNNING
            self._publish(pb.TaskExecStarted(container_id=self._init.id, exec_id=self.id, pid=self.pid))
            self._start_input()

    async def delete(self) -> None:
        """Forget the process. Raises FailedPrecondition if it is running."""
        if self.has_ended:
            await self.exited.wait()
        async with self._doing("delete"):
            await self.close()
            self.status = Status.DELETED

    async def settled(self) -> None:
        """Wait until a start that is under way is over, and then for the end of the process if it runs."""
        async with self.lock:
            runs = self.status is Status.RUNNING
        if runs:
            await self.exited.wait()

    async def close(self) -> None:
        """Give back streams and files, and let go who waits for an end that will not come."""
        self.exited.set()
        await self._close_streams()
        files.remove(self._pid_file)

    async def _abandon(self) -> None:
        with suppress(OSError, RuntimedError):  # there is none, or it has ended
            child = self._children.adopt(read_pid(self._pid_file))
            child.send_signal(signal.SIGKILL)
            await child.exited

    async def _before_exit(self) -> None:
        self._init.look_for_oom()

    def _exit_event(self, exit: Exit) -> pb.TaskExit:
        at = pb.Timestamp.of(exit.at)
        return pb.TaskExit(container_id=self._init.id, id=self.id, pid=self.pid, exit_status=exit.status, exited_at=at)
