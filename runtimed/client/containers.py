"""Containers: made of an image, run, looked into."""

import asyncio
import json
import os
import signal as signals
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from runtimed.api import containers_pb2 as pb
from runtimed.api import task_types_pb2
from runtimed.api import tasks_pb2 as tasks
from runtimed.client import create as creating
from runtimed.client import records
from runtimed.client.connection import Connection, service
from runtimed.client.create import Plan, random_id
from runtimed.client.documents import documents, find_image
from runtimed.client.process import Process
from runtimed.client.records import Completed, Status
from runtimed.client.stdio import Fifos
from runtimed.client.streams import Input, Output
from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from runtimed.oci import platform as platforms
from runtimed.oci.container_spec import Options, merged_env
from runtimed.oci.runtime_spec import PROCESS_TYPE_URL, Mount
from runtimed.rollback import Rollback

_CONTAINERS, _TASKS = service(pb, "Containers"), service(tasks, "Tasks")


class Running:
    """A process that runs, with its streams. Made by :meth:`Container.start` and :meth:`Container.exec`."""

    def __init__(self, process: Process, fifos: Fifos, stdin: Input | None) -> None:
        self._process = process
        self._input = stdin
        self.pid = 0
        self.stdout = Output(fifos, "stdout")
        self.stderr = Output(fifos, "stderr")

    async def write(self, data: bytes) -> None:
        """Write to its input. Raises BrokenPipeError: it reads no more, or was not given an input."""
        if self._input is None:
            raise BrokenPipeError("the process was started without stdin=True")
        await self._input.write(data)

    async def close_stdin(self) -> None:
        """Let it see the end of its input."""
        if self._input is not None:
            self._input.close()
            with suppress(NotFound):  # it has ended
                await self._process.close_stdin()

    async def wait(self) -> int:
        """Return its exit status when it has ended: 128 and the number of a signal that ended it."""
        return await self._process.wait()

    async def kill(self, signal: int = signals.SIGTERM) -> None:
        """Send it a signal. Raises NotFound: it has ended."""
        await self._process.kill(signal)

    async def communicate(self, input: bytes = b"") -> Completed:
        """Give it *input*, read all that it writes, wait for it."""

        async def give() -> None:
            with suppress(BrokenPipeError):
                if input:
                    await self.write(input)
            await self.close_stdin()

        reading = asyncio.gather(self.stdout.read_all(), self.stderr.read_all())
        giving = asyncio.ensure_future(give())
        try:
            status = await self.wait()
            stdout, stderr = await reading
        finally:
            for task in (reading, giving):
                task.cancel()
            await asyncio.gather(reading, giving, return_exceptions=True)
        return Completed(exit_status=status, stdout=stdout, stderr=stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container's record, and what can be done with it. Each method may raise NotFound."""

    id: str
    image: str
    labels: Mapping[str, str]
    runtime: str
    snapshotter: str
    snapshot_key: str
    spec: Any  # the OCI runtime spec, as JSON has it
    created_at: datetime | None
    updated_at: datetime | None
    _connection: Connection = field(repr=False, compare=False)

    async def status(self) -> Status | None:
        """Return how its process is; None if there is none."""
        try:
            found = (await self._connection.call(_TASKS.Get, tasks.GetRequest(container_id=self.id))).process
        except NotFound:
            return None
        return Status(
            status=task_types_pb2.Status.Name(found.status).lower(),
            pid=found.pid,
            exit_status=found.exit_status,
            exited_at=records.moment(found.exited_at),
        )

    @asynccontextmanager
    async def start(self, *, stdin: bool = False) -> AsyncIterator[Running]:
        """Start its process, of which the block has the streams; at the end of the block it is gone.

        A process that has not ended by then is killed.

        Raises:
            AlreadyExists: it has been started.
        """
        mounts = []
        if self.snapshotter:
            from runtimed.api import snapshots_pb2 as snapshots

            request = snapshots.MountsRequest(snapshotter=self.snapshotter, key=self.snapshot_key)
            mounts = (await self._connection.call(service(snapshots, "Snapshots").Mounts, request)).mounts
        create = tasks.CreateTaskRequest(container_id=self.id, rootfs=mounts)
        async with self._running(Process(self._connection, self.id), _TASKS.Create, create, stdin) as running:
            yield running

    @asynccontextmanager
    async def exec(
        self, args: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "", stdin: bool = False
    ) -> AsyncIterator[Running]:
        """Run a further process in it, as :meth:`start` does; with its environment, and *env* besides.

        Raises:
            FailedPrecondition: its own process does not run.
        """
        own = self.spec.get("process") if isinstance(self.spec, dict) else None
        if not own:
            raise InvalidArgument(f"container {self.id!r} has no OCI runtime spec with a process")
        more = [f"{key}={value}" for key, value in (env or {}).items()]
        spec = own | {"args": list(args), "terminal": False, "env": list(merged_env(own.get("env") or [], more))}
        spec |= {"cwd": cwd} if cwd else {}
        process = Process(self._connection, self.id, f"exec-{os.urandom(6).hex()}")
        request = tasks.ExecProcessRequest(
            container_id=self.id,
            exec_id=process.exec_id,
            spec=AnyMessage(type_url=PROCESS_TYPE_URL, value=json.dumps(spec).encode()),
        )
        async with self._running(process, _TASKS.Exec, request, stdin) as running:
            yield running

    async def kill(self, signal: int = signals.SIGTERM, *, everything: bool = False) -> None:
        """Send a signal to its process or, with *everything*, to all that run in it."""
        await Process(self._connection, self.id).kill(signal, everything=everything)

    async def wait(self) -> int:
        """Return the exit status of its process when that has ended."""
        return await Process(self._connection, self.id).wait()

    async def pause(self) -> None:
        await self._connection.call(_TASKS.Pause, tasks.PauseTaskRequest(container_id=self.id))

    async def resume(self) -> None:
        await self._connection.call(_TASKS.Resume, tasks.ResumeTaskRequest(container_id=self.id))

    async def delete(self, *, force: bool = False) -> None:
        """Delete it with its snapshot; with *force*, a process that runs is killed first."""
        process = Process(self._connection, self.id)
        if force:
            await _end(process)
        else:
            await process.delete()
        await self._connection.call(_CONTAINERS.Delete, pb.DeleteContainerRequest(id=self.id))
        if self.snapshotter:
            await creating.remove_snapshot(self._connection, self.snapshotter, self.snapshot_key)

    @asynccontextmanager
    async def _running(self, process: Process, method: Any, request: Any, stdin: bool) -> AsyncIterator[Running]:
        with Fifos(stdin=stdin, stderr=True) as fifos:
            request.stdin, request.stdout, request.stderr = (fifos.path(name) for name in ("stdin", "stdout", "stderr"))
            await self._connection.call(method, request)
            input = Input(fifos) if stdin else None
            running = Running(process, fifos, input)
            try:
                running.pid = await process.start()
                if input is not None:
                    input.follow()
                    fifos.close("stdin")
                yield running
            finally:
                if input is not None:
                    input.close()
                await _end(process)


class Containers:
    """The containers of the namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, id: str) -> Container:
        """Raises NotFound."""
        answer = await self._connection.call(_CONTAINERS.Get, pb.GetContainerRequest(id=id))
        return self._container(answer.container)

    async def list(self, *filters: str) -> AsyncIterator[Container]:
        """Yield the containers that match any of *filters* (``labels.app==web``), by ID."""
        async for answer in self._connection.messages(
            _CONTAINERS.ListStream, pb.ListContainersRequest(filters=filters)
        ):
            yield self._container(answer.container)

    async def create(
        self,
        image: str,
        args: Sequence[str] = (),
        *,
        id: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        mounts: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
        snapshotter: str = "",
        runtime: str = "",
        cgroup_parent: str = "",
        **options: Any,
    ) -> Container:
        """Make a container of an image that was pulled; nothing runs yet.

        *args* is its command, or the image's. What else there is to say of it (``hostname``, ``read_only``, ``memory``
        in bytes, ``cpus``, ``pids``, ``host_network``, ...) are the fields of :class:`container_spec.Options`.

        Raises:
            NotFound: there is no such image, or nothing of it for this machine.
            AlreadyExists: the ID is taken.
        """
        connection = self._connection
        id = id or random_id()
        default_snapshotter, default_runtime = await creating.defaults(connection)
        found = await find_image(connection, image)
        plan = Plan(
            id=id,
            image_name=found.name,
            image=await documents(connection, found, platforms.host()),
            snapshotter=snapshotter or default_snapshotter,
            runtime=runtime or default_runtime,
            user=user,
            labels=dict(labels or {}),
        )
        parent = cgroup_parent or f"/runtimed/{connection.namespace}"
        given: dict[str, Any] = {
            "hostname": id[:63],
            "cgroups_path": f"{parent.rstrip('/')}/{id}",
            "cgroup_namespace": creating.has_cgroup_v2(),
        }
        spec = Options(
            args=tuple(args),
            env=tuple(f"{key}={value}" for key, value in (env or {}).items()),
            cwd=cwd,
            mounts=tuple(mounts),
            **given | options,
        )
        async with Rollback() as steps:
            await creating.create(connection, plan, spec, steps)
            steps.commit()
        return await self.get(id)

    async def run(self, image: str, args: Sequence[str] = (), *, input: bytes = b"", **options: Any) -> Completed:
        """Run a container to its end and remove it; *options* as for :meth:`create`."""
        container = await self.create(image, args, **options)
        try:
            async with container.start(stdin=bool(input)) as process:
                return await process.communicate(input)
        finally:
            with suppress(NotFound):
                await container.delete(force=True)

    def _container(self, record: pb.Container) -> Container:
        try:
            spec = json.loads(record.spec.value)
        except ValueError:
            spec = None
        return Container(
            id=record.id,
            image=record.image,
            labels=dict(record.labels),
            runtime=record.runtime.name,
            snapshotter=record.snapshotter,
            snapshot_key=record.snapshot_key,
            spec=spec,
            created_at=records.moment(record.created_at),
            updated_at=records.moment(record.updated_at),
            _connection=self._connection,
        )


async def _end(process: Process) -> None:
    """Kill the process if it runs, and delete it; that it has gone is fine."""
    try:
        await process.kill(signals.SIGKILL, everything=not process.exec_id, patient=True)
        await process.wait()
    except NotFound:
        pass
    except RuntimedError:  # it has not been started, or has ended
        pass
    await process.delete()
