"""runtime.v1.RuntimeService: a line per RPC, to the modules that do it."""

from collections.abc import AsyncIterator

from runtimed.api import cri_pb2 as pb
from runtimed.cri import metrics, stats, status
from runtimed.cri.checkpoint import checkpoint_container
from runtimed.cri.container_create import create_container
from runtimed.cri.container_remove import remove_container
from runtimed.cri.container_start import start_container
from runtimed.cri.container_status import container_status_response
from runtimed.cri.container_stop import stop_container
from runtimed.cri.container_update import (
    reopen_container_log,
    update_container_resources,
    update_pod_sandbox_resources,
)
from runtimed.cri.convert import Context, pieces
from runtimed.cri.core import Core
from runtimed.cri.exec_sync import exec_sync
from runtimed.cri.sandbox_run import run_pod_sandbox
from runtimed.cri.sandbox_status import pod_sandbox_status
from runtimed.cri.sandbox_stop import remove_pod_sandbox, stop_pod_sandbox
from runtimed.cri.streaming.server import StreamingServer
from runtimed.cri.streaming.tickets import Ticket
from runtimed.cri.streams import running
from runtimed.errors import InvalidArgument


class RuntimeService:
    """Pods and containers."""

    def __init__(self, core: Core, streaming: StreamingServer) -> None:
        self._core = core
        self._streaming = streaming

    # The runtime itself

    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        return status.version()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        return await status.status(self._core, verbose=request.verbose)

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Context) -> pb.RuntimeConfigResponse:
        return status.runtime_config(self._core.handlers)

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Context
    ) -> pb.UpdateRuntimeConfigResponse:
        self._core.network.set_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return pb.UpdateRuntimeConfigResponse()

    # Pods

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: Context) -> pb.RunPodSandboxResponse:
        id = await run_pod_sandbox(self._core, request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: Context) -> pb.StopPodSandboxResponse:
        await stop_pod_sandbox(self._core, request.pod_sandbox_id)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: Context
    ) -> pb.RemovePodSandboxResponse:
        await remove_pod_sandbox(self._core, request.pod_sandbox_id)
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: Context
    ) -> pb.PodSandboxStatusResponse:
        sandbox = self._core.state.sandboxes.get(request.pod_sandbox_id)
        return await pod_sandbox_status(self._core, sandbox, verbose=request.verbose)

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: Context) -> pb.ListPodSandboxResponse:
        found = self._core.state.list_sandboxes(request.filter)
        return pb.ListPodSandboxResponse(items=[one.summary() for one in found])

    async def StreamPodSandboxes(
        self, request: pb.StreamPodSandboxesRequest, context: Context
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        for some in pieces(self._core.state.list_sandboxes(request.filter)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=[one.summary() for one in some])

    # Containers

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        id = await create_container(self._core, request.pod_sandbox_id, request.config)
        return pb.CreateContainerResponse(container_id=id)

    async def StartContainer(self, request: pb.StartContainerRequest, context: Context) -> pb.StartContainerResponse:
        await start_container(self._core, request.container_id)
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: Context) -> pb.StopContainerResponse:
        await stop_container(self._core, request.container_id, request.timeout)
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, context: Context) -> pb.RemoveContainerResponse:
        await remove_container(self._core, request.container_id)
        return pb.RemoveContainerResponse()

    async def ListContainers(self, request: pb.ListContainersRequest, context: Context) -> pb.ListContainersResponse:
        found = self._core.state.list_containers(request.filter)
        return pb.ListContainersResponse(containers=[one.summary() for one in found])

    async def StreamContainers(
        self, request: pb.StreamContainersRequest, context: Context
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        for some in pieces(self._core.state.list_containers(request.filter)):
            yield pb.StreamContainersResponse(containers=[one.summary() for one in some])

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, context: Context) -> pb.ContainerStatusResponse:
        container = self._core.state.containers.get(request.container_id)
        return container_status_response(container, verbose=request.verbose)

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Context) -> pb.ExecSyncResponse:
        done = await exec_sync(self._core, request.container_id, request.cmd, request.timeout)
        return pb.ExecSyncResponse(stdout=done.stdout, stderr=done.stderr, exit_code=done.exit_code)

    async def _url(self, ticket: Ticket) -> str:
        url = self._streaming.url(ticket)
        await self._streaming.load()
        return url

    async def Exec(self, request: pb.ExecRequest, context: Context) -> pb.ExecResponse:
        container = running(self._core, request.container_id)
        if not request.cmd:
            raise InvalidArgument("exec: a command is required")
        ticket = Ticket(
            kind="exec",
            target=container.id,
            command=tuple(request.cmd),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.ExecResponse(url=await self._url(ticket))

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        container = running(self._core, request.container_id)
        ticket = Ticket(
            kind="attach",
            target=container.id,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.AttachResponse(url=await self._url(ticket))

    async def PortForward(self, request: pb.PortForwardRequest, context: Context) -> pb.PortForwardResponse:
        sandbox = self._core.state.ready_sandbox(request.pod_sandbox_id)
        ticket = Ticket(kind="portforward", target=sandbox.id, ports=tuple(request.port))
        return pb.PortForwardResponse(url=await self._url(ticket))

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Context
    ) -> pb.UpdateContainerResourcesResponse:
        await update_container_resources(self._core, request.container_id, request.linux)
        return pb.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: Context
    ) -> pb.UpdatePodSandboxResourcesResponse:
        await update_pod_sandbox_resources(self._core, request)
        return pb.UpdatePodSandboxResourcesResponse()

    async def CheckpointContainer(
        self, request: pb.CheckpointContainerRequest, context: Context
    ) -> pb.CheckpointContainerResponse:
        await checkpoint_container(self._core, request.container_id, request.location, request.timeout)
        return pb.CheckpointContainerResponse()

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: Context
    ) -> pb.ReopenContainerLogResponse:
        await reopen_container_log(self._core, request.container_id)
        return pb.ReopenContainerLogResponse()

    # What they use

    async def ContainerStats(self, request: pb.ContainerStatsRequest, context: Context) -> pb.ContainerStatsResponse:
        return pb.ContainerStatsResponse(stats=await stats.container_stats(self._core, request.container_id))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest, context: Context
    ) -> pb.ListContainerStatsResponse:
        return pb.ListContainerStatsResponse(stats=await stats.list_container_stats(self._core, request.filter))

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        for some in pieces(await stats.list_container_stats(self._core, request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=some)

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, context: Context) -> pb.PodSandboxStatsResponse:
        return pb.PodSandboxStatsResponse(stats=await stats.pod_sandbox_stats(self._core, request.pod_sandbox_id))

    async def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest, context: Context
    ) -> pb.ListPodSandboxStatsResponse:
        return pb.ListPodSandboxStatsResponse(stats=await stats.list_pod_sandbox_stats(self._core, request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        for some in pieces(await stats.list_pod_sandbox_stats(self._core, request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=some)

    async def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest, context: Context
    ) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def ListPodSandboxMetrics(
        self, request: pb.ListPodSandboxMetricsRequest, context: Context
    ) -> pb.ListPodSandboxMetricsResponse:
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await metrics.pod_sandbox_metrics(self._core))

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest, context: Context
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        for one in await metrics.pod_sandbox_metrics(self._core):  # each is large
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[one])

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest, context: Context
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        with self._core.events.subscribe() as subscriber:
            # The client may know from it that it misses nothing from here on.
            await context.send_initial_metadata(())
            async for event in subscriber:
                yield event
