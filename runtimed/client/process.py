"""One process of a container, init or exec, through the Task API."""

from runtimed.api import task_types_pb2
from runtimed.api import tasks_pb2 as pb
from runtimed.client.connection import Connection, service
from runtimed.errors import NotFound, Unavailable
from runtimed.oci.runtime_spec import ConsoleSize


class Process:
    """A process that has been created; *exec_id* "" is the container's init."""

    def __init__(self, client: Connection, container_id: str, exec_id: str = "") -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.is_deleted = False  # by :meth:`delete`
        self._client = client
        self._tasks = service(pb, "Tasks")

    async def start(self) -> int:
        """Start it and return its pid; a daemon that goes away meanwhile is asked afterwards whether it did."""
        request = pb.StartRequest(container_id=self.container_id, exec_id=self.exec_id)
        try:
            return int((await self._client.call(self._tasks.Start, request)).pid)
        except Unavailable:
            get = pb.GetRequest(container_id=self.container_id, exec_id=self.exec_id)
            found = (await self._client.call(self._tasks.Get, get, patient=True)).process
            if found.status in {task_types_pb2.UNKNOWN, task_types_pb2.CREATED}:
                raise
            return int(found.pid)

    async def wait(self) -> int:
        """Return the exit status when it has exited, also over a restart of the daemon."""
        request = pb.WaitRequest(container_id=self.container_id, exec_id=self.exec_id)
        return int((await self._client.call(self._tasks.Wait, request, patient=True)).exit_status)

    async def kill(self, signal: int, *, everything: bool = False, patient: bool = False) -> None:
        """Send *signal* to it or, with *everything*, to all processes of the container.

        With *patient* it may be sent twice, over a restart of the daemon.
        """
        request = pb.KillRequest(container_id=self.container_id, exec_id=self.exec_id, signal=signal, all=everything)
        await self._client.call(self._tasks.Kill, request, patient=patient)

    async def resize(self, size: ConsoleSize) -> None:
        """Tell the process that its terminal is now of *size*."""
        request = pb.ResizePtyRequest(
            container_id=self.container_id, exec_id=self.exec_id, width=size.width, height=size.height
        )
        await self._client.call(self._tasks.ResizePty, request)

    async def close_stdin(self) -> None:
        """Let the process see the end of its input once what has been written is read."""
        request = pb.CloseIORequest(container_id=self.container_id, exec_id=self.exec_id, stdin=True)
        await self._client.call(self._tasks.CloseIO, request)

    async def delete(self) -> None:
        """Delete it after it has exited; it being gone already is fine."""
        try:
            if self.exec_id:
                request = pb.DeleteProcessRequest(container_id=self.container_id, exec_id=self.exec_id)
                await self._client.call(self._tasks.DeleteProcess, request, patient=True)
            else:
                task = pb.DeleteTaskRequest(container_id=self.container_id)
                await self._client.call(self._tasks.Delete, task, patient=True)
        except NotFound:
            pass
        self.is_deleted = True
