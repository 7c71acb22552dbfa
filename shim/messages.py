"""The messages that a shim speaks: the Task API, its events and options, ttrpc itself.

Names and numbers are those of the .proto files in proto/; versions 2 and 3 of the Task API have the same messages.
"""

from shim.proto import Message, boolean, bytestring, message, messages, signed, string, strings, unsigned


class Empty(Message, full_name="google.protobuf.Empty"):
    pass


class Any(Message, full_name="google.protobuf.Any"):
    type_url: str = string(1)
    value: bytes = bytestring(2)

    @classmethod
    def of(cls, content: Message) -> "Any":
        return cls(type_url=content.FULL_NAME, value=content.SerializeToString())


class Timestamp(Message, full_name="google.protobuf.Timestamp"):
    seconds: int = signed(1)
    nanos: int = signed(2)

    @classmethod
    def of(cls, ns: int) -> "Timestamp":
        """Return a time given in nanoseconds since the epoch."""
        seconds, nanos = divmod(ns, 1_000_000_000)
        return cls(seconds=seconds, nanos=nanos)


class KeyValue(Message, full_name="ttrpc.KeyValue"):
    key: str = string(1)
    value: str = string(2)


class Request(Message, full_name="ttrpc.Request"):
    service: str = string(1)
    method: str = string(2)
    payload: bytes = bytestring(3)
    timeout_nano: int = signed(4)
    metadata: list[KeyValue] = messages(5, KeyValue)


class RpcStatus(Message, full_name="google.rpc.Status"):
    code: int = signed(1)
    message: str = string(2)


class Response(Message, full_name="ttrpc.Response"):
    status: RpcStatus | None = message(1, RpcStatus)
    payload: bytes = bytestring(2)


class Mount(Message, full_name="containerd.types.Mount"):
    type: str = string(1)
    source: str = string(2)
    target: str = string(3)
    options: list[str] = strings(4)


class Envelope(Message, full_name="containerd.types.Envelope"):
    timestamp: Timestamp | None = message(1, Timestamp)
    namespace: str = string(2)
    topic: str = string(3)
    event: Any | None = message(4, Any)


class ForwardRequest(Message, full_name="containerd.services.events.ttrpc.v1.ForwardRequest"):
    envelope: Envelope | None = message(1, Envelope)


class BootstrapParams(Message, full_name="containerd.runtime.bootstrap.v1.BootstrapParams"):
    """Without what a shim does not ask for."""

    instance_id: str = string(1)
    namespace: str = string(2)
    containerd_ttrpc_address: str = string(5)
    containerd_grpc_address: str = string(6)
    socket_dir: str = string(9)


class BootstrapResult(Message, full_name="containerd.runtime.bootstrap.v1.BootstrapResult"):
    version: int = signed(1)
    address: str = string(2)
    protocol: str = string(3)


class RuntimeVersion(Message, full_name="containerd.types.RuntimeVersion"):
    version: str = string(1)
    revision: str = string(2)


class RuntimeRequest(Message, full_name="containerd.types.RuntimeRequest"):
    runtime_path: str = string(1)
    options: Any | None = message(2, Any)


class RuntimeInfo(Message, full_name="containerd.types.RuntimeInfo"):
    name: str = string(1)
    version: RuntimeVersion | None = message(2, RuntimeVersion)
    options: Any | None = message(3, Any)
    features: Any | None = message(4, Any)


class Options(Message, full_name="containerd.runc.v1.Options"):
    no_pivot_root: bool = boolean(1)
    no_new_keyring: bool = boolean(2)
    shim_cgroup: str = string(3)
    io_uid: int = unsigned(4)
    io_gid: int = unsigned(5)
    binary_name: str = string(6)
    root: str = string(7)
    systemd_cgroup: bool = boolean(9)
    criu_image_path: str = string(10)
    criu_work_path: str = string(11)


class CheckpointOptions(Message, full_name="containerd.runc.v1.CheckpointOptions"):
    exit: bool = boolean(1)
    open_tcp: bool = boolean(2)
    external_unix_sockets: bool = boolean(3)
    terminal: bool = boolean(4)
    file_locks: bool = boolean(5)
    empty_namespaces: list[str] = strings(6)
    cgroups_mode: str = string(7)
    image_path: str = string(8)
    work_path: str = string(9)
    parent_path: str = string(10)


class ProcessDetails(Message, full_name="containerd.runc.v1.ProcessDetails"):
    exec_id: str = string(1)


class ProcessInfo(Message, full_name="containerd.v1.types.ProcessInfo"):
    pid: int = unsigned(1)
    info: Any | None = message(2, Any)


class CreateTaskRequest(Message, full_name="containerd.task.v3.CreateTaskRequest"):
    id: str = string(1)
    bundle: str = string(2)
    rootfs: list[Mount] = messages(3, Mount)
    terminal: bool = boolean(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    checkpoint: str = string(8)
    parent_checkpoint: str = string(9)
    options: Any | None = message(10, Any)


class CreateTaskResponse(Message, full_name="containerd.task.v3.CreateTaskResponse"):
    pid: int = unsigned(1)


class DeleteRequest(Message, full_name="containerd.task.v3.DeleteRequest"):
    id: str = string(1)
    exec_id: str = string(2)


class DeleteResponse(Message, full_name="containerd.task.v3.DeleteResponse"):
    pid: int = unsigned(1)
    exit_status: int = unsigned(2)
    exited_at: Timestamp | None = message(3, Timestamp)


class ExecProcessRequest(Message, full_name="containerd.task.v3.ExecProcessRequest"):
    id: str = string(1)
    exec_id: str = string(2)
    terminal: bool = boolean(3)
    stdin: str = string(4)
    stdout: str = string(5)
    stderr: str = string(6)
    spec: Any | None = message(7, Any)


class ResizePtyRequest(Message, full_name="containerd.task.v3.ResizePtyRequest"):
    id: str = string(1)
    exec_id: str = string(2)
    width: int = unsigned(3)
    height: int = unsigned(4)


class StateRequest(Message, full_name="containerd.task.v3.StateRequest"):
    id: str = string(1)
    exec_id: str = string(2)


class StateResponse(Message, full_name="containerd.task.v3.StateResponse"):
    id: str = string(1)
    bundle: str = string(2)
    pid: int = unsigned(3)
    status: int = unsigned(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    terminal: bool = boolean(8)
    exit_status: int = unsigned(9)
    exited_at: Timestamp | None = message(10, Timestamp)
    exec_id: str = string(11)


class KillRequest(Message, full_name="containerd.task.v3.KillRequest"):
    id: str = string(1)
    exec_id: str = string(2)
    signal: int = unsigned(3)
    all: bool = boolean(4)


class CloseIORequest(Message, full_name="containerd.task.v3.CloseIORequest"):
    id: str = string(1)
    exec_id: str = string(2)
    stdin: bool = boolean(3)


class PidsRequest(Message, full_name="containerd.task.v3.PidsRequest"):
    id: str = string(1)


class PidsResponse(Message, full_name="containerd.task.v3.PidsResponse"):
    processes: list[ProcessInfo] = messages(1, ProcessInfo)


class StartRequest(Message, full_name="containerd.task.v3.StartRequest"):
    id: str = string(1)
    exec_id: str = string(2)


class StartResponse(Message, full_name="containerd.task.v3.StartResponse"):
    pid: int = unsigned(1)


class WaitRequest(Message, full_name="containerd.task.v3.WaitRequest"):
    id: str = string(1)
    exec_id: str = string(2)


class WaitResponse(Message, full_name="containerd.task.v3.WaitResponse"):
    exit_status: int = unsigned(1)
    exited_at: Timestamp | None = message(2, Timestamp)


class PauseRequest(Message, full_name="containerd.task.v3.PauseRequest"):
    id: str = string(1)


class ResumeRequest(Message, full_name="containerd.task.v3.ResumeRequest"):
    id: str = string(1)


class CheckpointTaskRequest(Message, full_name="containerd.task.v3.CheckpointTaskRequest"):
    id: str = string(1)
    path: str = string(2)
    options: Any | None = message(3, Any)


class UpdateTaskRequest(Message, full_name="containerd.task.v3.UpdateTaskRequest"):
    """Without the annotations, of which runc makes nothing."""

    id: str = string(1)
    resources: Any | None = message(2, Any)


class StatsRequest(Message, full_name="containerd.task.v3.StatsRequest"):
    id: str = string(1)


class StatsResponse(Message, full_name="containerd.task.v3.StatsResponse"):
    stats: Any | None = message(1, Any)


class ConnectRequest(Message, full_name="containerd.task.v3.ConnectRequest"):
    id: str = string(1)


class ConnectResponse(Message, full_name="containerd.task.v3.ConnectResponse"):
    shim_pid: int = unsigned(1)
    task_pid: int = unsigned(2)
    version: str = string(3)


class ShutdownRequest(Message, full_name="containerd.task.v3.ShutdownRequest"):
    id: str = string(1)
    now: bool = boolean(2)


class AttachRequest(Message, full_name="runtimed.shim.v1.AttachRequest"):
    id: str = string(1)
    path: str = string(2)


class TaskIO(Message, full_name="containerd.events.TaskIO"):
    stdin: str = string(1)
    stdout: str = string(2)
    stderr: str = string(3)
    terminal: bool = boolean(4)


class TaskCreate(Message, full_name="containerd.events.TaskCreate"):
    container_id: str = string(1)
    bundle: str = string(2)
    rootfs: list[Mount] = messages(3, Mount)
    io: TaskIO | None = message(4, TaskIO)
    checkpoint: str = string(5)
    pid: int = unsigned(6)


class TaskStart(Message, full_name="containerd.events.TaskStart"):
    container_id: str = string(1)
    pid: int = unsigned(2)


class TaskDelete(Message, full_name="containerd.events.TaskDelete"):
    container_id: str = string(1)
    pid: int = unsigned(2)
    exit_status: int = unsigned(3)
    exited_at: Timestamp | None = message(4, Timestamp)
    id: str = string(5)


class TaskExit(Message, full_name="containerd.events.TaskExit"):
    container_id: str = string(1)
    id: str = string(2)
    pid: int = unsigned(3)
    exit_status: int = unsigned(4)
    exited_at: Timestamp | None = message(5, Timestamp)


class TaskOOM(Message, full_name="containerd.events.TaskOOM"):
    container_id: str = string(1)


class TaskExecAdded(Message, full_name="containerd.events.TaskExecAdded"):
    container_id: str = string(1)
    exec_id: str = string(2)


class TaskExecStarted(Message, full_name="containerd.events.TaskExecStarted"):
    container_id: str = string(1)
    exec_id: str = string(2)
    pid: int = unsigned(3)


class TaskPaused(Message, full_name="containerd.events.TaskPaused"):
    container_id: str = string(1)


class TaskResumed(Message, full_name="containerd.events.TaskResumed"):
    container_id: str = string(1)


class TaskCheckpointed(Message, full_name="containerd.events.TaskCheckpointed"):
    container_id: str = string(1)
    checkpoint: str = string(2)
