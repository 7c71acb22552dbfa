import asyncio
import base64
import gzip
import io
import os
import shutil
import threading

import grpc
import grpc.aio
import pytest
import zstandard

from runtimed.api import diff_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.diff_pb2_grpc import DiffStub, add_DiffServicer_to_server
from runtimed.config import StreamProcessor
from runtimed.content.local import LocalStore
from runtimed.diff.tar import TarReader
from runtimed.labels import SNAPSHOT_REF
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import Mount, mounted_temporarily, mounts_below
from runtimed.oci import digest as digests
from runtimed.services.diff import DiffService
from runtimed.snapshots import loader
from runtimed.workers.pool import Pool
from runtimed.workers.processors import Processors
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
    processors = Processors(PROCESSORS, tmp_path / "processing")
    snapshots = {"overlayfs": Snapshots(database, "overlayfs", overlay)}
    service = DiffService(content, pool, snapshots, RecordedEvents(), processors)
    async with served(tmp_path / "s", lambda server: add_DiffServicer_to_server(service, server)) as channel:
        yield DiffStub(channel)
    await pool.close()
    database.close()
    assert not list((tmp_path / "processing").glob("*"))


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


PROCESSORS = {
    "decode": StreamProcessor(accepts=("x/base64",), returns=GZIP, path="base64", args=("-d",)),
    "again": StreamProcessor(accepts=("x/twice",), returns="x/base64", path="base64", args=("-d",)),
    "fails": StreamProcessor(
        accepts=("x/fails",),
        returns=GZIP,
        path="/bin/sh",
        args=("-c", 'echo "$STREAM_PROCESSOR_MEDIATYPE, $WHO, $(tail -c 4 <&3)" >&2; exit 7'),
        env=("WHO=me",),
    ),
    "turns": StreamProcessor(accepts=("x/turns",), returns="x/turns", path="cat"),
    "missing": StreamProcessor(accepts=("x/missing",), returns=GZIP, path="/no/such/program"),
}


def add_layer(content, data):
    with content.begin("default", "other") as ingest:
        ingest.write(data)
        ingest.commit()
    return digests.of(data)


@pytest.mark.parametrize(("media_type", "times"), [("x/base64", 1), ("x/twice", 2)])
async def test_a_layer_of_another_type_goes_through_processors_first(
    stub, content, request_, tmp_path, media_type, times
):
    data = BLOB
    for _ in range(times):
        data = base64.b64encode(data)
    request_.diff.digest, request_.diff.media_type = add_layer(content, data), media_type
    answer = await stub.Apply(request_, metadata=NAMESPACE)
    assert (answer.applied.digest, answer.applied.size) == (digests.of(ARCHIVE), len(ARCHIVE))
    assert (tmp_path / "root/d/f").read_text() == "data"


@pytest.mark.parametrize(
    ("media_type", "code", "message"),
    [
        ("x/fails", grpc.StatusCode.INVALID_ARGUMENT, "processor fails: exit status 7: x/fails, me, key!"),
        ("x/turns", grpc.StatusCode.INVALID_ARGUMENT, "do not come to an end"),
        ("x/missing", grpc.StatusCode.NOT_FOUND, "/no/such/program"),
        ("x/other", grpc.StatusCode.INVALID_ARGUMENT, "x/other"),
    ],
)
async def test_a_processor_that_fails_is_named(stub, request_, media_type, code, message):
    request_.diff.media_type = media_type
    request_.payloads["fails"].value = b"the key!"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Apply(request_, metadata=NAMESPACE)
    assert caught.value.code() is code
    assert message in (caught.value.details() or "")


async def test_a_blob_of_another_namespace_is_not_found(stub, request_):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Apply(request_, metadata=(("containerd-namespace", "other"),))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture
def trees(tmp_path):
    """A lower tree and an overlay with a change on top of it, as mounts."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for one in (lower, upper, work):
        one.mkdir()
    (lower / "kept").write_text("1")
    (lower / "gone").write_text("2")
    options = ("index=off", f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    with mounted_temporarily([Mount("overlay", "overlay", options=options)]) as root:
        (root / "gone").unlink()
        (root / "new").write_text("3")
        for one in (root / "new", root):
            os.utime(one, (100, 100))
        # Still mounted, as the root of a container that runs.
        yield (
            [types_pb2.Mount(type="bind", source=str(lower), options=["ro", "rbind"])],
            [types_pb2.Mount(type="overlay", source="overlay", options=options)],
        )


@pytest.mark.parametrize(
    ("media_type", "answered", "opened"),
    [
        ("", GZIP, gzip.decompress),
        (GZIP, GZIP, gzip.decompress),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", None, gzip.decompress),
        ("application/vnd.oci.image.layer.v1.tar+zstd", None, lambda data: zstandard.decompress(data, 1 << 20)),
        ("application/vnd.oci.image.layer.v1.tar", None, bytes),
    ],
)
async def test_a_layer_is_made_and_kept_as_a_blob(stub, content, trees, media_type, answered, opened):
    left, right = trees
    request = pb.DiffRequest(left=left, right=right, media_type=media_type, ref="mine", labels={"k": "v"})
    diff = (await stub.Diff(request, metadata=NAMESPACE)).diff
    assert diff.media_type == (answered or media_type)
    data = content.read("default", diff.digest)
    assert len(data) == diff.size
    tar = opened(data)
    assert [entry.name for entry in TarReader(io.BytesIO(tar).read)] == [b".wh.gone", b"new"]
    assert dict(content.info("default", diff.digest).labels) == {
        "k": "v",
        "containerd.io/uncompressed": digests.of(tar),
    }
    assert content.statuses("default") == []


async def test_the_same_trees_make_the_same_layer_and_it_is_there_already(stub, content, trees):
    left, right = trees
    request = pb.DiffRequest(left=left, right=right)
    first = await stub.Diff(request, metadata=NAMESPACE)
    content.update("default", first.diff.digest, {}, ["labels"])  # as of a client that wrote it itself
    assert await stub.Diff(request, metadata=NAMESPACE) == first
    assert "containerd.io/uncompressed" in content.info("default", first.diff.digest).labels


async def test_no_time_in_it_is_later_than_the_source_date_epoch(stub, content, trees):
    left, right = trees
    request = pb.DiffRequest(left=left, right=right, media_type="application/vnd.oci.image.layer.v1.tar")
    request.source_date_epoch.seconds = 50
    diff = (await stub.Diff(request, metadata=NAMESPACE)).diff
    archive = io.BytesIO(content.read("default", diff.digest))
    assert {entry.mtime for entry in TarReader(archive.read)} == {50 * 10**9}


async def test_what_is_made_can_be_applied(stub, content, trees, tmp_path):
    left, right = trees
    diff = (await stub.Diff(pb.DiffRequest(left=left, right=right), metadata=NAMESPACE)).diff
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "lower", copy)
    mounts = [types_pb2.Mount(type="bind", source=str(copy), options=["rbind"])]
    applied = (await stub.Apply(pb.ApplyRequest(diff=diff, mounts=mounts), metadata=NAMESPACE)).applied
    assert applied.digest == content.info("default", diff.digest).labels["containerd.io/uncompressed"]
    assert {path.name: path.read_text() for path in copy.iterdir()} == {"kept": "1", "new": "3"}


async def test_without_a_left_side_the_layer_is_all_of_the_right(stub, content, trees):
    _, right = trees
    request = pb.DiffRequest(right=right, media_type="application/vnd.oci.image.layer.v1.tar")
    diff = (await stub.Diff(request, metadata=NAMESPACE)).diff
    archive = io.BytesIO(content.read("default", diff.digest))
    assert [entry.name for entry in TarReader(archive.read)] == [b"kept", b"new"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda r: setattr(r, "media_type", "text/plain"), grpc.StatusCode.UNIMPLEMENTED, "text/plain"),
        (lambda r: r.ClearField("right"), grpc.StatusCode.INVALID_ARGUMENT, "no mounts"),
        (lambda r: setattr(r.left[0], "source", "/nowhere"), grpc.StatusCode.NOT_FOUND, "/nowhere"),
        (lambda r: setattr(r.right[0], "type", "nosuchfs"), grpc.StatusCode.INVALID_ARGUMENT, "nosuchfs"),
    ],
)
async def test_a_layer_that_cannot_be_made_leaves_nothing(stub, content, trees, change, code, message):
    left, right = trees
    request = pb.DiffRequest(left=left, right=right, ref="mine")
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Diff(request, metadata=NAMESPACE)
    assert caught.value.code() is code
    assert message in (caught.value.details() or "")
    assert content.statuses("default") == []
    assert [info.digest for info in content.list("default")] == [digests.of(BLOB)]


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


async def test_what_overlayfs_keeps_elsewhere_is_found(stub, content, tmp_path):
    """With metacopy=on, the upper directory has a file's metadata only."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for one in (lower, upper, work):
        one.mkdir()
    (lower / "f").write_text("contents")
    shared = ("index=off", "metacopy=on", "redirect_dir=on", f"lowerdir={lower}")
    options = (*shared, f"upperdir={upper}", f"workdir={work}")
    with mounted_temporarily([Mount("overlay", "overlay", options=options)]) as root:
        (root / "f").chmod(0o600)
    assert "trusted.overlay.metacopy" in os.listxattr(upper / "f")
    request = pb.DiffRequest(
        left=[types_pb2.Mount(type="bind", source=str(lower), options=["ro", "rbind"])],
        right=[types_pb2.Mount(type="overlay", source="overlay", options=options)],
        media_type="application/vnd.oci.image.layer.v1.tar",
    )
    diff = (await stub.Diff(request, metadata=NAMESPACE)).diff
    reader = TarReader(io.BytesIO(content.read("default", diff.digest)).read)
    [(entry, data)] = [(entry, b"".join(bytes(piece) for _, piece in reader.contents())) for entry in reader]
    assert (entry.name, entry.mode, data) == (b"f", 0o600, b"contents")


async def test_a_request_that_is_cancelled_leaves_nothing(stub, content, trees, tmp_path):
    left, right = trees
    with (tmp_path / "upper/huge").open("wb") as file:
        file.truncate(1 << 40)  # nobody waits for the end of that
    making = asyncio.ensure_future(stub.Diff(pb.DiffRequest(left=left, right=right), metadata=NAMESPACE))
    while not content.statuses("default"):  # noqa: ASYNC110 - the daemon gets there later
        await asyncio.sleep(0.005)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    async with asyncio.timeout(20):
        while content.statuses("default"):  # noqa: ASYNC110 - the server hears of it later
            await asyncio.sleep(0.005)
    assert [info.digest for info in content.list("default")] == [digests.of(BLOB)]
    assert not mounts_below(tmp_path / "mountpoint")


async def test_a_request_that_is_cancelled_as_it_begins_leaves_nothing(stub, content, trees, monkeypatch):
    left, right = trees
    begin, entered, released = content.begin, threading.Event(), threading.Event()

    def slowly(*args, **kwargs):
        ingest = begin(*args, **kwargs)
        entered.set()
        released.wait(20)
        return ingest

    monkeypatch.setattr(content, "begin", slowly)
    making = asyncio.ensure_future(stub.Diff(pb.DiffRequest(left=left, right=right), metadata=NAMESPACE))
    assert await asyncio.to_thread(entered.wait, 20)
    making.cancel()
    with pytest.raises(grpc.aio.AioRpcError):  # once it is answered the server has heard of the cancellation too
        await stub.Diff(pb.DiffRequest(media_type="x"), metadata=NAMESPACE)
    released.set()
    async with asyncio.timeout(20):
        while content.statuses("default"):  # noqa: ASYNC110 - the thread gets there later
            await asyncio.sleep(0.005)
