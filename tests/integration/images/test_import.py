import asyncio
import gzip
import json
import random
import tarfile

import grpc
import pytest
import zstandard

from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.metadata import images
from runtimed.oci import manifest as manifests
from runtimed.services.streaming import to_any, unpack
from runtimed.workers.pool import Pool
from tests.fakes.streams import opened, send_bytes
from tests.images.archives import DockerArchive, oci_archive
from tests.images.layouts import digest_of, tar_of

pytestmark = pytest.mark.root

AMD64 = types_pb2.Platform(os="linux", architecture="amd64")
UNPACK = types.UnpackConfiguration(platform=AMD64, snapshotter="native")
ANY_NAME = types.ImageReference(name="imported", is_prefix=True, allow_overwrite=True)


@pytest.fixture
def import_(channel, transfer):
    async def import_(archive, store=None, *, media_type="", compress=False, progress=""):
        stream = await opened(channel, "archive")
        source = types.ImageImportStream(stream="archive", media_type=media_type, force_compress=compress)
        store = types.ImageStore(extra_references=[ANY_NAME]) if store is None else store
        sending = asyncio.create_task(send_bytes(stream, archive))
        try:
            await transfer(source, store, progress)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            stream.cancel()

    return import_


async def names(store):
    return [image.name for image in await store.db.read(images.list, "default")]


def blobs(store):
    return {info.digest for info in store.content.list("default")}


def refused(code, match):
    return pytest.raises(grpc.aio.AioRpcError, match=f"(?s){code.name}.*{match}")


def pack(how, data):
    match how:
        case "gzip":
            return gzip.compress(data)
        case "zstd":
            return zstandard.compress(data)
    return data


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd"])
async def test_an_image_layout_becomes_images_and_snapshots(store, layout, import_, events, how):
    layer = layout.layer({"a": b"1" * 200_000})
    layout.image("docker.io/library/app:1", [layer])
    layout.image("tag-alone", [layout.layer({"b": b"2"})])
    unrelated = layout.blob(b"nobody refers to it")
    named = types.ImageStore(labels={"k": "v"}, extra_references=[ANY_NAME], unpacks=[UNPACK])
    await import_(pack(how, oci_archive(layout)), named)

    assert await names(store) == ["docker.io/library/app:1", "imported:tag-alone"]
    image = await store.db.read(images.get, "default", "docker.io/library/app:1")
    assert dict(image.labels) == {"k": "v"}
    assert store.files(layer.diff_id, "default") == {"a": b"1" * 200_000}
    assert store.content.info("default", layer.digest).labels == {"containerd.io/uncompressed": layer.diff_id}
    assert unrelated["digest"] not in blobs(store)
    assert digest_of((layout.root / "index.json").read_bytes()) not in blobs(store)
    assert store.ingests("default") == {}
    assert store.left_over("default") == []
    assert events.topics == ["/images/create", "/images/create"]


async def test_what_holds_what_is_on_the_blobs(store, layout, import_):
    layer = layout.layer({"a": b"1"})
    root = layout.image("app:1", [layer])
    await import_(oci_archive(layout))
    config = json.loads(layout.path(root["digest"]).read_bytes())["config"]["digest"]
    assert store.content.info("default", root["digest"]).labels == {
        "containerd.io/gc.ref.content.config": config,
        "containerd.io/gc.ref.content.l.0": layer.digest,
    }


async def test_progress_is_told(layout, import_, channel):
    layer = layout.layer({"a": b"1"})
    layout.image("app:1", [layer])
    progress = await opened(channel, "progress")
    await import_(oci_archive(layout), progress="progress")
    heard = []
    while (packed := await progress.read()) is not grpc.aio.EOF:
        one = types.Progress()
        unpack(packed, one)
        heard.append((one.event, one.name))
    assert heard[0] == ("Importing", "")
    assert ("complete", f"layer-{layer.digest}") in heard
    assert heard[-2:] == [("saved", "app:1"), ("Completed import", "")]


async def test_of_several_platforms_those_that_are_asked_for_are_taken(store, layout, import_):
    own, other = layout.layer({"a": b"1"}), layout.layer({"a": b"2"})
    manifests = [layout.manifest([own]), layout.manifest([other], platform="linux/s390x")]
    layout.index("app:1", manifests)
    await import_(oci_archive(layout), types.ImageStore(extra_references=[ANY_NAME], platforms=[AMD64]))
    assert own.digest in blobs(store)
    assert not {other.digest, manifests[1]["digest"]} & blobs(store)

    await import_(oci_archive(layout))
    assert {own.digest, other.digest} < blobs(store)


async def test_an_archive_for_other_platforms_says_which(store, layout, import_):
    layout.tag("app:1", layout.manifest([layout.layer({"a": b"1"})], platform="linux/s390x"))
    with refused(grpc.StatusCode.NOT_FOUND, "nothing for linux/amd64; it has: linux/s390x"):
        await import_(oci_archive(layout), types.ImageStore(extra_references=[ANY_NAME], platforms=[AMD64]))
    assert await names(store) == []


async def test_a_manifest_that_the_archive_lacks_is_named(layout, import_):
    here = layout.manifest([layout.layer({"a": b"1"})])
    lacking = layout.manifest([], platform="linux/s390x")
    layout.index("app:1", [here, lacking])
    layout.path(lacking["digest"]).unlink()
    with refused(grpc.StatusCode.NOT_FOUND, f"manifest {lacking['digest']} for linux/s390x is not in it"):
        await import_(oci_archive(layout))
    await import_(oci_archive(layout), types.ImageStore(extra_references=[ANY_NAME], platforms=[AMD64]))


async def test_what_the_archive_lacks_may_be_in_the_store(store, layout, import_):
    layer = layout.layer({"a": b"1"})
    layout.image("app:1", [layer])
    whole = oci_archive(layout)
    layout.path(layer.digest).unlink()
    partial = oci_archive(layout)
    with refused(grpc.StatusCode.NOT_FOUND, f"blob {layer.digest} is not in it"):
        await import_(partial)
    await import_(whole)
    await import_(partial)
    assert await names(store) == ["app:1"]


async def test_the_index_of_the_archive_is_kept_under_a_name(store, layout, import_):
    one = layout.image("app:1", [layout.layer({"a": b"1"})])
    index = (layout.root / "index.json").read_bytes()
    await import_(oci_archive(layout), types.ImageStore(name="all:1"))
    assert await names(store) == ["all:1"]
    target = (await store.db.read(images.get, "default", "all:1")).target
    assert (target.digest, target.media_type) == (digest_of(index), manifests.OCI_INDEX)
    held = store.content.info("default", target.digest).labels
    assert held == {"containerd.io/gc.ref.content.m.0": one["digest"]}


async def test_a_docker_archive_becomes_images(store, import_):
    archive = DockerArchive()
    tars = [tar_of({"a": b"1"}), tar_of({"b": b"2"})]
    first, second = archive.layer(1, tars[0]), archive.layer(2, tars[1])
    again = archive.link(f"{3:064x}/layer.tar", f"../{1:064x}/layer.tar")
    hard = archive.link(f"{4:064x}/layer.tar", second, tarfile.LNKTYPE)
    config = archive.image(["app:1", "localhost:5000/app:2"], [first, second], tars)
    archive.image(["linked:1"], [again, hard], tars)
    await import_(archive.build(), types.ImageStore(extra_references=[ANY_NAME], unpacks=[UNPACK], platforms=[AMD64]))

    assert await names(store) == [
        "docker.io/library/app:1",
        "docker.io/library/linked:1",
        "localhost:5000/app:2",
    ]
    chain = manifests.chain_ids([digest_of(tar) for tar in tars])
    assert store.files(chain[-1], "default") == {"a": b"1", "b": b"2"}
    target = (await store.db.read(images.get, "default", "docker.io/library/app:1")).target
    document = json.loads(store.content.read("default", target.digest))
    assert document["mediaType"] == target.media_type == manifests.DOCKER_MANIFEST
    assert document["config"]["digest"] == digest_of(config)
    assert [layer["digest"] for layer in document["layers"]] == [digest_of(tar) for tar in tars]
    assert {layer["mediaType"] for layer in document["layers"]} == {manifests.DOCKER_LAYER}
    assert store.ingests("default") == {}


async def test_compressed_layers_of_a_docker_archive_are_seen_as_such(store, import_):
    archive = DockerArchive()
    tars = [tar_of({"a": b"1"}), tar_of({"b": b"2"})]
    layers = [archive.layer(1, gzip.compress(tars[0])), archive.layer(2, zstandard.compress(tars[1]))]
    archive.image(["app:1"], layers, tars)
    await import_(archive.build(), types.ImageStore(extra_references=[ANY_NAME], unpacks=[UNPACK]))
    target = (await store.db.read(images.get, "default", "docker.io/library/app:1")).target
    document = json.loads(store.content.read("default", target.digest))
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in document["layers"]]
    assert kinds == ["gzip", "zstd"]


async def test_plain_layers_of_a_docker_archive_are_compressed_if_the_client_wants_it(store, import_):
    archive = DockerArchive()
    tar = tar_of({"a": b"1" * 100_000})
    archive.image(["app:1"], [archive.layer(1, tar)], [tar])
    await import_(archive.build(), types.ImageStore(extra_references=[ANY_NAME], unpacks=[UNPACK]), compress=True)
    target = (await store.db.read(images.get, "default", "docker.io/library/app:1")).target
    [layer] = json.loads(store.content.read("default", target.digest))["layers"]
    assert layer["mediaType"] == f"{manifests.DOCKER_LAYER}.gzip"
    assert gzip.decompress(store.content.read("default", layer["digest"])) == tar
    assert digest_of(tar) not in blobs(store)
    assert store.files(digest_of(tar), "default") == {"a": b"1" * 100_000}


def never(*_: object) -> None:
    raise AssertionError("a blob is read again")


@pytest.mark.parametrize("store", ["overlayfs"], indirect=True)
@pytest.mark.parametrize("pack_layer", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
async def test_layers_become_files_while_they_arrive(store, import_, monkeypatch, pack_layer):
    archive = DockerArchive()
    tars = [tar_of({"a": random.randbytes(300_000), "b": b""}), tar_of({"b": random.randbytes(700_000)})]
    archive.image(["app:1"], [archive.layer(n, pack_layer(tar)) for n, tar in enumerate(tars)], tars)
    for name in ("received", "apply"):
        monkeypatch.setattr(Pool, name, never)
    unpack = types.UnpackConfiguration(platform=AMD64, snapshotter="overlayfs")
    wanted = types.ImageStore(extra_references=[ANY_NAME], unpacks=[unpack])
    await import_(archive.build(), wanted)
    top = manifests.chain_ids([digest_of(tar) for tar in tars])[-1]
    assert sorted((name, len(data)) for name, data in store.files(top, "default").items()) == [
        ("a", 300_000),
        ("b", 700_000),
    ]
    assert (store.ingests("default"), store.pool.busy) == ({}, 0)
    await import_(archive.build(), wanted)  # what is there is received in vain
    assert (store.ingests("default"), store.pool.busy) == ({}, 0)


@pytest.mark.parametrize("store", ["overlayfs"], indirect=True)
async def test_what_was_received_of_another_compression_than_the_manifest_says_does_not_count(store, layout, import_):
    layer = layout.layer({"a": random.randbytes(300_000)}, compression="")
    layer.descriptor["mediaType"] += "+gzip"
    layout.image("app:1", [layer])
    unpack = types.UnpackConfiguration(platform=AMD64, snapshotter="overlayfs")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "holds data with compression 'none'"):
        await import_(oci_archive(layout), types.ImageStore(extra_references=[ANY_NAME], unpacks=[unpack]))
    assert (await names(store), store.ingests("default"), store.pool.busy) == ([], {}, 0)


@pytest.mark.parametrize("store", ["overlayfs"], indirect=True)
async def test_an_import_that_is_cancelled_ends_who_receives(store, layout, channel, transfer):
    layout.image("app:1", [layout.layer({"a": random.randbytes(600_000)}, compression="")])
    stream = await opened(channel, "archive")
    unpack = types.UnpackConfiguration(platform=AMD64, snapshotter="overlayfs")
    wanted = types.ImageStore(extra_references=[ANY_NAME], unpacks=[unpack])
    importing = asyncio.create_task(transfer(types.ImageImportStream(stream="archive"), wanted))
    await send_bytes(stream, oci_archive(layout)[:300_000], end=False)
    async with asyncio.timeout(20):
        while not store.pool.busy:  # noqa: ASYNC110 - the daemon's thread gets there later
            await asyncio.sleep(0.005)
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
        while store.pool.busy or store.ingests("default"):  # noqa: ASYNC110 - the server hears of it later
            await asyncio.sleep(0.005)
    stream.cancel()


async def test_images_without_a_name_get_one_by_digest(store, layout, import_):
    layout.image("app:1", [layout.layer({"a": b"1"})])
    archive = DockerArchive()
    tar = tar_of({"a": b"1"})
    archive.image(None, [archive.layer(1, tar)], [tar])
    by_digest = types.ImageReference(
        name="import", is_prefix=True, allow_overwrite=True, add_digest=True, skip_named_digest=True
    )
    await import_(archive.build(), types.ImageStore(extra_references=[by_digest]))
    await import_(oci_archive(layout), types.ImageStore(extra_references=[by_digest]))
    unnamed, named = sorted(await names(store), reverse=True)
    assert named == "app:1"
    assert unnamed.startswith("import@sha256:")


def truncated(data, size):
    return data[:size]


def with_index(layout, data):
    (layout.root / "index.json").write_bytes(data)
    return oci_archive(layout)


def with_layout(layout, data):
    (layout.root / "oci-layout").write_bytes(data)
    return oci_archive(layout)


def with_wrong_blob(layout):
    path = next((layout.root / "blobs/sha256").iterdir())
    path.write_bytes(b"other bytes")
    return oci_archive(layout)


def sparse(_):
    member = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    return tar_of({"x": member})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda layout: b"no tar at all" * 100, "image archive: tar: "),
        (lambda layout: b"", "neither oci-layout nor manifest.json"),
        (lambda layout: tar_of({"etc/passwd": b"x"}), "neither oci-layout nor manifest.json"),
        (lambda layout: truncated(oci_archive(layout), 700), "truncated"),
        (lambda layout: truncated(gzip.compress(oci_archive(layout)), 300), "truncated"),
        (lambda layout: with_index(layout, b"{"), "truncated"),
        (lambda layout: with_index(layout, b"[" * 100_000), "Expected `object`, got `array`"),
        (lambda layout: with_index(layout, b" " * (4 << 20) + b"{}"), "index.json has 4194306 bytes"),
        (lambda layout: with_layout(layout, b'{"imageLayoutVersion":"2.0.0"}'), "layout version '2.0.0'"),
        (lambda layout: with_layout(layout, b"[]"), "oci-layout"),
        (with_wrong_blob, "is damaged: its content has digest"),
        (sparse, "is a sparse file"),
        (lambda layout: DockerArchive().build(manifest=b'[{"Config":"x"}]'), "image config 'x' is not in it"),
        (lambda layout: DockerArchive().build(manifest=b"{}"), "manifest.json"),
        (lambda layout: DockerArchive().build(manifest=b"[1]"), "manifest.json"),
    ],
)
async def test_an_archive_that_is_wrong_says_how_and_leaves_nothing(store, layout, import_, spoil, why):
    layout.image("app:1", [layout.layer({"a": b"1"})])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, why):
        await import_(spoil(layout))
    assert await names(store) == []
    assert blobs(store) == set()
    assert store.ingests("default") == {}
    assert store.left_over("default") == []


async def test_a_docker_archive_whose_links_go_round_in_circles_is_refused(store, import_):
    archive = DockerArchive()
    archive.link("a", "b")
    archive.link("b", "a")
    archive.image(["app:1"], ["a"], [b""])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "layer 'a' is not in it"):
        await import_(archive.build())
    assert store.ingests("default") == {}


async def test_layers_that_are_not_those_of_the_config_are_refused(store, import_):
    archive = DockerArchive()
    tar = tar_of({"a": b"1"})
    archive.image(["app:1"], [archive.layer(1, tar)], [tar_of({"a": b"2"})])
    wanted = types.ImageStore(extra_references=[ANY_NAME], unpacks=[UNPACK])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "but the image's config says"):
        await import_(archive.build(), wanted)
    assert await names(store) == []
    assert store.left_over("default") == []


async def test_a_client_that_cancels_leaves_nothing(store, layout, channel, transfer):
    layout.image("app:1", [layout.layer({"a": b"1" * 300_000}, compression="")])
    stream = await opened(channel, "archive")
    source = types.ImageImportStream(stream="archive")
    importing = asyncio.create_task(transfer(source, types.ImageStore(extra_references=[ANY_NAME])))
    await send_bytes(stream, oci_archive(layout)[:300_000], end=False)
    while not store.ingests("default"):  # noqa: ASYNC110 - the daemon's thread gets there later
        await asyncio.sleep(0.005)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    while store.left_over("default") or store.ingests("default"):  # noqa: ASYNC110 - the server hears of it later
        await asyncio.sleep(0.005)
    assert blobs(store) == set()
    stream.cancel()


async def test_a_client_that_goes_in_the_middle_is_a_truncated_archive(store, layout, channel, transfer):
    layout.image("app:1", [layout.layer({"a": b"1" * 300_000}, compression="")])
    stream = await opened(channel, "archive")
    importing = asyncio.create_task(
        transfer(types.ImageImportStream(stream="archive"), types.ImageStore(extra_references=[ANY_NAME]))
    )
    await send_bytes(stream, oci_archive(layout)[:300_000])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "truncated"):
        await importing
    assert store.ingests("default") == {}


async def test_more_than_the_window_allows_is_refused(store, channel, transfer):
    stream = await opened(channel, "archive")
    importing = asyncio.create_task(
        transfer(types.ImageImportStream(stream="archive"), types.ImageStore(extra_references=[ANY_NAME]))
    )
    await stream.read()
    await stream.write(to_any(types.Data(data=bytes(3 << 20))))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "more than its window allows"):
        await importing


async def test_a_full_disk_is_said_and_nothing_is_left(tmp_path, store, layout, import_, small_disk):
    store.content.store._ingests = small_disk
    layout.image("app:1", [layout.layer({"a": bytes(8 << 20)}, compression="")])
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "No space left"):
        await import_(oci_archive(layout))
    assert store.ingests("default") == {}
    assert list(small_disk.iterdir()) == []
