"""The Tasks service: containers at work, and what is done with them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from runtimed import labels
from runtimed.api import task_types_pb2 as types
from runtimed.api import tasks_pb2 as pb
from runtimed.errors import AlreadyExists, NotFound, Unimplemented
from runtimed.identifiers import validate
from runtimed.metadata.containers import Opaque
from runtimed.mounting.manager import MountManager, needs_manager
from runtimed.mounts import Mount
from runtimed.oci.descriptor import Descriptor
from runtimed.services.context import Context, lease_of, namespace_of, timestamp
from runtimed.tasks.client import Exit, Process, Stdio, parse_address
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager


class TasksService:
    """Runs containers; their records are another service's."""

    def __init__(self, tasks: TaskManager, mounts: MountManager) -> None:
        self._tasks = tasks
        self._mounts = mounts

    async def Create(self, request: pb.CreateTaskRequest, context: Context) -> pb.CreateTaskResponse:
        namespace, new = namespace_of(context), _new_task(request)
        rootfs = await self._activated(namespace, new.id, new.rootfs)
        try:
            pid = await self._tasks.create(namespace, replace(new, rootfs=rootfs))
        except BaseException:
            if rootfs is not new.rootfs:
                with suppress(NotFound):
                    await self._mounts.deactivate(namespace, new.id)
            raise
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: pb.StartRequest, context: Context) -> pb.StartResponse:
        pid = await self._tasks.start(namespace_of(context), request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def Delete(self, request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteResponse:
        namespace, id = namespace_of(context), request.container_id
        exit = await self._tasks.delete(namespace, id)
        with suppress(NotFound):
            await self._mounts.deactivate(namespace, id)
        return _deleted(id, exit)

    async def DeleteProcess(self, request: pb.DeleteProcessRequest, context: Context) -> pb.DeleteResponse:
        validate(request.exec_id, "exec id")  # without one it would be the task that goes
        exit = await self._tasks.delete_exec(namespace_of(context), request.container_id, request.exec_id)
        return _deleted(request.exec_id, exit)

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        found = await self._tasks.get(namespace_of(context), request.container_id, request.exec_id)
        return pb.GetResponse(process=_process(found))

    async def List(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        # `filter` is in the API, but has no meaning in containerd either.
        return pb.ListTasksResponse(tasks=map(_process, await self._tasks.list(namespace_of(context))))

    async def Kill(self, request: pb.KillRequest, context: Context) -> Empty:
        await self._tasks.kill(
            namespace_of(context), request.container_id, request.exec_id, request.signal, all=request.all
        )
        return Empty()

    async def Exec(self, request: pb.ExecProcessRequest, context: Context) -> Empty:
        validate(request.exec_id, "exec id")
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = Opaque(request.spec.type_url, request.spec.value)
        await self._tasks.exec(namespace_of(context), request.container_id, request.exec_id, stdio, spec)
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, context: Context) -> Empty:
        await self._tasks.resize_pty(
            namespace_of(context), request.container_id, request.exec_id, request.width, request.height
        )
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, context: Context) -> Empty:
        await self._tasks.close_io(namespace_of(context), request.container_id, request.exec_id, stdin=request.stdin)
        return Empty()

    async def Pause(self, request: pb.PauseTaskRequest, context: Context) -> Empty:
        await self._tasks.pause(namespace_of(context), request.container_id)
        return Empty()

    async def Resume(self, request: pb.ResumeTaskRequest, context: Context) -> Empty:
        await self._tasks.resume(namespace_of(context), request.container_id)
        return Empty()

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, context: Context) -> pb.CheckpointTaskResponse:
        if request.parent_checkpoint:
            raise Unimplemented(f"task {request.container_id}: a checkpoint with a parent")
        options = Opaque(request.options.type_url, request.options.value)
        namespace, lease = namespace_of(context), lease_of(context)
        response = pb.CheckpointTaskResponse()
        for blob in await self._tasks.checkpoint(namespace, request.container_id, options, lease):
            response.descriptors.add(media_type=blob.media_type, digest=blob.digest, size=blob.size)
        return response

    async def Update(self, request: pb.UpdateTaskRequest, context: Context) -> Empty:
        resources = Opaque(request.resources.type_url, request.resources.value)
        await self._tasks.update(namespace_of(context), request.container_id, resources, dict(request.annotations))
        return Empty()

    async def Metrics(self, request: pb.MetricsRequest, context: Context) -> pb.MetricsResponse:
        response = pb.MetricsResponse()
        for found in await self._tasks.metrics(namespace_of(context), request.filters):
            metric = response.metrics.add(id=found.id, timestamp=timestamp(found.collected_at))
            metric.data.CopyFrom(AnyMessage(type_url=found.data.type_url, value=found.data.value))
        return response

    async def ListPids(self, request: pb.ListPidsRequest, context: Context) -> pb.ListPidsResponse:
        response = pb.ListPidsResponse()
        for pid, info in await self._tasks.pids(namespace_of(context), request.container_id):
            process = response.processes.add(pid=pid)
            if info.type_url:
                process.info.CopyFrom(AnyMessage(type_url=info.type_url, value=info.value))
        return response

    async def Wait(self, request: pb.WaitRequest, context: Context) -> pb.WaitResponse:
        exit = await self._tasks.wait(namespace_of(context), request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=exit.status, exited_at=timestamp(exit.exited_at))

    async def _activated(self, namespace: str, id: str, rootfs: Sequence[Mount]) -> Sequence[Mount]:
        """Return mounts that a shim can make: *rootfs* itself, or what is left of it once the daemon has made its part.

        That part is called as the task is, is held by the container, and goes with the task.
        """
        if not any(needs_manager(mount) for mount in rootfs):
            return rootfs
        if (namespace, id) in self._tasks.holdings().names:
            raise AlreadyExists(f"task {id}: already exists")
        with suppress(NotFound):  # of a task whose shim has gone
            await self._mounts.deactivate(namespace, id)
        marks = {f"{labels.GC_BREF}container": id}
        made = await self._mounts.activate(namespace, id, rootfs, labels=marks)
        return made.system or [Mount("bind", made.active[-1].mount_point, options=("rbind", "ro"))]


def _new_task(request: pb.CreateTaskRequest) -> NewTask:
    options, checkpoint = request.options, request.checkpoint
    return NewTask(
        id=request.container_id,
        rootfs=[Mount(mount.type, mount.source, mount.target, tuple(mount.options)) for mount in request.rootfs],
        stdio=Stdio(request.stdin, request.stdout, request.stderr, request.terminal),
        options=Opaque(options.type_url, options.value) if options.type_url else None,
        runtime=request.runtime_path,
        shim=parse_address(request.task_api_address, request.task_api_version) if request.task_api_address else None,
        checkpoint=Descriptor(media_type=checkpoint.media_type, digest=checkpoint.digest, size=checkpoint.size)
        if checkpoint.digest
        else None,
    )


def _process(process: Process) -> types.Process:
    return types.Process(
        container_id=process.container_id,
        id=process.exec_id or process.container_id,
        pid=process.pid,
        status=process.status.name,
        stdin=process.stdio.stdin,
        stdout=process.stdio.stdout,
        stderr=process.stdio.stderr,
        terminal=process.stdio.terminal,
        exit_status=process.exit_status,
        exited_at=timestamp(process.exited_at) if process.exited_at else None,
    )


def _deleted(id: str, exit: Exit) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=id, pid=exit.pid, exit_status=exit.status, exited_at=timestamp(exit.exited_at) if exit.exited_at else None
    )
