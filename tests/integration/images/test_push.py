"""Pushes into Debian's docker-registry, read back by skopeo and by ourselves."""

import json
import random
import subprocess
import urllib.request

import pytest
from yarl import URL

from runtimed.errors import NotFound, Unavailable
from runtimed.images.progress import Progress
from runtimed.images.pull import Puller
from runtimed.images.push import Pusher
from runtimed.metadata import images, leases
from runtimed.metadata.images import Image
from runtimed.oci import platform as platforms
from runtimed.oci.reference import parse
from runtimed.registry import pusher, referrers
from runtimed.registry.client import RegistryClient, Sent
from runtimed.registry.host import HostClient
from tests.fakes.registry import FakeRegistry, serving
from tests.images.layouts import OCI_MANIFEST, Layer
from tests.integration.images.conftest import IMPATIENT

pytestmark = pytest.mark.root


@pytest.fixture
def push(store):
    async def push(name, reference, wanted=(), heard=None, **options):
        worker = Pusher(store.content, store.db, **options)
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


def skopeo_push_schema2(layout, reference):
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--format", "v2s2"]
    subprocess.run([*copy, f"oci:{layout.root}:1", f"docker://{reference}"], check=True, timeout=60)


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


# -- kinds of images


async def test_an_image_in_dockers_format_stays_in_it(store, layout, push, registry):
    layout.image("1", [layout.layer({"a": b"1"})])
    source = f"{registry.host}/push/schema2:1"
    skopeo_push_schema2(layout, source)
    await store.pull(source)
    await push(source, f"{registry.host}/push/schema2-again:1")
    assert skopeo_raw(f"{registry.host}/push/schema2-again:1") == skopeo_raw(source)
    assert b"distribution.manifest.v2" in skopeo_raw(source)


async def test_a_manifest_of_almost_4_mib_goes_there_and_back(store, layout, push, registry):
    layout.image("1", [layout.layer({"a": b"1"})], annotations={"x": "y" * ((4 << 20) - 2000)})
    name = await pulled(store, layout)
    target = f"{registry.host}/push/large:1"
    root = await push(name, target)
    assert (4 << 20) - 2000 < root.size < 4 << 20
    assert (await store.pull(target)).image.target.digest == root.digest


async def test_of_an_artifact_its_subject_lists_it(store, layout, push, registry):
    """Debian's registry does not know the list of referrers: the tag that stands for it says it."""
    image = layout.image("1", [layout.layer({"a": b"1"})])
    name, repository = await pulled(store, layout), f"{registry.host}/push/subject"
    await push(name, f"{repository}:1")
    subject = {key: image[key] for key in ("mediaType", "digest", "size")}
    for tag, kind in (("sbom", "text/spdx"), ("signature", "application/x-signature")):
        document = {
            **{"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "subject": subject},
            **{"config": layout.blob(b"{}", "application/vnd.oci.empty.v1+json")},
            **{"layers": [layout.blob(tag.encode(), kind)], "annotations": {"made.by": tag}},
        }
        layout.tag("1", layout.json(document, OCI_MANIFEST))
        for _ in range(2):  # the second time it is there, and in the list
            await push(await pulled(store, layout), f"{repository}:{tag}")
    async with RegistryClient(parse(f"{repository}:1")) as client:
        found = await referrers.listed(client, image["digest"])
        assert [(one.artifact_type, one.annotations) for one in found] == [
            ("text/spdx", {"made.by": "sbom"}),
            ("application/x-signature", {"made.by": "signature"}),
        ]
        assert len(await referrers.listed(client, image["digest"], "text/spdx")) == 1
    assert (await store.pull(f"{repository}:sbom")).image.target.digest == found[0].digest


async def test_a_foreign_layer_is_taken_like_another_where_that_is_allowed(store, layout, push, registry):
    made = layout.layer({"a": b"1"})
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layout.image("1", [Layer({**made.descriptor, "mediaType": foreign}, made.diff_id)])
    store.puller = Puller(
        store.content, store.db, {store.snapshots.name: store.snapshots}, store.pool, foreign_layers=True
    )
    with serving(layout.root, "app") as source:
        name = f"{source.host}/app:1"
        await store.pull(name)
    assert store.files(made.diff_id) == {"a": b"1"}
    target = f"{registry.host}/push/foreign:1"
    await push(name, target, foreign_layers=True)
    assert registry.blob(made.digest).exists()


async def test_a_blob_too_large_for_one_request_goes_in_chunks(store, layout, push, registry, monkeypatch):
    """As behind a proxy with a limit: the first upload, of a whole blob, is refused with 413."""
    monkeypatch.setattr(pusher, "_CHUNK", 100_000)
    layer = layout.layer({"a": random.Random(1).randbytes(350_000)}, compression="")
    layout.image("1", [layer])
    name = await pulled(store, layout)
    real = HostClient.send
    limited: list[URL] = []

    async def send(self, method, url, **options):
        if method == "PUT" and options.get("length", 0) > 100_000:
            limited.append(url)
            return Sent(413, {}, url)
        return await real(self, method, url, **options)

    monkeypatch.setattr(HostClient, "send", send)
    await push(name, f"{registry.host}/push/chunks:1")
    assert len(limited) == 1
    assert registry.blob(layer.digest).read_bytes() == layout.path(layer.digest).read_bytes()


async def test_a_manifest_that_is_refused_for_the_moment_is_sent_again(store, layout, push, registry, monkeypatch):
    layout.image("1", [layout.layer({"a": b"1"})])
    name = await pulled(store, layout)
    real = HostClient.send
    refused: list[URL] = []

    async def send(self, method, url, **options):
        if method == "PUT" and url.path.endswith("/manifests/1") and len(refused) < 2:
            refused.append(url)
            raise Unavailable("busy")
        return await real(self, method, url, **options)

    monkeypatch.setattr(HostClient, "send", send)
    await push(name, f"{registry.host}/push/busy:1")
    assert len(refused) == 2
    assert skopeo_raw(f"{registry.host}/push/busy:1")
