"""grpc.reflection.v1alpha.ServerReflection: tools ask it what is served, and what messages look like."""

from collections.abc import AsyncIterator, Collection
from typing import Any

from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR

from runtimed.services.context import Context

REFLECTION = DESCRIPTOR.services_by_name["ServerReflection"]


class ReflectionService:
    """grpc's own, which loads grpc (25 ms): when somebody asks."""

    def __init__(self, services: Collection[str]) -> None:
        """*services*: full names."""
        self._services = services

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        from grpc_reflection.v1alpha.reflection import aio

        async for answer in aio.ReflectionServicer(self._services).ServerReflectionInfo(requests, context):
            yield answer
