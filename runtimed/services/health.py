"""grpc.health.v1.Health: each service that is offered is well until the daemon stops."""

import asyncio
from collections.abc import AsyncIterator, Collection

from grpc_health.v1.health_pb2 import DESCRIPTOR, HealthCheckRequest, HealthCheckResponse

from runtimed.errors import NotFound
from runtimed.services.context import Context

HEALTH = DESCRIPTOR.services_by_name["Health"]


class HealthService:
    """grpc's own servicer would load grpc, which the daemon does without (25 ms of its start)."""

    def __init__(self, services: Collection[str]) -> None:
        """*services*: full names; "", the daemon as a whole, is always known."""
        self._services = {"", *services}
        self._is_stopping = asyncio.Event()

    def stop(self) -> None:
        """Say from now on that nothing is served."""
        self._is_stopping.set()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        if request.service not in self._services:
            raise NotFound(f"service {request.service!r}")
        return self._status(request.service)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        yield self._status(request.service)
        if not self._is_stopping.is_set():
            await self._is_stopping.wait()
            yield self._status(request.service)

    def _status(self, service: str) -> HealthCheckResponse:
        if service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        is_well = not self._is_stopping.is_set()
        return HealthCheckResponse(status=HealthCheckResponse.SERVING if is_well else HealthCheckResponse.NOT_SERVING)
