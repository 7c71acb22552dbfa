"""Pushes into Debian's docker-registry, read back by skopeo and by ourselves."""

import json
import subprocess
import urllib.request

import pytest

from runtimed.errors import NotFound, Unavailable
from runtimed.images.progress import Progress
from runtimed.images.push import Pusher
from runtimed.metadata import images, leases
from runtimed.metadata.images import Image
from runtimed.oci import platform as platforms
from runtimed.oci.reference import parse
from runtimed.registry import pusher
from runtimed.registry.client import RegistryClient
from tests.fakes.registry import FakeRegistry, serving
from tests.integration.images.conftest import IMPATIENT

pytestmark = pytest.mark.root


@pytest.fixture
def push(store):
    async def push(name, reference, wanted=(), heard=None):
        worker = Pusher(store.content, store.db)
        target = parse(reference)
        mounts = await worker.mounts("ns", name, target)
        client = RegistryClient(target, patience=IMPATIENT, push_scopes=pusher.scopes(target.repository, mounts))
        report = (lambda _: None) if heard is None else heard.append
        return await worker.push("ns", name, client, [platforms.parse(one) for one in wanted], report)

    return push


def skopeo_raw(reference):
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def skopeo_copy(reference, directory):
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--all", "--src-tls-verify=false"]
    subprocess.run([*copy, f"docker://{reference}", f"oci:{directory}:1"], check=True, timeout=60)


def repositories(registry):
    with urllib.request.urlopen(f"http://{registry.host}/v2/_catalog?n=1000") as answer:
        return json.loads(answer.read())["repositories"]


def multi(layout):
    """Two images for two platforms under one name, with a layer in common."""
    shared = layout.layer({"shared": b"x" * 300_000})
    mine = layout.manifest([shared, layout.layer({"a": b"1"}, "zstd")])
    other = layout.manifest([shared], platform="linux/s390x")
    return layout.index("1", [mine, other])


async def pulled(store, layout, **options):
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        await store.pull(name, unpack=False, **options)
    return name


async def test_what_is_pushed_is_read_back_bit_for_bit(store, layout, push, registry, tmp_path):
    index = multi(layout)
    name = await pulled(store, layout, platforms=())
    target = f"{registry.host}/push/whole:1"
    heard: list[Progress] = []
    assert (await push(name, target, heard=heard)).digest == index["digest"]
    assert skopeo_raw(target) == store.content.read("ns", index["digest"])
    skopeo_copy(target, tmp_path / "back")
    blobs = {path.name: path.read_bytes() for path in (layout.root / "blobs/sha256").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "back/blobs/sha256").iterdir()} == blobs
    events = [one.event for one in heard]
    assert events[0] == f"Pushing to OCI Registry ({target})"
    assert events[-1] == f"Completed push to OCI Registry ({target})"
    assert "uploading" in events
    assert store.left_over("ns") == []


async def test_a_second_push_sends_nothing(store, layout, push, registry):
    multi(layout)
    name = await pulled(store, layout, platforms=())
    target = f"{registry.host}/push/again:1"
    await push(name, target)
    heard: list[Progress] = []
    await push(name, target, heard=heard)
    assert {one.event for one in heard if one.descriptor and one.name.startswith(("layer", "index", "manifest"))} == {
        "waiting",
        "already exists",
    }


async def test_blobs_are_mounted_from_the_repository_they_came_from(store, layout, push, registry):
    layout.image("1", [layout.layer({"a": b"mounted" * 1000})])
    source = registry.push(layout.root, "push/from:1", source="1")
    await store.pull(source, unpack=False)
    heard: list[Progress] = []
    await push(source, f"{registry.host}/push/to:1", heard=heard)
    assert "uploading" not in {one.event for one in heard}
    assert skopeo_raw(f"{registry.host}/push/to:1") == skopeo_raw(source)


async def test_of_one_platform_its_manifest_is_pushed_and_of_several_an_index_of_those(store, layout, push, registry):
    multi(layout)
    name = await pulled(store, layout, platforms=())
    root = await push(name, f"{registry.host}/push/one:1", ["linux/s390x"])
    assert "layers" in json.loads(skopeo_raw(f"{registry.host}/push/one:1"))
    assert root.media_type == "application/vnd.oci.image.manifest.v1+json"
    await push(name, f"{registry.host}/push/two:1", ["linux/s390x", "linux/amd64"])
    assert len(json.loads(skopeo_raw(f"{registry.host}/push/two:1"))["manifests"]) == 2


async def test_an_index_with_platforms_that_are_not_here_is_refused_before_anything_is_sent(
    store, layout, push, registry
):
    multi(layout)
    name = await pulled(store, layout)
    with pytest.raises(NotFound, match=r"linux/s390x is not here; pull it for all platforms, or push only some"):
        await push(name, f"{registry.host}/push/part:1")
    assert "push/part" not in repositories(registry)
    await push(name, f"{registry.host}/push/part:1", ["linux/amd64"])


async def test_a_registry_that_fails_is_named_with_the_image(store, layout, push):
    multi(layout)
    name = await pulled(store, layout, platforms=())
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/x:1: cannot connect"):
        await push(name, "127.0.0.1:1/x:1")
    with FakeRegistry() as fake:
        fake.fail("uploads", method="POST", status=503, times=99)
        with pytest.raises(Unavailable, match="the registry failed with 503"):
            await push(name, f"{fake.host}/x:1")
    assert store.left_over("ns") == []


async def test_an_image_that_is_not_here_is_not_found(store, push, registry):
    with pytest.raises(NotFound, match="nosuch"):
        await push("nosuch", f"{registry.host}/x:1")


async def test_while_it_runs_a_lease_holds_the_image(store, layout, push):
    layout.image("1", [layout.layer({"a": b"1"})])
    name = await pulled(store, layout)
    image: Image = await store.db.read(images.get, "ns", name)
    with FakeRegistry() as fake:
        held: list[str] = []

        def look(progress):
            with store.db.reading() as tx:
                for lease in leases.list(tx, "ns"):
                    held.extend(one.id for one in leases.resources(tx, "ns", lease.id))

        worker = Pusher(store.content, store.db)
        client = RegistryClient(parse(f"{fake.host}/x:1"), patience=IMPATIENT)
        fake.fail("uploads", method="POST", status=403, times=99)
        with pytest.raises(Exception, match="access denied"):
            await worker.push("ns", name, client, [], look)
    assert image.target.digest in held
