import gzip

import grpc
import grpc.aio
import pytest

from runtimed.api import diff_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.diff_pb2_grpc import DiffStub, add_DiffServicer_to_server
from runtimed.content.local import LocalStore
from runtimed.labels import SNAPSHOT_REF
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import mounted_temporarily, mounts_below
from runtimed.oci import digest as digests
from runtimed.services.diff import DiffService
from runtimed.snapshots import loader
from runtimed.workers.pool import Pool
from tests.fakes.events import RecordedEvents
from tests.fakes.server import NAMESPACE, served
from tests.images import tars

pytestmark = pytest.mark.root

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHIVE = tars.tar(tars.directory(b"d"), tars.file(b"d/f", b"data"))
BLOB = gzip.compress(ARCHIVE, mtime=0)


@pytest.fixture
def content(tmp_path):
    database = Database(tmp_path / "metadata.db")
    content = Content(database, LocalStore(tmp_path / "content"))
    with content.begin(NAMESPACE[0][1], "layer") as ingest:
        ingest.write(BLOB)
        ingest.commit()
    yield content
    database.close()


@pytest.fixture
def overlay(content, tmp_path):
    """The overlayfs snapshotter, of which layers become files."""
    loaded = loader.load(tmp_path / "snapshotters", {"overlayfs": {"layers": "erofs"}})
    snapshotter = loaded["overlayfs"].snapshotter
    assert snapshotter is not None
    yield snapshotter
    loader.close(loaded)
    assert not mounts_below(tmp_path)


@pytest.fixture
async def stub(content, overlay, tmp_path):
    pool = Pool(1, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    database = Database(tmp_path / "snapshots.db")
    service = DiffService(content, pool, {"overlayfs": Snapshots(database, "overlayfs", overlay)}, RecordedEvents())
    async with served(tmp_path / "s", lambda server: add_DiffServicer_to_server(service, server)) as channel:
        yield DiffStub(channel)
    await pool.close()
    database.close()


@pytest.fixture
def request_(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return pb.ApplyRequest(
        diff=types_pb2.Descriptor(media_type=GZIP, digest=digests.of(BLOB), size=len(BLOB)),
        mounts=[types_pb2.Mount(type="bind", source=str(root), options=["rbind", "rw"])],
    )


async def test_a_layer_is_applied_and_answered_with_its_diff_id(stub, request_, tmp_path):
    answer = await stub.Apply(request_, metadata=NAMESPACE)
    assert answer.applied.media_type == "application/vnd.oci.image.layer.v1.tar"
    assert (answer.applied.digest, answer.applied.size) == (digests.of(ARCHIVE), len(ARCHIVE))
    assert (tmp_path / "root/d/f").read_text() == "data"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda r: setattr(r.diff, "digest", digests.of(b"other")), grpc.StatusCode.NOT_FOUND, digests.of(b"other")),
        (lambda r: setattr(r.diff, "digest", "sha256:../.."), grpc.StatusCode.INVALID_ARGUMENT, "digest"),
        (lambda r: setattr(r.diff, "media_type", "text/plain"), grpc.StatusCode.INVALID_ARGUMENT, "text/plain"),
        (lambda r: setattr(r.mounts[0], "source", "/nowhere"), grpc.StatusCode.NOT_FOUND, "/nowhere"),
        (lambda r: r.ClearField("mounts"), grpc.StatusCode.INVALID_ARGUMENT, "no mounts"),
    ],
)
async def test_what_is_wrong_with_the_request_is_named(stub, request_, change, code, message):
    change(request_)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Apply(request_, metadata=NAMESPACE)
    assert caught.value.code() is code
    assert message in (caught.value.details() or "")


async def test_a_blob_of_another_namespace_is_not_found(stub, request_):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Apply(request_, metadata=(("containerd-namespace", "other"),))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_making_a_layer_is_answered_as_not_offered(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Diff(pb.DiffRequest(), metadata=NAMESPACE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def mounts_to_proto(mounts):
    return [types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


async def test_a_client_that_unpacks_gets_a_file_and_one_that_works_on_a_snapshot_what_it_sees(
    stub, request_, overlay, tmp_path
):
    """Without knowing of it: Prepare, Apply, Commit, as containerd's client does."""
    del request_.mounts[:]
    request_.mounts.extend(mounts_to_proto(overlay.prepare("unpack", "", {SNAPSHOT_REF: "sha256:1"})))
    answer = await stub.Apply(request_, metadata=NAMESPACE)
    assert answer.applied.digest == digests.of(ARCHIVE)
    overlay.commit("base", "unpack", {})
    assert overlay.usage("base").inodes == 1

    mounts = overlay.prepare("work", "base", {})
    del request_.mounts[:]
    request_.mounts.extend(mounts_to_proto(mounts))
    await stub.Apply(request_, metadata=NAMESPACE)
    with mounted_temporarily(mounts) as root:
        assert (root / "d/f").read_text() == "data"
        assert len(list((tmp_path / "snapshotters/overlayfs/snapshots/2/fs").iterdir())) == 1
