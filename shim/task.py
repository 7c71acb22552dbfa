"""The Task API: containerd.task.v3.Task, and v2, whose messages are the same."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from runtimed.api import events_pb2 as events
from runtimed.api import runc_options_pb2 as runc_pb
from runtimed.api import task_types_pb2 as types
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, os_errors
from runtimed.identifiers import validate
from runtimed.mounts import Mount
from runtimed.rpc.ttrpc import Method, Service
from shim import cgroup
from shim.events import Publisher
from shim.exec import Exec as ExecProcess  # the RPC has the name Exec here
from shim.exits import Children
from shim.options import Options
from shim.process import Init, Process, Status
from shim.runc import Runc
from shim.stdio import Paths

# An exec that has not been started is "created", like the first process before its start.
_STATUS = {
    Status.NEW: types.UNKNOWN,
    Status.CREATED: types.CREATED,
    Status.RUNNING: types.RUNNING,
    Status.PAUSED: types.PAUSED,
    Status.STOPPED: types.STOPPED,
    Status.DELETED: types.STOPPED,
}


_Handler = Callable[[Any], Awaitable[Message]]


class TaskService:
    """One method per RPC, with the RPC's name. The ttrpc server calls them."""

    def __init__(self, namespace: str, runc_root: str, children: Children, publisher: Publisher) -> None:
        self.shutdown = asyncio.Event()  # set when the shim is asked to end, and may
        self._namespace = namespace
        self._runc_root = runc_root
        self._children = children
        self._publisher = publisher
        self._tasks: dict[str, Init] = {}

    @property
    def has_tasks(self) -> bool:
        return bool(self._tasks)

    def service(self) -> Service:
        """Return the methods for a ttrpc server. What changes a task goes on to its end when the caller has left."""
        reading: dict[str, tuple[type[Message], _Handler]] = {
            "State": (pb.StateRequest, self.State),
            "Wait": (pb.WaitRequest, self.Wait),
            "Pids": (pb.PidsRequest, self.Pids),
            "Connect": (pb.ConnectRequest, self.Connect),
            "Shutdown": (pb.ShutdownRequest, self.Shutdown),
        }
        changing: dict[str, tuple[type[Message], _Handler]] = {
            "Create": (pb.CreateTaskRequest, self.Create),
            "Start": (pb.StartRequest, self.Start),
            "Delete": (pb.DeleteRequest, self.Delete),
            "Exec": (pb.ExecProcessRequest, self.Exec),
            "Kill": (pb.KillRequest, self.Kill),
            "Pause": (pb.PauseRequest, self.Pause),
            "Resume": (pb.ResumeRequest, self.Resume),
            "ResizePty": (pb.ResizePtyRequest, self.ResizePty),
            "CloseIO": (pb.CloseIORequest, self.CloseIO),
        }
        methods = {name: Method(kind, partial(_call, handler)) for name, (kind, handler) in reading.items()}
        for name, (kind, handler) in changing.items():
            methods[name] = Method(kind, partial(_call_to_the_end, handler))
        return methods

    async def Create(self, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        validate(request.id, "task")
        if request.checkpoint:
            raise Unimplemented("restoring a task from a checkpoint")
        bundle = Path(request.bundle)
        if not bundle.is_absolute():
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
            options.write(bundle)
            if options.shim_cgroup:
                with os_errors(f"shim cgroup {options.shim_cgroup!r}"):
                    cgroup.join(options.shim_cgroup)
            await init.create([Mount(m.type, m.source, m.target, tuple(m.options)) for m in request.rootfs])
        except BaseException:
            del self._tasks[init.id]
            raise
        # No await from the creation to here, so that an exit comes after this event.
        io = events.TaskIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)
        self._publisher.publish(
            events.TaskCreate(container_id=init.id, bundle=request.bundle, rootfs=request.rootfs, io=io, pid=init.pid)
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
            bundle=str(init.bundle),
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

    async def Kill(self, request: pb.KillRequest) -> Empty:
        process = self._process(request)
        if isinstance(process, Init):
            await process.signal(request.signal, all=request.all)
        else:
            process.kill(request.signal)
        return Empty()

    async def Exec(self, request: pb.ExecProcessRequest) -> Empty:
        init = self._task(request.id)
        validate(request.exec_id, "exec")
        if init.status is Status.STOPPED or init.has_ended:
            raise FailedPrecondition(f"cannot exec in task {request.id!r}: it is stopped")
        try:
            spec = json.loads(request.spec.value)
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
        self._publisher.publish(events.TaskExecAdded(container_id=init.id, exec_id=process.id))
        return Empty()

    async def Delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        init, process = self._task(request.id), self._process(request)
        await process.delete()
        response = pb.DeleteResponse(pid=process.pid)
        _fill_exit(response, process)
        if request.exec_id:
            del init.execs[request.exec_id]
            return response
        del self._tasks[init.id]
        event = events.TaskDelete(container_id=init.id, pid=init.pid, exit_status=response.exit_status)
        event.exited_at.CopyFrom(response.exited_at)
        self._publisher.publish(event)
        return response

    async def Pids(self, request: pb.PidsRequest) -> pb.PidsResponse:
        init = self._task(request.id)
        response = pb.PidsResponse()
        if init.status is Status.STOPPED:
            return response
        exec_ids = {process.pid: process.id for process in init.execs.values() if process.status is Status.RUNNING}
        for pid in await init.runc.ps(init.id):
            entry = response.processes.add(pid=pid)
            if pid in exec_ids:
                details = runc_pb.ProcessDetails(exec_id=exec_ids[pid])
                entry.info.type_url = details.DESCRIPTOR.full_name
                entry.info.value = details.SerializeToString()
        return response

    async def Pause(self, request: pb.PauseRequest) -> Empty:
        await self._task(request.id).pause()
        return Empty()

    async def Resume(self, request: pb.ResumeRequest) -> Empty:
        await self._task(request.id).resume()
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest) -> Empty:
        self._process(request).resize(request.width, request.height)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest) -> Empty:
        process = self._process(request)
        if request.stdin:
            process.close_stdin()
        return Empty()

    async def Connect(self, request: pb.ConnectRequest) -> pb.ConnectResponse:
        self._publisher.wake()  # who calls is a daemon, and it may have been away
        init = self._tasks.get(request.id)
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=init.pid if init else 0)

    async def Shutdown(self, request: pb.ShutdownRequest) -> Empty:
        if not self._tasks:
            self.shutdown.set()
        return Empty()

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


async def _call(handler: _Handler, request: Any, metadata: Mapping[str, str]) -> Message:
    return await handler(request)


_changes: set[asyncio.Task[Message]] = set()  # the loop itself holds tasks weakly


async def _call_to_the_end(handler: _Handler, request: Any, metadata: Mapping[str, str]) -> Message:
    """Call *handler* so that a caller that leaves, or whose time is over, does not stop it half-way."""

    async def run() -> Message:
        return await handler(request)

    change = asyncio.create_task(run())
    _changes.add(change)
    change.add_done_callback(_finished)
    return await asyncio.shield(change)


def _finished(change: asyncio.Task[Message]) -> None:
    _changes.discard(change)
    if not change.cancelled():
        change.exception()  # seen, also if there is no caller any more to hear it


def _fill_exit(response: pb.StateResponse | pb.WaitResponse | pb.DeleteResponse, process: Process) -> None:
    if process.exit is not None:
        response.exit_status = process.exit.status
        response.exited_at.FromNanoseconds(process.exit.at)
