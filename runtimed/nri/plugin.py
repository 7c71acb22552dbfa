"""To write plugins in Python: a class with a method for each event that it wants to hear of, and :func:`run`.

    class Labels(Plugin):
        async def create_container(self, pod, container):
            adjust = pb.ContainerAdjustment()
            adjust.env.add(key="POD_LABELS", value=",".join(pod.labels))
            return adjust

    asyncio.run(run(Labels()))

The messages are those of ``runtimed.api.nri_pb2``. docs/nri.md says what may be changed, and how plugins are installed.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition, os_errors
from runtimed.nri import calls, mux
from runtimed.rpc import ttrpc

DEFAULT_SOCKET = "/var/run/nri/nri.sock"

Updates = Iterable[pb.ContainerUpdate] | None


class Plugin:
    """Override what is of interest: only that is subscribed to. What a method raises is the plugin's objection.

    The runtime waits for the answer, and tells of nothing else meanwhile: be quick, and start no wait for the runtime.
    """

    _runtime: ttrpc.Client | None = None

    async def configure(self, config: str, runtime: str, version: str) -> None:
        """Take the file that is configured for this plugin, and what the runtime is called."""

    async def synchronize(self, pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container]) -> Updates:
        """See all that there is; return what is to be changed of it."""
        return None

    async def shutdown(self) -> None:
        """The runtime ends."""

    async def run_pod_sandbox(self, pod: pb.PodSandbox) -> None: ...
    async def update_pod_sandbox(
        self, pod: pb.PodSandbox, overhead: pb.LinuxResources, resources: pb.LinuxResources
    ) -> None: ...
    async def post_update_pod_sandbox(self, pod: pb.PodSandbox) -> None: ...
    async def stop_pod_sandbox(self, pod: pb.PodSandbox) -> None: ...
    async def remove_pod_sandbox(self, pod: pb.PodSandbox) -> None: ...

    async def create_container(
        self, pod: pb.PodSandbox, container: pb.Container
    ) -> pb.ContainerAdjustment | pb.CreateContainerResponse | None:
        """Return what is to be changed of it, or a whole answer, which may have updates of other containers."""
        return None

    async def post_create_container(self, pod: pb.PodSandbox, container: pb.Container) -> None: ...
    async def start_container(self, pod: pb.PodSandbox, container: pb.Container) -> None: ...
    async def post_start_container(self, pod: pb.PodSandbox, container: pb.Container) -> None: ...

    async def update_container(
        self, pod: pb.PodSandbox, container: pb.Container, resources: pb.LinuxResources
    ) -> Updates:
        """Return updates: of this container, which go over *resources*, or of others."""
        return None

    async def post_update_container(self, pod: pb.PodSandbox, container: pb.Container) -> None: ...

    async def stop_container(self, pod: pb.PodSandbox, container: pb.Container) -> Updates:
        """Return updates of other containers."""
        return None

    async def remove_container(self, pod: pb.PodSandbox, container: pb.Container) -> None: ...

    async def validate_container_adjustment(self, request: pb.ValidateContainerAdjustmentRequest) -> str | None:
        """Return why a container must not be changed so; None if it may."""
        return None

    async def update_containers(self, updates: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        """Have the runtime change limits; return those that it could not change. For any time but in an answer."""
        if self._runtime is None:
            raise FailedPrecondition("the plugin is not connected")
        request = pb.UpdateContainersRequest(update=updates)
        response = await self._runtime.call(
            calls.RUNTIME_SERVICE, "UpdateContainers", request, pb.UpdateContainersResponse
        )
        return list(response.failed)


async def run(plugin: Plugin, *, name: str = "", index: str = "", path: str | os.PathLike[str] = "") -> None:
    """Connect *plugin*, and serve until the runtime ends the connection.

    A plugin that the runtime has launched has its name, index and connection from it. Another says its name and two
    digits (else they are those of its program, INDEX-NAME), and connects to the socket *path*.

    Raises:
        RuntimedError: nobody listens there, or the runtime refuses the plugin.
    """
    program_index, _, program_name = Path(sys.argv[0]).name.removesuffix(".py").partition("-")
    name = os.environ.get("NRI_PLUGIN_NAME") or name or program_name
    index = os.environ.get("NRI_PLUGIN_IDX") or index or program_index
    reader, writer = await asyncio.open_unix_connection(sock=_connected(path or DEFAULT_SOCKET))
    trunk = mux.Mux(reader, writer)
    served, calling = trunk.open(mux.PLUGIN), trunk.open(mux.RUNTIME)
    client = ttrpc.Client(calling, calling, "NRI runtime")
    server = ttrpc.Server({calls.SERVICE: _Answers(plugin).service()})
    serving = asyncio.create_task(server.converse(served, served))
    trunk.start()
    plugin._runtime = client
    try:
        request = pb.RegisterPluginRequest(plugin_name=name, plugin_idx=index)
        await client.call(calls.RUNTIME_SERVICE, "RegisterPlugin", request, pb.Empty)
        await asyncio.wait([client.closed])
    finally:
        plugin._runtime = None
        serving.cancel()
        await asyncio.wait([serving])
        await client.close()


def _connected(path: str | os.PathLike[str]) -> socket.socket:
    if given := os.environ.get("NRI_PLUGIN_SOCKET"):
        sock = socket.socket(fileno=int(given))
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with os_errors(f"NRI socket {os.fspath(path)}"):
                sock.connect(os.fspath(path))
        except BaseException:
            sock.close()
            raise
    sock.setblocking(False)
    return sock


class _Answers:
    """The service ``Plugin``, by the methods of one."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._pods: list[pb.PodSandbox] = []
        self._containers: list[pb.Container] = []

    def service(self) -> ttrpc.Service:
        return {
            "Configure": ttrpc.Method(pb.ConfigureRequest, self._configure),
            "Synchronize": ttrpc.Method(pb.SynchronizeRequest, self._synchronize),
            "Shutdown": ttrpc.Method(pb.Empty, self._shutdown),
            "StateChange": ttrpc.Method(pb.StateChangeEvent, self._state_change),
            **{call.method: ttrpc.Method(call.request, self._answering(call)) for call in calls.EVERY},
        }

    def _answering(self, call: calls.Call) -> ttrpc.Handler:
        async def answer(request: Any, metadata: Mapping[str, str]) -> Message:
            return await self._answer(call, request)

        return answer

    async def _configure(self, request: pb.ConfigureRequest, metadata: Mapping[str, str]) -> Message:
        await self._plugin.configure(request.config, request.runtime_name, request.runtime_version)
        wanted = [call for call in calls.EVERY if _is_overridden(self._plugin, _method(call))]
        if not wanted:  # which a runtime would take for all
            raise FailedPrecondition(f"{type(self._plugin).__name__} has no method for any event")
        return pb.ConfigureResponse(events=sum(calls.bit(call.event) for call in wanted))

    async def _synchronize(self, request: pb.SynchronizeRequest, metadata: Mapping[str, str]) -> Message:
        self._pods += request.pods
        self._containers += request.containers
        if request.more:
            return pb.SynchronizeResponse(more=True)
        pods, containers = self._pods, self._containers
        self._pods, self._containers = [], []
        return pb.SynchronizeResponse(update=await self._plugin.synchronize(pods, containers))

    async def _shutdown(self, request: pb.Empty, metadata: Mapping[str, str]) -> Message:
        await self._plugin.shutdown()
        return pb.Empty()

    async def _state_change(self, event: pb.StateChangeEvent, metadata: Mapping[str, str]) -> Message:
        call = calls.BY_EVENT.get(event.event)
        if call is not None and call.is_state_change:
            await self._answer(call, event)
        return pb.Empty()

    async def _answer(self, call: calls.Call, request: Any) -> Message:
        method = getattr(self._plugin, _method(call))
        match request:
            case pb.CreateContainerRequest():
                found = await method(request.pod, request.container)
                return found if isinstance(found, pb.CreateContainerResponse) else call.response(adjust=found)
            case pb.UpdateContainerRequest():
                return call.response(update=await method(request.pod, request.container, request.linux_resources))
            case pb.StopContainerRequest():
                return call.response(update=await method(request.pod, request.container))
            case pb.ValidateContainerAdjustmentRequest():
                reason = await method(request)
                return call.response(reject=reason is not None, reason=reason)
            case pb.UpdatePodSandboxRequest():
                await method(request.pod, request.overhead_linux_resources, request.linux_resources)
            case _:
                takes_container = "container" in call.request.DESCRIPTOR.fields_by_name
                await (method(request.pod, request.container) if takes_container else method(request.pod))
        return call.response()


def _method(call: calls.Call) -> str:
    """Return ``post_create_container`` for PostCreateContainer."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in call.method).lstrip("_")


def _is_overridden(plugin: Plugin, name: str) -> bool:
    return getattr(type(plugin), name) is not getattr(Plugin, name)
