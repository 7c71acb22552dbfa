"""The Task API: containerd.task.v3.Task, v2, whose messages are the same, and runtimed.shim.v1.Attach."""

import json
import os
from types import MappingProxyType
from typing import Any

from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, os_errors
from runtimed.identifiers import validate
from shim import cgroup, checkpoint, loop, resources
from shim import messages as pb
from shim.events import Publisher
from shim.exec import Exec as ExecProcess  # the RPC has the name Exec here
from shim.exits import Children
from shim.init import Init
from shim.options import Options
from shim.process import Process, Status
from shim.runc import Runc
from shim.stdio import Paths

# The numbers of containerd.v1.types.Status. An exec that has not been started is "created", like the first process
# before its start.
_STATUS = {
    Status.NEW: 0,
    Status.CREATED: 1,
    Status.RUNNING: 2,
    Status.PAUSED: 4,
    Status.STOPPED: 3,
    Status.DELETED: 3,
}


class TaskService:
    """One method per RPC, with the RPC's name. The ttrpc server calls them."""

    REQUESTS = MappingProxyType(
        {
            "State": pb.StateRequest,
            "Wait": pb.WaitRequest,
            "Pids": pb.PidsRequest,
            "Connect": pb.ConnectRequest,
            "Shutdown": pb.ShutdownRequest,
            "Create": pb.CreateTaskRequest,
            "Start": pb.StartRequest,
            "Delete": pb.DeleteRequest,
            "Exec": pb.ExecProcessRequest,
            "Kill": pb.KillRequest,
            "Pause": pb.PauseRequest,
            "Resume": pb.ResumeRequest,
            "ResizePty": pb.ResizePtyRequest,
            "CloseIO": pb.CloseIORequest,
            "Checkpoint": pb.CheckpointTaskRequest,
            "Update": pb.UpdateTaskRequest,
            "Stats": pb.StatsRequest,
            "Attach": pb.AttachRequest,
        }
    )
    READS = frozenset({"State", "Wait", "Pids", "Connect", "Shutdown", "Stats"})
    RESUMABLE = frozenset({"Wait"})

    def __init__(self, namespace: str, runc_root: str, children: Children, publisher: Publisher, shim_pid: int) -> None:
        self.shutdown = loop.Event()  # set when the shim is asked to end, and may
        self._namespace = namespace
        self._runc_root = runc_root
        self._shim_pid = shim_pid
        self._children = children
        self._publisher = publisher
        self._tasks: dict[str, Init] = {}

    @property
    def has_tasks(self) -> bool:
        return bool(self._tasks)

    async def Create(self, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        validate(request.id, "task")
        if request.parent_checkpoint:
            raise Unimplemented("restoring a task from a checkpoint with a parent")
        bundle = os.path.normpath(request.bundle)  # noqa: ASYNC240 - no I/O
        if not request.bundle.startswith("/"):
            raise InvalidArgument(f"bundle {request.bundle!r} must be an absolute path")
        options = Options.from_any(request.options, self._runc_root)
        runc = Runc(self._children, options, self._namespace, bundle)
        paths = Paths(request.stdin, request.stdout, request.stderr)
        init = Init(
            request.id,
            bundle,
            paths,
            runc,
            terminal=request.terminal,
            children=self._children,
            publish=self._publisher.publish,
        )
        # Claim the ID before the first await; a second Create may come during it.
        if self._tasks.setdefault(init.id, init) is not init:
            raise AlreadyExists(f"task {init.id!r}")
        try:
            if options.shim_cgroup:
                with os_errors(f"shim cgroup {options.shim_cgroup!r}"):
                    for pid in (self._shim_pid, os.getpid()):  # keeper and worker, and so all workers to come
                        cgroup.join(options.shim_cgroup, pid)
            await init.create(request.rootfs, request.checkpoint)
        except BaseException:
            del self._tasks[init.id]
            raise
        # No await from the creation to here, so that an exit comes after this event.
        io = pb.TaskIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)
        self._publisher.publish(
            pb.TaskCreate(
                container_id=init.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=io,
                checkpoint=request.checkpoint,
                pid=init.pid,
            )
        )
        return pb.CreateTaskResponse(pid=init.pid)

    async def Start(self, request: pb.StartRequest) -> pb.StartResponse:
        process = self._process(request)
        await process.start()
        return pb.StartResponse(pid=process.pid)

    async def State(self, request: pb.StateRequest) -> pb.StateResponse:
        init, process = self._task(request.id), self._process(request)
        response = pb.StateResponse(
            id=process.id,
            bundle=init.bundle,
            pid=process.pid,
            status=_STATUS[process.status],
            stdin=process.paths.stdin,
            stdout=process.paths.stdout,
            stderr=process.paths.stderr,
            terminal=process.terminal,
            exec_id=request.exec_id,
        )
        _fill_exit(response, process)
        return response

    async def Wait(self, request: pb.WaitRequest) -> pb.WaitResponse:
        process = self._process(request)
        await process.exited.wait()
        if process.exit is None:
            raise NotFound(f"exec {request.exec_id!r} of task {request.id!r}: deleted, it was never started")
        response = pb.WaitResponse()
        _fill_exit(response, process)
        return response

    async def Kill(self, request: pb.KillRequest) -> pb.Empty:
        process = self._process(request)
        if isinstance(process, Init):
            await process.signal(request.signal, all=request.all)
        else:
            process.kill(request.signal)
        return pb.Empty()

    async def Exec(self, request: pb.ExecProcessRequest) -> pb.Empty:
        init = self._task(request.id)
        validate(request.exec_id, "exec")
        if init.status is Status.STOPPED or init.has_ended:
            raise FailedPrecondition(f"cannot exec in task {request.id!r}: it is stopped")
        try:
            spec = json.loads(request.spec.value if request.spec is not None else b"")
        except ValueError:
            spec = None
        if not isinstance(spec, dict):
            raise InvalidArgument(f"exec {request.exec_id!r}: the spec is not the JSON of a process")
        process = ExecProcess(
            request.exec_id,
            init,
            spec,
            Paths(request.stdin, request.stdout, request.stderr),
            terminal=request.terminal,
            children=self._children,
            publish=self._publisher.publish,
        )
        if init.execs.setdefault(process.id, process) is not process:
            raise AlreadyExists(f"exec {process.id!r} of task {init.id!r}")
        self._publisher.publish(pb.TaskExecAdded(container_id=init.id, exec_id=process.id))
        return pb.Empty()

    async def Delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        init, process = self._task(request.id), self._process(request)
        await process.delete()
        response = pb.DeleteResponse(pid=process.pid)
        _fill_exit(response, process)
        if request.exec_id:
            del init.execs[request.exec_id]
            return response
        del self._tasks[init.id]
        self._publisher.publish(
            pb.TaskDelete(
                container_id=init.id,
                pid=init.pid,
                exit_status=response.exit_status,
                exited_at=response.exited_at,
            )
        )
        return response

    async def Pids(self, request: pb.PidsRequest) -> pb.PidsResponse:
        init = self._task(request.id)
        if init.status is Status.STOPPED:
            return pb.PidsResponse()
        exec_ids = {process.pid: process.id for process in init.execs.values() if process.status is Status.RUNNING}
        processes = []
        for pid in await init.runc.ps(init.id):
            entry = pb.ProcessInfo(pid=pid)
            if pid in exec_ids:
                entry.info = pb.Any.of(pb.ProcessDetails(exec_id=exec_ids[pid]))
            processes.append(entry)
        return pb.PidsResponse(processes=processes)

    async def Pause(self, request: pb.PauseRequest) -> pb.Empty:
        await self._task(request.id).pause()
        return pb.Empty()

    async def Resume(self, request: pb.ResumeRequest) -> pb.Empty:
        await self._task(request.id).resume()
        return pb.Empty()

    async def Checkpoint(self, request: pb.CheckpointTaskRequest) -> pb.Empty:
        await self._task(request.id).checkpoint(request.path, checkpoint.options_of(request.options))
        return pb.Empty()

    async def Update(self, request: pb.UpdateTaskRequest) -> pb.Empty:
        await self._task(request.id).update(resources.from_any(request.resources))
        return pb.Empty()

    async def Stats(self, request: pb.StatsRequest) -> pb.StatsResponse:
        return pb.StatsResponse(stats=self._task(request.id).stats())

    async def ResizePty(self, request: pb.ResizePtyRequest) -> pb.Empty:
        self._process(request).resize(request.width, request.height)
        return pb.Empty()

    async def CloseIO(self, request: pb.CloseIORequest) -> pb.Empty:
        process = self._process(request)
        if request.stdin:
            process.close_stdin()
        return pb.Empty()

    async def Attach(self, request: pb.AttachRequest) -> pb.Empty:
        self._task(request.id).attach(request.path)
        return pb.Empty()

    async def Connect(self, request: pb.ConnectRequest) -> pb.ConnectResponse:
        self._publisher.wake()  # who calls is a daemon, and it may have been away
        init = self._tasks.get(request.id)
        return pb.ConnectResponse(shim_pid=self._shim_pid, task_pid=init.pid if init else 0)

    async def Shutdown(self, request: pb.ShutdownRequest) -> pb.Empty:
        if not self._tasks:
            self.shutdown.set()
        return pb.Empty()

    def _task(self, id: str) -> Init:
        init = self._tasks.get(id)
        if init is None or init.status is Status.NEW:
            raise NotFound(f"task {id!r}")
        return init

    def _process(self, request: Any) -> Init | ExecProcess:
        """Return the process that a request with ``id`` and ``exec_id`` is about."""
        init = self._task(request.id)
        if not request.exec_id:
            return init
        process = init.execs.get(request.exec_id)
        if process is None:
            raise NotFound(f"exec {request.exec_id!r} of task {request.id!r}")
        return process


def _fill_exit(response: pb.StateResponse | pb.WaitResponse | pb.DeleteResponse, process: Process) -> None:
    if process.exit is not None:
        response.exit_status = process.exit.status
        response.exited_at = pb.Timestamp.of(process.exit.at)
