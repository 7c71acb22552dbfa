"""Tasks whose root file system is made of mounts that need the daemon."""

import json

import grpc
import grpc.aio
import pytest

from runtimed.api import tasks_pb2 as pb
from runtimed.api.tasks_pb2_grpc import TasksStub, add_TasksServicer_to_server
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.mounting.manager import MountManager
from runtimed.mounts import mounts_below
from runtimed.services.tasks import TasksService
from tests.fakes.server import NAMESPACE, served
from tests.fakes.tasks import NS, SPEC_TYPE

pytestmark = pytest.mark.root


@pytest.fixture
def mounts(daemon):
    return MountManager(daemon.database, daemon.root / "mounts", [daemon.root])


@pytest.fixture
async def stub(daemon, mounts, home):
    service = TasksService(daemon.tasks, mounts)
    async with served(home / "api", lambda server: add_TasksServicer_to_server(service, server)) as channel:
        yield TasksStub(channel)


@pytest.fixture
def request_of(daemon, rootfs, spec):
    """Make a container, and return what makes a task of it: an overlay of a disk over the root file system."""

    async def request(script, *, lower=rootfs):
        document = {**spec(script), "root": {"path": "rootfs"}}
        record = Container(
            id="c", runtime="io.containerd.runc.v2", spec=Opaque(SPEC_TYPE, json.dumps(document).encode())
        )
        await daemon.database.write(containers.create, NS, record)
        made = pb.CreateTaskRequest(container_id="c")
        made.rootfs.add(type="mkfs/loop", source=str(daemon.root / "disk"), options=["X-containerd.mkfs.size=2MiB"])
        made.rootfs.add(type="format/ext4", source="{{ mount 0 }}")
        made.rootfs.add(
            type="format/mkdir/overlay",
            source="overlay",
            options=[
                f"lowerdir={lower}",
                "upperdir={{ mount 1 }}/u",
                "workdir={{ mount 1 }}/w",
                "X-containerd.mkdir.path={{ mount 1 }}/u:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/w",
            ],
        )
        return made

    return request


async def test_the_daemon_makes_its_part_and_takes_it_off_with_the_task(daemon, stub, mounts, request_of):
    request = await request_of("echo written > /file && cat /file && exec sleep 100")
    await stub.Create(request, metadata=NAMESPACE)
    assert len(mounts_below(daemon.root / "mounts")) == 1
    [active] = await mounts.matching(NS, [])
    assert (active.name, dict(active.labels)) == ("c", {"containerd.io/gc.bref.container": "c"})
    with pytest.raises(grpc.aio.AioRpcError, match="already exists"):
        await stub.Create(request, metadata=NAMESPACE)
    await stub.Start(pb.StartRequest(container_id="c"), metadata=NAMESPACE)
    await stub.Kill(pb.KillRequest(container_id="c", signal=9), metadata=NAMESPACE)
    await stub.Wait(pb.WaitRequest(container_id="c"), metadata=NAMESPACE)
    await stub.Delete(pb.DeleteTaskRequest(container_id="c"), metadata=NAMESPACE)
    assert (mounts_below(daemon.root / "mounts"), await mounts.matching(NS, [])) == ([], [])


async def test_a_task_that_cannot_be_made_leaves_no_mounts(daemon, stub, mounts, request_of):
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Create(await request_of("x", lower="/nosuch"), metadata=NAMESPACE)
    assert (mounts_below(daemon.root / "mounts"), await mounts.matching(NS, [])) == ([], [])
