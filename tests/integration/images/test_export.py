import asyncio
import json
import subprocess
from itertools import count

import grpc
import pytest

from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.metadata import leases
from runtimed.services.streaming import to_any
from tests.fakes.registry import serving
from tests.fakes.streams import opened, receive_bytes, send_bytes
from tests.images.archives import members_of, oci_archive
from tests.images.layouts import digest_of

pytestmark = pytest.mark.root

AMD64 = types_pb2.Platform(os="linux", architecture="amd64")
S390X = types_pb2.Platform(os="linux", architecture="s390x")
ANY_NAME = types.ImageReference(name="imported", is_prefix=True, allow_overwrite=True)


@pytest.fixture
def export(channel, transfer):
    numbers = count()

    async def export(*names, **options):
        id = f"export-{next(numbers)}"
        receiving = asyncio.create_task(receive_bytes(await opened(channel, id)))
        first, *others = names
        store = types.ImageStore(name=first, extra_references=[types.ImageReference(name=name) for name in others])
        try:
            await transfer(store, types.ImageExportStream(stream=id, **options))
        except BaseException:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            raise
        return await receiving

    return export


@pytest.fixture
def imported(channel, transfer):
    async def imported(layout):
        stream = await opened(channel, "import")
        sending = asyncio.create_task(send_bytes(stream, oci_archive(layout)))
        await transfer(types.ImageImportStream(stream="import"), types.ImageStore(extra_references=[ANY_NAME]))
        await sending
        stream.cancel()

    return imported


def refused(code, match):
    return pytest.raises(grpc.aio.AioRpcError, match=f"(?s){code.name}.*{match}")


async def test_an_archive_has_the_image_for_oci_and_for_docker(store, layout, imported, export):
    layer = layout.layer({"a": b"1" * 400_000}, compression="")
    root = layout.image("docker.io/library/app:1", [layer])
    await imported(layout)
    members = members_of(await export("docker.io/library/app:1"))
    config = json.loads(layout.path(root["digest"]).read_bytes())["config"]["digest"]

    def path(digest):
        return "blobs/" + digest.replace(":", "/")

    blobs = {path(digest) for digest in (root["digest"], config, layer.digest)}
    assert list(members) == sorted({"blobs", "blobs/sha256", "index.json", "manifest.json", "oci-layout", *blobs})
    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(members["index.json"]) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                **root,
                "annotations": {
                    "io.containerd.image.name": "docker.io/library/app:1",
                    "org.opencontainers.image.ref.name": "1",
                },
            }
        ],
    }
    assert json.loads(members["manifest.json"]) == [
        {"Config": path(config), "RepoTags": ["app:1"], "Layers": [path(layer.digest)]}
    ]
    assert all(digest_of(members[name])[7:] == name.rpartition("/")[2] for name in blobs)
    async with asyncio.timeout(10):
        while await store.db.read(leases.list, "default"):  # noqa: ASYNC110 - the answer comes before the lease goes
            await asyncio.sleep(0.005)


async def test_the_same_images_are_the_same_bytes(layout, imported, export):
    layout.image("app:1", [layout.layer({"a": b"1"}), layout.layer({"b": b"2"}, compression="zstd")])
    layout.image("app:2", [layout.layer({"a": b"1"})])
    await imported(layout)
    assert await export("app:1", "app:2") == await export("app:1", "app:2")


async def test_names_of_one_image_share_it(layout, imported, export):
    root = layout.image("localhost:5000/app:1", [layout.layer({"a": b"1"})])
    layout.tag("odd name", root)
    await imported(layout)
    members = members_of(await export("localhost:5000/app:1", "imported:odd name"))
    entries = json.loads(members["index.json"])["manifests"]
    assert [entry["digest"] for entry in entries] == [root["digest"]] * 2
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries]
    assert names == ["1", "imported:odd name"]  # what is no reference stays as it is
    [docker] = json.loads(members["manifest.json"])
    assert docker["RepoTags"] == ["localhost:5000/app:1"]


@pytest.mark.parametrize(
    ("options", "has_own", "has_other", "docker_gets_own"),
    [
        ({"platforms": [AMD64]}, True, False, True),
        ({"platforms": [S390X]}, False, True, False),
        ({"platforms": [AMD64], "all_platforms": True}, True, True, True),
        ({"platforms": [S390X], "all_platforms": True}, True, True, False),
    ],
)
async def test_of_several_platforms(layout, imported, export, options, has_own, has_other, docker_gets_own):
    own, other = layout.layer({"a": b"1"}), layout.layer({"a": b"2"})
    layout.index("app:1", [layout.manifest([own]), layout.manifest([other], platform="linux/s390x")])
    await imported(layout)
    members = members_of(await export("app:1", **options))
    assert (f"blobs/sha256/{own.digest[7:]}" in members) is has_own
    assert (f"blobs/sha256/{other.digest[7:]}" in members) is has_other
    [docker] = json.loads(members["manifest.json"])
    assert (docker["Layers"] == [f"blobs/sha256/{own.digest[7:]}"]) is docker_gets_own


async def test_without_dockers_manifest(layout, imported, export):
    layout.image("app:1", [layout.layer({"a": b"1"})])
    await imported(layout)
    assert "manifest.json" not in members_of(await export("app:1", skip_compatibility_manifest=True))


async def test_where_it_was_pulled_from_is_in_the_index(store, layout, transfer, export):
    layout.image("1", [layout.layer({"a": b"1"})])
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        await transfer(types.OCIRegistry(reference=name), types.ImageStore(name=name))
    [entry] = json.loads(members_of(await export(name))["index.json"])["manifests"]
    assert entry["annotations"] == {
        f"containerd.io/distribution.source.{registry.host}": "app",
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": "1",
    }


async def test_skopeo_reads_what_is_exported(tmp_path, layout, imported, export):
    layout.image("docker.io/library/app:1", [layout.layer({"a": b"1"}), layout.layer({"b": b"2"})])
    await imported(layout)
    (tmp_path / "archive.tar").write_bytes(await export("docker.io/library/app:1"))
    for source in ("oci-archive:archive.tar:1", "docker-archive:archive.tar:app:1"):
        command = ["skopeo", "--insecure-policy", "copy", source, f"dir:{tmp_path}/{source.partition('-')[0]}"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("names", "options", "code", "why"),
    [
        (["nosuch"], {}, grpc.StatusCode.NOT_FOUND, "nosuch"),
        ([""], {}, grpc.StatusCode.INVALID_ARGUMENT, "no image name"),
        (["app:1"], {"platforms": [S390X]}, grpc.StatusCode.NOT_FOUND, "nothing for linux/s390x; it has: linux/amd64"),
        (["app:1"], {"all_platforms": True}, grpc.StatusCode.NOT_FOUND, "for linux/amd64/v3 is not here; export it"),
    ],
)
async def test_what_cannot_be_exported_says_why(store, layout, transfer, export, names, options, code, why):
    here = layout.manifest([layout.layer({"a": b"1"})])
    layout.index("1", [here, layout.manifest([], platform="linux/amd64/v3")])
    with serving(layout.root, "app") as registry:
        wanted = types.ImageStore(name="app:1", platforms=[AMD64])
        await transfer(types.OCIRegistry(reference=f"{registry.host}/app:1"), wanted)
    with refused(code, why):
        await export(*names, **options)


async def test_a_damaged_blob_ends_the_export(store, layout, imported, export):
    layer = layout.layer({"a": b"1"})
    layout.image("app:1", [layer])
    await imported(layout)
    path = store.content.path("default", layer.digest)
    path.chmod(0o600)
    path.write_bytes(bytes(layer.descriptor["size"]))
    with refused(grpc.StatusCode.DATA_LOSS, layer.digest):
        await export("app:1")


async def test_a_client_that_does_not_read_holds_the_export_up_until_it_goes(
    store, layout, imported, channel, transfer
):
    layout.image("app:1", [layout.layer({"a": bytes(2 << 20)}, compression="")])
    await imported(layout)
    stream = await opened(channel, "slow")
    exporting = asyncio.create_task(transfer(types.ImageStore(name="app:1"), types.ImageExportStream(stream="slow")))
    await stream.write(to_any(types.WindowUpdate(update=10)))
    packed = await stream.read()
    data = types.Data.FromString(packed.value).data
    assert len(data) == 10
    stream.cancel()
    with refused(grpc.StatusCode.UNAVAILABLE, "its reader has gone"):
        await exporting


async def test_an_export_that_is_cancelled_ends(store, layout, imported, channel, transfer):
    layout.image("app:1", [layout.layer({"a": b"1"})])
    await imported(layout)
    stream = await opened(channel, "slow")
    exporting = asyncio.create_task(transfer(types.ImageStore(name="app:1"), types.ImageExportStream(stream="slow")))
    await stream.write(to_any(types.WindowUpdate(update=10)))
    await stream.read()
    exporting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exporting
    async with asyncio.timeout(10):
        while await store.db.read(leases.list, "default"):  # noqa: ASYNC110 - the server hears of it later
            await asyncio.sleep(0.005)
    stream.cancel()


@pytest.mark.parametrize(
    ("source", "destination"),
    [(types.ReadStream, types.WriteStream), (types.ImageImportStream, types.ImageExportStream)],
)
async def test_a_stream_to_a_stream_is_an_echo(channel, transfer, source, destination):
    sent = bytes(range(256)) * 20_000
    incoming, outgoing = await opened(channel, "in"), await opened(channel, "out")
    sending = asyncio.create_task(send_bytes(incoming, sent))
    receiving = asyncio.create_task(receive_bytes(outgoing))
    await transfer(source(stream="in"), destination(stream="out"))
    await sending
    assert await receiving == sent
