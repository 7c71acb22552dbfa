"""One shim's Task API as plain values, and what else shims and daemons say to each other in protobuf.

Versions 2 and 3 of the Task API have the same messages under two names, so those of 3 serve for both.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from runtimed.api import bootstrap_pb2, events_pb2, runc_options_pb2, runtime_options_pb2, types_pb2
from runtimed.api import shim_attach_pb2 as attach_pb
from runtimed.api import task_v3_pb2 as pb
from runtimed.config import Runtime
from runtimed.errors import Internal, InvalidArgument, Unavailable, Unimplemented
from runtimed.metadata.containers import Opaque
from runtimed.mounts import Mount
from runtimed.rpc import ttrpc

T = TypeVar("T", bound=Message)

RUNC_OPTIONS = runc_options_pb2.Options.DESCRIPTOR.full_name
_UNIX = "unix://"
_ATTACH = attach_pb.DESCRIPTOR.services_by_name["Attach"].full_name


class Status(IntEnum):
    """Of a process; the numbers are those of containerd.v1.types.Status."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


_STATUSES = frozenset(map(int, Status))


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where the streams of a process go: paths of FIFOs, URIs, or "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. exited_at is in nanoseconds since the epoch, UTC."""

    pid: int
    status: int
    exited_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The state of a task's init (exec_id is "") or of a further process. exited_at is 0 while it lives."""

    container_id: str
    exec_id: str = ""
    pid: int = 0
    status: Status = Status.UNKNOWN
    stdio: Stdio = Stdio()
    exit_status: int = 0
    exited_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a shim serves: `version` of the Task API on the unix socket `path`.

    pid is 0 while it is not known. started is when that process did, in clock ticks since the boot: a process with the
    same pid that started at another time is another one. `is_of_sandbox`: it was there before its tasks, and stays.
    """

    path: Path
    version: int = 3
    pid: int = 0
    started: int = 0
    is_of_sandbox: bool = False


class TaskClient:
    """The calls of one task on its shim. All raise Unavailable when the shim goes away."""

    def __init__(self, connection: ttrpc.Client | None, version: int, id: str) -> None:
        self._connection = connection
        self._service = f"containerd.task.v{version}.Task"
        self._id = id
        if connection is None:
            self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.closed.set_result(None)
        else:
            self.closed = connection.closed

    @classmethod
    async def connect(cls, endpoint: Endpoint, id: str, timeout_s: float) -> Self:
        """Connect to the shim of task *id*. Raises Unavailable, DeadlineExceeded."""
        return cls(await ttrpc.Client.connect(endpoint.path, timeout_s=timeout_s), endpoint.version, id)

    @classmethod
    def unconnected(cls, endpoint: Endpoint, id: str) -> Self:
        """Return what stands for a connection that could not be made."""
        return cls(None, endpoint.version, id)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def shim_pid(self, timeout_s: float) -> int:
        response = await self._call("Connect", pb.ConnectRequest(id=self._id), pb.ConnectResponse, timeout_s)
        return response.shim_pid

    async def create(
        self, bundle: Path, rootfs: Sequence[Mount], stdio: Stdio, options: Opaque, checkpoint: str = ""
    ) -> int:
        """Create the init process; return its pid: 0 if it is to be restored from the directory *checkpoint*."""
        request = pb.CreateTaskRequest(id=self._id, bundle=str(bundle), checkpoint=checkpoint, **_stdio(stdio))
        for mount in rootfs:
            request.rootfs.add(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        if options.type_url:
            request.options.CopyFrom(_any(options))
        return (await self._call("Create", request, pb.CreateTaskResponse)).pid

    async def start(self, exec_id: str) -> int:
        """Start the init or the exec; return its pid."""
        return (await self._call("Start", pb.StartRequest(id=self._id, exec_id=exec_id), pb.StartResponse)).pid

    async def exec(self, exec_id: str, stdio: Stdio, spec: Opaque) -> None:
        request = pb.ExecProcessRequest(id=self._id, exec_id=exec_id, spec=_any(spec), **_stdio(stdio))
        await self._call("Exec", request, Empty)

    async def state(self, exec_id: str, timeout_s: float) -> Process:
        request = pb.StateRequest(id=self._id, exec_id=exec_id)
        found = await self._call("State", request, pb.StateResponse, timeout_s)
        return Process(
            container_id=self._id,
            exec_id=exec_id,
            pid=found.pid,
            status=Status(found.status) if found.status in _STATUSES else Status.UNKNOWN,
            stdio=Stdio(found.stdin, found.stdout, found.stderr, found.terminal),
            exit_status=found.exit_status,
            exited_at=_ns(found.exited_at),
        )

    async def wait(self, exec_id: str) -> Exit:
        response = await self._call("Wait", pb.WaitRequest(id=self._id, exec_id=exec_id), pb.WaitResponse)
        return Exit(pid=0, status=response.exit_status, exited_at=_ns(response.exited_at))

    async def kill(self, exec_id: str, signal: int, *, all: bool, timeout_s: float) -> None:
        request = pb.KillRequest(id=self._id, exec_id=exec_id, signal=signal, all=all)
        await self._call("Kill", request, Empty, timeout_s)

    async def delete(self, exec_id: str) -> Exit:
        response = await self._call("Delete", pb.DeleteRequest(id=self._id, exec_id=exec_id), pb.DeleteResponse)
        return Exit(pid=response.pid, status=response.exit_status, exited_at=_ns(response.exited_at))

    async def pids(self) -> list[tuple[int, Opaque]]:
        """Return each process in the container, with what the shim knows of it."""
        response = await self._call("Pids", pb.PidsRequest(id=self._id), pb.PidsResponse)
        return [(found.pid, Opaque(found.info.type_url, found.info.value)) for found in response.processes]

    async def close_io(self, exec_id: str, *, stdin: bool) -> None:
        await self._call("CloseIO", pb.CloseIORequest(id=self._id, exec_id=exec_id, stdin=stdin), Empty)

    async def resize_pty(self, exec_id: str, width: int, height: int) -> None:
        request = pb.ResizePtyRequest(id=self._id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty)

    async def attach(self, path: Path) -> None:
        """Have the output come on the FIFO *path* too. Raises Unimplemented: the shim is another than runtimed's."""
        request = attach_pb.AttachRequest(id=self._id, path=str(path))
        try:
            await self._call("Attach", request, Empty, service=_ATTACH)
        except Unimplemented:
            raise Unimplemented(f"task {self._id}: its shim attaches nobody; runtimed's own does") from None

    async def pause(self) -> None:
        await self._call("Pause", pb.PauseRequest(id=self._id), Empty)

    async def resume(self) -> None:
        await self._call("Resume", pb.ResumeRequest(id=self._id), Empty)

    async def checkpoint(self, path: str, options: Opaque) -> None:
        """Save the task to the directory *path*."""
        request = pb.CheckpointTaskRequest(id=self._id, path=path)
        if options.type_url:
            request.options.CopyFrom(_any(options))
        await self._call("Checkpoint", request, Empty)

    async def update(self, resources: Opaque, annotations: Mapping[str, str]) -> None:
        """Change limits."""
        request = pb.UpdateTaskRequest(id=self._id, resources=_any(resources), annotations=annotations)
        await self._call("Update", request, Empty)

    async def stats(self, timeout_s: float) -> Opaque:
        """Return what the task uses, in a message of the shim's choice. Raises NotFound if that is not known."""
        response = await self._call("Stats", pb.StatsRequest(id=self._id), pb.StatsResponse, timeout_s)
        return Opaque(response.stats.type_url, response.stats.value)

    async def shutdown(self, timeout_s: float) -> None:
        """Ask the shim to end; it does once it holds no container."""
        await self._call("Shutdown", pb.ShutdownRequest(id=self._id), Empty, timeout_s)

    async def _call(
        self, method: str, request: Message, response: type[T], timeout_s: float | None = None, *, service: str = ""
    ) -> T:
        if self._connection is None:
            raise Unavailable(f"task {self._id}: not connected to its shim")
        return await self._connection.call(service or self._service, method, request, response, timeout_s=timeout_s)


def runc_options(given: Opaque, runtime: Runtime, root: Path) -> Opaque:
    """Return *given* (or, if it is empty, new) options of runc's shim, with what they leave open from *runtime*.

    *root* is where runc keeps its state if neither says so. Options of another type are returned as they are.

    Raises:
        InvalidArgument: the bytes are not such options.
    """
    if given.type_url and given.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        return given
    try:
        options = runc_options_pb2.Options.FromString(given.value)
    except DecodeError:
        raise InvalidArgument(f"runtime options are not a {RUNC_OPTIONS}") from None
    options.binary_name = options.binary_name or runtime.binary
    options.root = options.root or runtime.root or str(root)
    options.systemd_cgroup = options.systemd_cgroup or runtime.systemd_cgroup
    options.no_pivot_root = options.no_pivot_root or runtime.no_pivot_root
    options.no_new_keyring = options.no_new_keyring or runtime.no_new_keyring
    return Opaque(RUNC_OPTIONS, options.SerializeToString())


def shim_options(runtime: Runtime) -> Opaque:
    """Return the options for a shim of another kind that *runtime* configures; they are empty if it does not."""
    if not runtime.config_path:
        return Opaque("", b"")
    options = runtime_options_pb2.Options(type_url=runtime.config_type, config_path=runtime.config_path)
    return Opaque(runtime_options_pb2.Options.DESCRIPTOR.full_name, options.SerializeToString())


def as_any(value: Opaque) -> bytes:
    """Return *value* as the bytes of an Any, which shims before 2.3 read from the stdin of `start`."""
    return _any(value).SerializeToString() if value.type_url else b""


def bootstrap_params(*, id: str, namespace: str, ttrpc_address: str, grpc_address: str, binary: str,
                     version: str, socket_dir: Path | None, options: Opaque, debug: bool) -> bytes:  # fmt: skip
    """Return what shims from 2.3 on read from the stdin of `start` (containerd.runtime.bootstrap.v1)."""
    params = bootstrap_pb2.BootstrapParams(
        instance_id=id,
        namespace=namespace,
        log_level=bootstrap_pb2.LOG_LEVEL_DEBUG if debug else bootstrap_pb2.LOG_LEVEL_INFO,
        containerd_version=version,
        containerd_ttrpc_address=ttrpc_address,
        containerd_grpc_address=grpc_address,
        containerd_binary=binary,
        socket_dir=None if socket_dir is None else str(socket_dir),
    )
    if options.type_url:
        params.extensions.add(value=_any(options))
    return params.SerializeToString()


def parse_started(stdout: bytes) -> Endpoint:
    """Return where a shim serves, from what its `start` printed.

    There are three forms: a BootstrapResult in protobuf (from 2.3 on), the same as JSON, and the bare address, which
    means version 2.

    Raises:
        Internal: none of them, or not ttrpc on a unix socket.
    """
    text = stdout.strip()
    try:
        if text.startswith(b"{"):
            answer: dict[str, Any] = json.loads(text)
            version, address, protocol = answer["version"], answer["address"], answer.get("protocol", "ttrpc")
        elif text.startswith((b"/", _UNIX.encode())):
            version, address, protocol = 2, text.decode(), "ttrpc"
        else:
            result = bootstrap_pb2.BootstrapResult.FromString(stdout)
            version, address, protocol = result.version, result.address, result.protocol
        path = Path(address.removeprefix(_UNIX))
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError):
        raise Internal(f"shim printed {text[:200]!r} where its address should be") from None
    if protocol != "ttrpc" or version not in (2, 3) or not path.is_absolute():
        raise Internal(f"shim serves {protocol!r} version {version!r} at {address!r}; only ttrpc 2 and 3 are spoken")
    return Endpoint(path=path, version=version)


def parse_address(address: str, version: int) -> Endpoint:
    """Return what the client says of where a sandbox serves its tasks: ``unix://PATH``, and 0 for a version unknown.

    Raises:
        InvalidArgument: not ttrpc on a unix socket.
    """
    path = Path(address.removeprefix("ttrpc+").removeprefix(_UNIX))
    if not path.is_absolute() or version not in (0, 2, 3):
        raise InvalidArgument(
            f"task API address {address[:200]!r}, version {version}: only ttrpc 2 and 3 on unix:///PATH are spoken"
        )
    return Endpoint(path=path, version=version or 3)


def parse_deleted(stdout: bytes) -> Exit:
    """Return how the container ended, from what a shim's `delete` printed; killed just now, if it printed nothing."""
    try:
        response = pb.DeleteResponse.FromString(stdout)
    except DecodeError:
        response = pb.DeleteResponse()
    if not response.HasField("exited_at"):
        return killed(response.pid)
    return Exit(pid=response.pid, status=response.exit_status, exited_at=_ns(response.exited_at))


def parse_info(stdout: bytes) -> tuple[int, int]:
    """Return major and minor version from what a shim's `-info` printed; (0, 0) if it does not say."""
    try:
        numbers = types_pb2.RuntimeInfo.FromString(stdout).version.version.removeprefix("v").split(".")
        return int(numbers[0]), int(numbers[1])
    except (DecodeError, ValueError, IndexError):
        return 0, 0


def killed(pid: int) -> Exit:
    """Return the end of a process that nobody saw end."""
    return Exit(pid=pid, status=137, exited_at=time.time_ns())


def exit_event(id: str, exit: Exit) -> events_pb2.TaskExit:
    return events_pb2.TaskExit(
        container_id=id, id=id, pid=exit.pid, exit_status=exit.status, exited_at=_timestamp(exit.exited_at)
    )


def delete_event(id: str, exit: Exit) -> events_pb2.TaskDelete:
    return events_pb2.TaskDelete(
        container_id=id, pid=exit.pid, exit_status=exit.status, exited_at=_timestamp(exit.exited_at)
    )


@dataclass(frozen=True, slots=True)
class EndedInit:
    """What the exit event of a task's init says."""

    id: str
    exit: Exit


def ended_init(envelope: types_pb2.Envelope) -> EndedInit | None:
    """Return what the TaskExit in *envelope* says of a task's init; None if it is an exec's."""
    try:
        event = events_pb2.TaskExit.FromString(envelope.event.value)
    except DecodeError:
        return None
    if event.id != event.container_id:
        return None
    return EndedInit(event.container_id, Exit(pid=event.pid, status=event.exit_status, exited_at=_ns(event.exited_at)))


def _stdio(stdio: Stdio) -> dict[str, Any]:
    return {"stdin": stdio.stdin, "stdout": stdio.stdout, "stderr": stdio.stderr, "terminal": stdio.terminal}


def _any(value: Opaque) -> AnyMessage:
    return AnyMessage(type_url=value.type_url, value=value.value)


def _ns(timestamp: Timestamp) -> int:
    return timestamp.ToNanoseconds()


def _timestamp(ns: int) -> Timestamp:
    result = Timestamp()
    result.FromNanoseconds(ns)
    return result
