"""What a gRPC server offers of a servicer."""

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from runtimed.api import tasks_pb2, version_pb2
from runtimed.api.tasks_pb2_grpc import TasksStub
from runtimed.api.version_pb2_grpc import VersionStub
from runtimed.rpc.grpc_server import Server
from runtimed.services.interceptors import wrapped
from runtimed.services.registration import register
from runtimed.services.version import VERSION, VersionService
from tests.fakes.server import served

TASKS = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"]
VERSIONS = version_pb2.DESCRIPTOR.services_by_name["Version"]


class Some:
    async def Start(self, request, context):
        return tasks_pb2.StartResponse(pid=42)


class More(Some):
    async def Kill(self, request, context):
        return Empty()


@pytest.fixture
async def channel(tmp_path):
    def add(server):
        register(server, TASKS, More())
        register(server, VERSIONS, VersionService())

    async with served(tmp_path / "s", add) as channel:
        yield channel


async def test_methods_of_the_class_and_its_bases_are_offered(channel):
    assert (await TasksStub(channel).Start(tasks_pb2.StartRequest())).pid == 42
    await TasksStub(channel).Kill(tasks_pb2.KillRequest())


async def test_a_method_that_a_servicer_lacks_is_unimplemented(channel):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await TasksStub(channel).Metrics(tasks_pb2.MetricsRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_servicer_that_defines_nothing_is_a_mistake():
    class Nothing:
        pass

    with pytest.raises(TypeError, match="defines no method of"):
        register(Server(wrapped), VERSIONS, Nothing())


async def test_the_version_is_semantic_and_names_us(channel):
    answer = await VersionStub(channel).Version(Empty())
    assert answer.version == VERSION
    assert VERSION.startswith("2.0.0+runtimed.")
