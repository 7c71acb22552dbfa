"""What a client that asks how the daemon is hears."""

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthStub

from runtimed.services.health import HEALTH, HealthService
from runtimed.services.registration import register
from tests.fakes.server import served


@pytest.fixture
def health():
    return HealthService(["some.Service"])


@pytest.fixture
async def stub(health, tmp_path):
    async with served(tmp_path / "s", lambda server: register(server, HEALTH, health)) as channel:
        yield HealthStub(channel)


@pytest.mark.parametrize("service", ["", "some.Service"])
async def test_what_is_served_is_well_until_the_daemon_stops(stub, health, service):
    request = pb.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == pb.HealthCheckResponse.SERVING
    watching = aiter(stub.Watch(request))
    assert (await anext(watching)).status == pb.HealthCheckResponse.SERVING
    health.stop()
    assert (await anext(watching)).status == pb.HealthCheckResponse.NOT_SERVING
    assert (await stub.Check(request)).status == pb.HealthCheckResponse.NOT_SERVING


async def test_a_service_that_is_not_there_is_not_found_or_unknown(stub):
    request = pb.HealthCheckRequest(service="nothing")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Check(request)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    watching = stub.Watch(request)
    assert (await anext(aiter(watching))).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    watching.cancel()
