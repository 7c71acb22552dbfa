import asyncio

import grpc
import pytest

from runtimed.api import transfer_types_pb2 as types
from runtimed.api import types_pb2
from runtimed.metadata import images
from runtimed.services.streaming import to_any, unpack
from tests.fakes.registry import serving
from tests.fakes.streams import opened

pytestmark = pytest.mark.root

AMD64 = types_pb2.Platform(os="linux", architecture="amd64")
UNPACK = types.UnpackConfiguration(platform=AMD64, snapshotter="native")


async def test_a_transfer_pulls_unpacks_names_and_tells(store, layout, channel, transfer, events):
    layer = layout.layer({"a": b"1"})
    layout.index("1", [layout.manifest([layer]), layout.manifest([], platform="linux/s390x")])
    progress = await opened(channel, "progress")
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        destination = types.ImageStore(name=name, labels={"k": "v"}, platforms=[AMD64], unpacks=[UNPACK])
        await transfer(types.OCIRegistry(reference=name), destination, "progress")
        heard = []
        while (packed := await progress.read()) is not grpc.aio.EOF:
            one = types.Progress()
            unpack(packed, one)
            heard.append(one)

        await transfer(types.OCIRegistry(reference=name), destination)

    assert store.files(layer.diff_id, "default") == {"a": b"1"}
    image = await store.db.read(images.get, "default", name)
    assert dict(image.labels) == {"k": "v"}
    assert [one.event for one in heard][0] == f"Resolving from OCI Registry ({name})"
    assert [one.event for one in heard][-1] == f"Completed pull from OCI Registry ({name})"
    [complete] = [one for one in heard if one.event == "complete" and one.name == f"layer-{layer.digest}"]
    assert complete.progress == complete.total == complete.desc.size == layer.descriptor["size"]
    assert events.topics == ["/images/create", "/images/update"]
    assert events.published[0][0] == "default"
    assert events.published[0][2].name == name


async def test_without_unpacks_blobs_arrive_and_no_snapshot(store, layout, transfer):
    layer = layout.layer({"a": b"1"})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        extra = [types.ImageReference(name="other:1"), types.ImageReference(name="by-digest", add_digest=True)]
        extra.append(types.ImageReference(name="prefix", is_prefix=True))
        await transfer(types.OCIRegistry(reference=name), types.ImageStore(name=name, extra_references=extra))
    assert store.content.info("default", layer.digest)
    assert store.snapshots.list("default") == []
    names = {image.name for image in await store.db.read(images.list, "default")}
    digest = (await store.db.read(images.get, "default", name)).target.digest
    assert names == {name, "other:1", f"by-digest@{digest}"}


async def test_credentials_are_asked_for_over_the_auth_stream(layout, channel, transfer):
    layout.image("1", [])
    auth = await opened(channel, "auth")

    async def answer():
        question = types.AuthRequest()
        unpack(await auth.read(), question)
        await auth.write(to_any(types.AuthResponse(authType=types.CREDENTIALS, username="me", secret="x")))
        return question

    with serving(layout.root, "app", auth="basic", users={"me": "x"}) as registry:
        name = f"{registry.host}/app:1"
        answering = asyncio.create_task(answer())
        resolver = types.RegistryResolver(auth_stream="auth", headers={"X-Mine": "1"})
        await transfer(types.OCIRegistry(reference=name, resolver=resolver), types.ImageStore(name=name))
        question = await answering
        assert registry.requests("manifests")[0].headers["X-Mine"] == "1"
    assert (question.host, question.reference) == (registry.host, name)
    assert question.wwwauthenticate == ['Basic realm="fake"']


async def test_a_client_without_credentials_may_say_so(layout, channel, transfer):
    layout.image("1", [])
    auth = await opened(channel, "auth")
    with serving(layout.root, "app", auth="basic", users={"me": "x"}) as registry:
        name = f"{registry.host}/app:1"
        resolver = types.RegistryResolver(auth_stream="auth")
        pulling = asyncio.create_task(
            transfer(types.OCIRegistry(reference=name, resolver=resolver), types.ImageStore(name=name))
        )
        await auth.read()
        await auth.write(to_any(types.AuthResponse(authType=types.NONE)))
        with pytest.raises(grpc.aio.AioRpcError, match="give credentials") as caught:
            await pulling
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_embedded_images_come_through_the_same_door(store, transfer):
    name = "runtimed.io/hello:latest"
    await transfer(types.OCIRegistry(reference=name), types.ImageStore(name=name, platforms=[AMD64], unpacks=[UNPACK]))
    assert await store.db.read(images.get, "default", name)


@pytest.mark.parametrize(
    ("source", "destination", "code", "why"),
    [
        (
            types.OCIRegistry(reference="a"),
            types.OCIRegistry(reference="b"),
            grpc.StatusCode.UNIMPLEMENTED,
            "from containerd.types.transfer.OCIRegistry to containerd.types.transfer.OCIRegistry",
        ),
        (types.OCIRegistry(reference="x"), types.ImageStore(), grpc.StatusCode.INVALID_ARGUMENT, "no image name"),
        (types.OCIRegistry(reference="X"), types.ImageStore(name="x"), grpc.StatusCode.INVALID_ARGUMENT, "lower case"),
        (
            types.OCIRegistry(reference="127.0.0.1:1/x", resolver=types.RegistryResolver(default_scheme="gopher")),
            types.ImageStore(name="x"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "must be http or https",
        ),
        (
            types.OCIRegistry(reference="127.0.0.1:1/x"),
            types.ImageStore(name="x"),
            grpc.StatusCode.UNAVAILABLE,
            "127.0.0.1:1/x:latest: cannot connect",
        ),
        (
            types.OCIRegistry(reference="127.0.0.1:1/x"),
            types.ImageStore(name="x", unpacks=[types.UnpackConfiguration(snapshotter="zfs")]),
            grpc.StatusCode.NOT_FOUND,
            "snapshotter 'zfs'; there are: native",
        ),
    ],
)
async def test_a_request_that_cannot_be_done_says_why(transfer, source, destination, code, why):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await transfer(source, destination)
    assert caught.value.code() is code
    assert why in (caught.value.details() or "")


async def test_host_configuration_of_a_client_is_followed_and_its_mistakes_are_told(store, layout, transfer, tmp_path):
    layout.image("1", [layout.layer({"a": b"1"})])
    config = tmp_path / "hosts/team.example/hosts.toml"
    config.parent.mkdir(parents=True)
    resolver = types.RegistryResolver(host_dir=str(tmp_path / "hosts"))
    origin = types.OCIRegistry(reference="team.example/app:1", resolver=resolver)
    config.write_text('[host."https://mirror.example"]\ncapabilties = ["pull"]\n')
    with pytest.raises(grpc.aio.AioRpcError, match=r"team.example/hosts.toml:2: host.*capabilties: unknown key"):
        await transfer(origin, types.ImageStore(name="x"))
    with serving(layout.root, "app") as mirror:
        config.write_text(f'[host."http://{mirror.host}"]\n')
        await transfer(origin, types.ImageStore(name="x"))
        assert all(seen.path.endswith("?ns=team.example") for seen in mirror.requests())


async def test_a_client_that_cancels_leaves_nothing(store, layout, transfer):
    layer = layout.layer({"a": b"1"})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold(layer.digest)
        pulling = asyncio.create_task(transfer(types.OCIRegistry(reference=name), types.ImageStore(name=name)))
        await asyncio.to_thread(gate.reached.wait)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        while store.left_over("default") or store.ingests("default"):  # noqa: ASYNC110 - the server hears of it later
            await asyncio.sleep(0.005)
