"""runtime.v1.RuntimeService: a line per RPC, to the modules that do it."""

from runtimed.api import cri_pb2 as pb
from runtimed.api.cri_pb2_grpc import RuntimeServiceServicer
from runtimed.cri import status
from runtimed.cri.convert import Context
from runtimed.cri.handlers import Handlers
from runtimed.cri.network import Network


class RuntimeService(RuntimeServiceServicer):
    """Pods and containers."""

    def __init__(self, handlers: Handlers, network: Network) -> None:
        self._handlers = handlers
        self._network = network

    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        return status.version()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        return await status.status(self._handlers, self._network, verbose=request.verbose)

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, context: Context) -> pb.RuntimeConfigResponse:
        return status.runtime_config(self._handlers)

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Context
    ) -> pb.UpdateRuntimeConfigResponse:
        self._network.set_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return pb.UpdateRuntimeConfigResponse()
