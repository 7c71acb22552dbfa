from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from runtimed.api import snapshots_pb2 as pb
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub, add_SnapshotsServicer_to_server
from runtimed.metadata import leases
from runtimed.metadata.db import Database
from runtimed.metadata.leases import Lease, Resource
from runtimed.metadata.snapshots import Snapshots
from runtimed.services import snapshots as service
from tests.fakes.server import served
from tests.fakes.snapshotters import Unreliable

ONE = (("containerd-namespace", "one"),)


class Events:
    def __init__(self) -> None:
        self.published: list[tuple[str, str, Message]] = []

    def publish(self, namespace: str, topic: str, message: Message) -> None:
        self.published.append((namespace, topic, message))


@pytest.fixture
def db(tmp_path) -> Iterator[Database]:
    with closing(Database(tmp_path / "metadata.db")) as opened:
        yield opened


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def stub(tmp_path, db, events) -> AsyncIterator[SnapshotsStub]:
    with closing(Unreliable(tmp_path / "native")) as native:
        snapshots = service.SnapshotsService({"native": Snapshots(db, "native", native)}, events)
        async with served(tmp_path / "s", lambda server: add_SnapshotsServicer_to_server(snapshots, server)) as channel:
            yield SnapshotsStub(channel)


async def prepare(stub: SnapshotsStub, key: str, parent: str = "", **labels: str) -> pb.PrepareSnapshotResponse:
    request = pb.PrepareSnapshotRequest(snapshotter="native", key=key, parent=parent, labels=labels)
    response: pb.PrepareSnapshotResponse = await stub.Prepare(request, metadata=ONE)
    return response


async def commit(stub: SnapshotsStub, name: str, key: str, parent: str = "") -> None:
    request = pb.CommitSnapshotRequest(snapshotter="native", name=name, key=key, parent=parent)
    await stub.Commit(request, metadata=ONE)


async def test_a_snapshot_lives_from_prepare_to_remove(stub, events):
    made = await prepare(stub, "a", mark="1")
    (mount,) = made.mounts
    assert (mount.type, list(mount.options)) == ("bind", ["rw", "rbind"])
    assert (await stub.Mounts(pb.MountsRequest(snapshotter="native", key="a"), metadata=ONE)).mounts == made.mounts
    await commit(stub, "base", "a")
    view = await stub.View(pb.ViewSnapshotRequest(snapshotter="native", key="v", parent="base"), metadata=ONE)
    assert list(view.mounts[0].options) == ["ro", "rbind"]
    usage = await stub.Usage(pb.UsageRequest(snapshotter="native", key="base"), metadata=ONE)
    assert usage.inodes == 1
    found = (await stub.Stat(pb.StatSnapshotRequest(snapshotter="native", key="v"), metadata=ONE)).info
    assert (found.name, found.parent, found.kind) == ("v", "base", pb.VIEW)
    assert found.created_at.ToNanoseconds() > 0
    for key in ("v", "base"):
        await stub.Remove(pb.RemoveSnapshotRequest(snapshotter="native", key=key), metadata=ONE)
    await stub.Cleanup(pb.CleanupRequest(snapshotter="native"), metadata=ONE)
    assert [(namespace, topic) for namespace, topic, _ in events.published] == [
        ("one", "/snapshot/prepare"),
        ("one", "/snapshot/commit"),
        ("one", "/snapshot/remove"),
        ("one", "/snapshot/remove"),
    ]
    assert events.published[1][2].name == "base"
    assert {message.snapshotter for _, _, message in events.published} == {"native"}


async def test_a_long_list_comes_in_pages(stub, monkeypatch):
    monkeypatch.setattr(service, "_PAGE", 3)
    for number in range(5):
        await prepare(stub, f"key {number}")
    pages = [page async for page in stub.List(pb.ListSnapshotsRequest(snapshotter="native"), metadata=ONE)]
    assert [[info.name for info in page.info] for page in pages] == [["key 0", "key 1", "key 2"], ["key 3", "key 4"]]
    request = pb.ListSnapshotsRequest(snapshotter="native", filters=['name=="key 3"'])
    (page,) = [page async for page in stub.List(request, metadata=ONE)]
    assert [info.name for info in page.info] == ["key 3"]
    assert [page async for page in stub.List(request, metadata=(("containerd-namespace", "two"),))] == []


async def test_an_update_follows_its_mask(stub):
    await prepare(stub, "a", keep="1", change="1")
    info = pb.Info(name="a", labels={"change": "2", "other": "3"})
    request = pb.UpdateSnapshotRequest(snapshotter="native", info=info, update_mask=FieldMask(paths=["labels.change"]))
    assert dict((await stub.Update(request, metadata=ONE)).info.labels) == {"keep": "1", "change": "2"}


async def test_the_requests_lease_holds_what_is_made(stub, db):
    await db.write(leases.create, "one", Lease(id="held"))
    request = pb.PrepareSnapshotRequest(snapshotter="native", key="a")
    await stub.Prepare(request, metadata=(*ONE, ("containerd-lease", "held")))
    assert await db.read(leases.resources, "one", "held") == [Resource("snapshots/native", "a")]


@pytest.mark.parametrize(
    ("method", "request_", "code", "message"),
    [
        ("Stat", pb.StatSnapshotRequest(snapshotter="native", key="x"), "NOT_FOUND", "snapshot 'x'"),
        ("Stat", pb.StatSnapshotRequest(key="x"), "INVALID_ARGUMENT", "snapshotter argument missing; there are native"),
        (
            "Usage",
            pb.UsageRequest(snapshotter="zfs", key="x"),
            "INVALID_ARGUMENT",
            "snapshotter not loaded: zfs; there are native",
        ),
        (
            "Prepare",
            pb.PrepareSnapshotRequest(snapshotter="native", key="a", parent="p"),
            "NOT_FOUND",
            "parent snapshot 'p'",
        ),
    ],
)
async def test_errors_name_the_thing(stub, method, request_, code, message):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_, metadata=ONE)
    assert (caught.value.code().name, caught.value.details()) == (code, message)


async def test_a_commit_onto_another_parent_is_not_implemented(stub):
    for name in ("one", "two"):
        await prepare(stub, "a")
        await commit(stub, name, "a")
    await prepare(stub, "a", "one")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await commit(stub, "top", "a", "two")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await commit(stub, "top", "a", "one")
