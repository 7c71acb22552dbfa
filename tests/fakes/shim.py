"""A containerd shim that runs plain processes instead of containers: what a daemon needs of one, and misbehaviour.

Run as a program it is started and cleaned up after like any shim. The bundle's ``config.json`` says what it does::

    {"fake": {"argv": ["sleep", "60"],     the init process; default: sleep for an hour
              "answer": "json",            how `start` answers: json, address or protobuf
              "create_error": "text",      Create fails so
              "create_s": 5,               Create takes so long, and first tells that it has begun
              "start_error": "text",       `start` fails so
              "sandbox_error": "text",     CreateSandbox fails so
              "dies": true}}               it dies when it should delete
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from runtimed.api import bootstrap_pb2, events_pb2, events_ttrpc_pb2, task_types_pb2, types_pb2
from runtimed.api import sandbox_shim_pb2 as sandbox_pb
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition, NotFound, RuntimedError, Unavailable
from runtimed.rpc import ttrpc

CREATED, RUNNING, STOPPED = task_types_pb2.CREATED, task_types_pb2.RUNNING, task_types_pb2.STOPPED


class FakeShim:
    """The Task API of one task, and of the processes that are added to it; the Sandbox API of one sandbox."""

    def __init__(self, settings: Mapping[str, Any], namespace: str, ttrpc_address: str) -> None:
        self._settings = settings
        self._namespace = namespace
        self._ttrpc_address = ttrpc_address
        self._id = ""
        self._states: dict[str, pb.StateResponse] = {}
        self._exited: dict[str, asyncio.Event] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._sandbox = sandbox_pb.CreateSandboxRequest()
        self._sandbox_state = "SANDBOX_NOTREADY"
        self._sandbox_ended = asyncio.Event()
        self.ended = asyncio.Event()

    def service(self) -> ttrpc.Service:
        requests = {
            "Create": pb.CreateTaskRequest,
            "Start": pb.StartRequest,
            "State": pb.StateRequest,
            "Wait": pb.WaitRequest,
            "Kill": pb.KillRequest,
            "Delete": pb.DeleteRequest,
            "Exec": pb.ExecProcessRequest,
            "Connect": pb.ConnectRequest,
            "Pids": pb.PidsRequest,
            "Shutdown": pb.ShutdownRequest,
        }
        return {name: ttrpc.Method(request, getattr(self, name)) for name, request in requests.items()}

    def sandbox_service(self) -> ttrpc.Service:
        requests = {
            "CreateSandbox": sandbox_pb.CreateSandboxRequest,
            "StartSandbox": sandbox_pb.StartSandboxRequest,
            "Platform": sandbox_pb.PlatformRequest,
            "StopSandbox": sandbox_pb.StopSandboxRequest,
            "WaitSandbox": sandbox_pb.WaitSandboxRequest,
            "SandboxStatus": sandbox_pb.SandboxStatusRequest,
            "ShutdownSandbox": sandbox_pb.ShutdownSandboxRequest,
            "SandboxMetrics": sandbox_pb.SandboxMetricsRequest,
        }
        return {name: ttrpc.Method(request, getattr(self, name)) for name, request in requests.items()}

    async def CreateSandbox(self, request: Any, metadata: Mapping[str, str]) -> Any:
        if "sandbox_error" in self._settings:
            raise RuntimedError(self._settings["sandbox_error"])
        self._sandbox = request
        return sandbox_pb.CreateSandboxResponse()

    async def StartSandbox(self, request: Any, metadata: Mapping[str, str]) -> Any:
        self._sandbox_state = "SANDBOX_READY"
        response = sandbox_pb.StartSandboxResponse(pid=os.getpid())
        response.created_at.GetCurrentTime()
        return response

    async def Platform(self, request: Any, metadata: Mapping[str, str]) -> Any:
        return sandbox_pb.PlatformResponse(platform=types_pb2.Platform(os="linux", architecture="fake"))

    async def StopSandbox(self, request: Any, metadata: Mapping[str, str]) -> Any:
        self._sandbox_state = "SANDBOX_NOTREADY"
        self._sandbox_ended.set()
        return sandbox_pb.StopSandboxResponse()

    async def WaitSandbox(self, request: Any, metadata: Mapping[str, str]) -> Any:
        await self._sandbox_ended.wait()
        response = sandbox_pb.WaitSandboxResponse(exit_status=7)
        response.exited_at.GetCurrentTime()
        return response

    async def SandboxStatus(self, request: Any, metadata: Mapping[str, str]) -> Any:
        info = {"netns": self._sandbox.netns_path, "bundle": self._sandbox.bundle_path} if request.verbose else {}
        return sandbox_pb.SandboxStatusResponse(
            sandbox_id=request.sandbox_id, pid=os.getpid(), state=self._sandbox_state, info=info
        )

    async def ShutdownSandbox(self, request: Any, metadata: Mapping[str, str]) -> Any:
        self._sandbox_ended.set()
        self.ended.set()
        return sandbox_pb.ShutdownSandboxResponse()

    async def SandboxMetrics(self, request: Any, metadata: Mapping[str, str]) -> Any:
        return sandbox_pb.SandboxMetricsResponse(metrics=types_pb2.Metric(id=request.sandbox_id))

    async def Create(self, request: pb.CreateTaskRequest, metadata: Mapping[str, str]) -> pb.CreateTaskResponse:
        if "create_s" in self._settings:
            self._tell("/fake/creating", events_pb2.TaskCreate(container_id=request.id))
            await asyncio.sleep(self._settings["create_s"])
        if "create_error" in self._settings:
            raise RuntimedError(self._settings["create_error"])
        self._id = request.id
        pid = await self._add("", request.stdin, request.stdout, request.stderr, terminal=request.terminal)
        Path("init.pid").write_text(str(pid))  # noqa: ASYNC240  a shim of one task has nobody to keep waiting
        self._tell("/tasks/create", events_pb2.TaskCreate(container_id=request.id, bundle=request.bundle, pid=pid))
        return pb.CreateTaskResponse(pid=pid)

    async def Exec(self, request: pb.ExecProcessRequest, metadata: Mapping[str, str]) -> Empty:
        await self._add(request.exec_id, request.stdin, request.stdout, request.stderr, terminal=request.terminal)
        return Empty()

    async def Start(self, request: pb.StartRequest, metadata: Mapping[str, str]) -> pb.StartResponse:
        state = self._state(request.exec_id)
        if state.status != CREATED:
            raise FailedPrecondition(f"cannot start {request.id}")
        state.status = RUNNING
        self._tell("/tasks/start", events_pb2.TaskStart(container_id=self._id, pid=state.pid))
        return pb.StartResponse(pid=state.pid)

    async def State(self, request: pb.StateRequest, metadata: Mapping[str, str]) -> pb.StateResponse:
        return self._state(request.exec_id)

    async def Wait(self, request: pb.WaitRequest, metadata: Mapping[str, str]) -> pb.WaitResponse:
        state = self._state(request.exec_id)
        await self._exited[request.exec_id].wait()
        return pb.WaitResponse(exit_status=state.exit_status, exited_at=state.exited_at)

    async def Kill(self, request: pb.KillRequest, metadata: Mapping[str, str]) -> Empty:
        state = self._state(request.exec_id)
        if state.status == STOPPED:
            raise NotFound("process already finished")
        os.kill(state.pid, request.signal)
        return Empty()

    async def Delete(self, request: pb.DeleteRequest, metadata: Mapping[str, str]) -> pb.DeleteResponse:
        if self._settings.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        state = self._state(request.exec_id)
        if state.status == RUNNING:
            raise FailedPrecondition(f"cannot delete task {request.id!r}: it is running")
        if state.status == CREATED:
            os.kill(state.pid, signal.SIGKILL)
            await self._exited[request.exec_id].wait()
        del self._states[request.exec_id]
        if not request.exec_id:
            self._tell("/tasks/delete", events_pb2.TaskDelete(container_id=self._id, exit_status=state.exit_status))
        return pb.DeleteResponse(pid=state.pid, exit_status=state.exit_status, exited_at=state.exited_at)

    async def Connect(self, request: pb.ConnectRequest, metadata: Mapping[str, str]) -> pb.ConnectResponse:
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=self._states[""].pid if self._states else 0)

    async def Pids(self, request: pb.PidsRequest, metadata: Mapping[str, str]) -> pb.PidsResponse:
        response = pb.PidsResponse()
        for state in self._states.values():
            response.processes.add(pid=state.pid)
        return response

    async def Shutdown(self, request: pb.ShutdownRequest, metadata: Mapping[str, str]) -> Empty:
        if not self._states:
            self.ended.set()
        return Empty()

    async def publish(self) -> None:
        """Deliver events in order, each until a daemon has taken it."""
        while True:
            topic, event = await self._events.get()
            request = events_ttrpc_pb2.ForwardRequest()
            request.envelope.namespace, request.envelope.topic = self._namespace, topic
            request.envelope.timestamp.GetCurrentTime()
            request.envelope.event.type_url = event.DESCRIPTOR.full_name
            request.envelope.event.value = event.SerializeToString()
            while True:
                try:
                    client = await ttrpc.Client.connect(self._ttrpc_address)
                    await client.call("containerd.services.events.ttrpc.v1.Events", "Forward", request, Empty)
                    await client.close()
                    break
                except Unavailable:
                    await asyncio.sleep(0.02)
            self._events.task_done()

    async def published(self) -> None:
        await self._events.join()

    def _state(self, exec_id: str) -> pb.StateResponse:
        if exec_id not in self._states:
            raise NotFound(f"process {exec_id!r}")
        return self._states[exec_id]

    async def _add(self, exec_id: str, stdin: str, stdout: str, stderr: str, *, terminal: bool) -> int:
        argv = self._settings.get("argv", ["sleep", "3600"])
        process = await asyncio.create_subprocess_exec(*argv, start_new_session=True)
        self._states[exec_id] = pb.StateResponse(
            id=self._id, exec_id=exec_id, pid=process.pid, status=CREATED,
            stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal,
        )  # fmt: skip
        self._exited[exec_id] = asyncio.Event()
        waiting = asyncio.create_task(self._wait(exec_id, process))
        self._waiting.add(waiting)
        return process.pid

    async def _wait(self, exec_id: str, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        state = self._states[exec_id]
        state.status, state.exit_status = STOPPED, code if code >= 0 else 128 - code
        state.exited_at.GetCurrentTime()
        self._exited[exec_id].set()
        event = events_pb2.TaskExit(
            container_id=self._id, id=exec_id or self._id, pid=state.pid, exit_status=state.exit_status
        )
        self._tell("/tasks/exit", event)

    def _tell(self, topic: str, event: Any) -> None:
        self._events.put_nowait((topic, event))


async def serve(sock: socket.socket, settings: Mapping[str, Any], namespace: str, version: int) -> None:
    shim = FakeShim(settings, namespace, os.environ["TTRPC_ADDRESS"])
    services = {
        f"containerd.task.v{version}.Task": shim.service(),
        "containerd.runtime.sandbox.v1.Sandbox": shim.sandbox_service(),
    }
    server = ttrpc.Server(services)
    await server.serve(sock)
    publishing = asyncio.create_task(shim.publish())
    await shim.ended.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await shim.published()
    publishing.cancel()
    await server.close()


def main() -> None:
    flags = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2], strict=False))
    if sys.argv[-1] == "-info":
        raise SystemExit(2)
    if sys.argv[-1] == "delete":
        with suppress(OSError, ValueError):
            os.kill(int(Path("init.pid").read_text()), signal.SIGKILL)
        sys.stdout.buffer.write(pb.DeleteResponse(exit_status=137).SerializeToString())
        return
    settings = json.loads(Path("config.json").read_bytes()).get("fake", {})
    log = os.open("log", os.O_WRONLY)  # waits until the daemon reads
    os.write(log, b"the fake shim starts\n")
    if "start_error" in settings:
        print(settings["start_error"], file=sys.stderr)
        raise SystemExit(1)
    path = str(Path(flags["-address"]).parent / f"{flags['-id']}.shim")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    answer = settings.get("answer", "json")
    if os.fork():
        if answer == "json":
            print(json.dumps({"version": 3, "address": f"unix://{path}", "protocol": "ttrpc"}))
        elif answer == "address":
            print(f"unix://{path}", end="")
        else:
            result = bootstrap_pb2.BootstrapResult(version=3, address=f"unix://{path}", protocol="ttrpc")
            sys.stdout.buffer.write(result.SerializeToString())
        sys.stdout.flush()
        os._exit(0)
    os.setsid()
    # stdout stays open, as careless shims leave it: nobody may wait for its end.
    asyncio.run(serve(sock, settings, flags["-namespace"], 2 if answer == "address" else 3))


if __name__ == "__main__":
    main()
