import asyncio
import dataclasses
import json
import os
import random
import shutil

import msgspec
import pytest

from runtimed import labels
from runtimed.collector import Collector
from runtimed.config import Gc
from runtimed.content.local import LocalStore
from runtimed.embedded import images as embedded
from runtimed.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RuntimedError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from runtimed.events import EventBus
from runtimed.images import unpack
from runtimed.images.pull import Puller, recover
from runtimed.images.requests import Unpack
from runtimed.images.sources import LayoutSource
from runtimed.images.unpack import Layer as UnpackedLayer
from runtimed.images.unpack import Unpacker
from runtimed.metadata import images, leases
from runtimed.metadata.content import Content
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.reference import parse
from runtimed.registry.auth import Credentials
from tests.fakes.registry import make_certificate, serving
from tests.images.layouts import Layer, digest_of

pytestmark = [pytest.mark.root, pytest.mark.parametrize("store", ["native", "overlayfs"], indirect=True)]

BIG = bytes(range(256)) * 4000  # compresses to some KiB; with noise below, to a megabyte


def noise(size, seed):
    return random.Random(seed).randbytes(size)


def two_layers(layout, name="1"):
    layers = [layout.layer({"a": b"1", "b": b"old"}), layout.layer({"b": b"new", "c": BIG}, "zstd")]
    layout.image(name, layers)
    return layers, manifest.chain_ids([layer.diff_id for layer in layers])


async def test_an_image_is_pulled_unpacked_and_named(store, layout):
    layers, chain = two_layers(layout)
    with serving(layout.root, "team/app") as registry:
        name = f"{registry.host}/team/app:1"
        pulled = await store.pull(name, labels={"x": "y"})

    assert pulled.is_new
    assert (pulled.image.name, dict(pulled.image.labels)) == (name, {"x": "y"})
    assert store.files(chain[1]) == {"a": b"1", "b": b"new", "c": BIG}
    target = store.content.info("ns", pulled.image.target.digest)
    document = json.loads(store.content.read("ns", target.digest))
    source = {f"containerd.io/distribution.source.{registry.host}": "team/app"}
    assert target.labels == source | {
        "containerd.io/gc.ref.content.config": document["config"]["digest"],
        "containerd.io/gc.ref.content.l.0": layers[0].digest,
        "containerd.io/gc.ref.content.l.1": layers[1].digest,
    }
    assert store.content.info("ns", layers[0].digest).labels == source | {
        "containerd.io/uncompressed": layers[0].diff_id
    }
    config = store.content.info("ns", document["config"]["digest"])
    assert config.labels == source | {f"containerd.io/gc.ref.snapshot.{store.snapshots.name}": chain[1]}
    top = store.snapshots.stat("ns", chain[1])
    assert (top.parent, top.labels) == (chain[0], {"containerd.io/snapshot.ref": chain[1]})
    assert store.left_over() == []
    assert store.ingests() == {}


async def test_progress_tells_each_step_in_containerds_words(store, layout):
    layers, _ = two_layers(layout)
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        await store.pull(name)
        first = store.events()
        store.said.clear()
        await store.pull(name)
    assert first[0] == (f"Resolving from OCI Registry ({name})", "")
    assert ("fetching image content", name) in first
    layer = f"layer-{layers[0].digest}"
    steps = [event for event, subject in first if subject == layer and event != "downloading"]
    assert steps == ["waiting", "complete", "extracting", "extracted"]
    assert ("saved", name) in first
    assert first[-1] == (f"Completed pull from OCI Registry ({name})", "")
    assert ("already exists", layer) in store.events()
    assert ("extracting", layer) not in store.events()
    [parents] = {progress.parents for progress in store.said if progress.name == layer and progress.event == "waiting"}
    assert parents[0].startswith("manifest-sha256:")


async def test_pulling_again_fetches_nothing_but_what_the_tag_says(store, layout):
    two_layers(layout)
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
        before = len(registry.seen)
        again = await store.pull(f"{registry.host}/app:1")
        assert len(registry.seen) == before + 1
    assert not again.is_new


async def test_of_twenty_images_of_the_same_layers_only_the_first_brings_or_unpacks_any(store, layout):
    layers = [layout.layer({f"file-{number}": noise(2000, number)}) for number in range(8)]
    for number in range(20):
        layout.image(f"{number}", layers, run={"Cmd": [f"/bin/{number}"]})
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:0")
        assert [event for event, _ in store.events()].count("extracted") == 8
        registry.seen.clear()
        store.said.clear()
        for number in range(1, 20):
            await store.pull(f"{registry.host}/app:{number}")
        assert not [seen.path for seen in registry.seen if any(layer.digest in seen.path for layer in layers)]
    assert len(registry.requests("blobs")) == 19  # the configs, of which each image has its own
    assert not {"downloading", "extracting"} & {event for event, name in store.events() if name.startswith("layer")}
    assert len(list(store.snapshots.list("ns"))) == 8


async def test_another_namespace_gets_the_blobs_without_fetching_them(store, layout):
    _, chain = two_layers(layout)
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
        await store.pull(f"{registry.host}/app:1", "other")
        assert len(registry.requests("blobs")) == 3
    assert store.files(chain[1], "other")["a"] == b"1"
    assert store.left_over("other") == []


async def test_a_blob_that_has_gone_from_the_disk_is_fetched_again(store, layout):
    layers, chain = two_layers(layout)
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1", unpack=False)
        store.content.store.path(layers[0].digest).unlink()
        await store.pull(f"{registry.host}/app:1")
    assert store.files(chain[1])["a"] == b"1"


async def test_of_an_index_only_the_wanted_platform_is_fetched_and_the_rest_labelled(store, layout):
    ours, theirs = layout.layer({"arch": b"amd64"}), layout.layer({"arch": b"arm64"})
    entries = [layout.manifest([theirs], platform="linux/arm64/v8"), layout.manifest([ours])]
    layout.index("1", [*entries, {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}])
    with serving(layout.root, "app") as registry:
        pulled = await store.pull(f"{registry.host}/app:1")
        assert store.files(ours.diff_id) == {"arch": b"amd64"}
        with pytest.raises(NotFound):
            store.content.info("ns", theirs.digest)
        marks = store.content.info("ns", pulled.image.target.digest).labels
        assert marks["containerd.io/gc.ref.content.m.0"] == entries[0]["digest"]
        assert marks["containerd.io/gc.ref.content.m.1"] == entries[1]["digest"]

        await store.pull(f"{registry.host}/app:1", all_metadata=True)
        assert store.content.info("ns", entries[0]["digest"])
        with pytest.raises(NotFound):
            store.content.info("ns", theirs.digest)

        arm = platforms.parse("linux/arm64")
        both = {"platforms": (), "unpacks": tuple(Unpack(snapshotter=store.snapshots.name, platform=p) for p in (arm,))}
        await store.pull(f"{registry.host}/app:1", **both)
    assert store.files(theirs.diff_id) == {"arch": b"arm64"}


async def test_a_platform_that_is_not_there_is_reported_with_those_that_are(store, layout):
    layout.index("1", [layout.manifest([], platform="linux/s390x"), layout.manifest([], platform="linux/arm64")])
    layout.image("single", [], platform="linux/s390x")
    with serving(layout.root, "app") as registry:
        with pytest.raises(NotFound, match="app:1 has nothing for linux/amd64; it has: linux/arm64, linux/s390x"):
            await store.pull(f"{registry.host}/app:1")
        with pytest.raises(NotFound, match="app:single is for linux/s390x, not for linux/amd64"):
            await store.pull(f"{registry.host}/app:single")
    assert store.left_over() == []


async def test_a_user_pulls_through_a_token_that_expires_in_between(store, layout):
    two_layers(layout)

    async def ask(host, challenges):
        return Credentials(username="me", secret="x")

    with serving(layout.root, "app", auth="bearer", users={"me": "x"}) as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold("blobs")  # the config
        pulling = asyncio.create_task(store.pull(name, source=store.source(name, credentials=ask)))
        await asyncio.to_thread(gate.reached.wait)
        gate.let_go()
        registry.tokens.clear()
        await pulling
        assert len(registry.requests("/token")) >= 2


async def test_a_layer_refused_once_is_fetched_with_a_new_token(store, layout):
    layers, chain = two_layers(layout)
    with serving(layout.root, "app", auth="bearer") as registry:
        gate = registry.hold(f"blobs/{layers[1].digest}")
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        registry.tokens.clear()
        gate.let_go()
        await pulling
        tokens = [one.headers["Authorization"] for one in registry.requests(f"blobs/{layers[1].digest}")]
    assert len(set(tokens)) == len(tokens) == 2
    assert store.files(chain[1])["b"] == b"new"


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Unauthenticated), (403, PermissionDenied), (404, NotFound), (500, Unavailable), (429, Unavailable)],
)
async def test_a_layer_that_is_refused_leaves_no_half_state(store, layout, status, error):
    layers, _ = two_layers(layout)
    with serving(layout.root, "app") as registry:
        for method in ("GET", "HEAD"):
            registry.fail(f"blobs/{layers[1].digest}", status=status, method=method, times=99)
        with pytest.raises(error, match=f"{registry.host}/app:1"):
            await store.pull(f"{registry.host}/app:1")
    assert store.left_over() == []
    assert f"layer-{layers[1].digest}" not in store.ingests()  # of the other, what had come is kept
    with store.db.reading() as tx:
        assert images.list(tx, "ns") == []


async def test_a_layer_that_is_cut_off_is_resumed_where_it_ended(store, layout):
    layer = layout.layer({"big": noise(3 << 20, 1)})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, cut_at=1 << 20)
        registry.fail(layer.digest, cut_at=1 << 20)
        await store.pull(f"{registry.host}/app:1")
        ranges = [one.headers.get("Range") for one in registry.requests(layer.digest)]
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]
    assert len(store.files(layer.diff_id)["big"]) == 3 << 20


async def test_a_layer_that_never_comes_whole_is_kept_for_the_next_pull(store, layout):
    layer = layout.layer({"big": noise(2 << 20, 2)})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, cut_at=1 << 20)
        registry.fail(layer.digest, status=503, times=3)
        registry.fail(layer.digest, status=503, method="HEAD", times=99)
        with pytest.raises(Unavailable):
            await store.pull(f"{registry.host}/app:1")
        assert store.ingests() == {f"layer-{layer.digest}": 1 << 20}
        assert store.left_over() == []
        registry.heal()
        await store.pull(f"{registry.host}/app:1")
        assert registry.requests(layer.digest)[-1].headers["Range"] == f"bytes={1 << 20}-"


async def test_a_registry_without_ranges_sends_all_of_it_again(store, layout):
    layer = layout.layer({"big": noise(2 << 20, 3)})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, cut_at=1 << 20)
        registry.fail(layer.digest, no_ranges=True)
        await store.pull(f"{registry.host}/app:1")
    assert len(store.files(layer.diff_id)["big"]) == 2 << 20


async def test_kept_bytes_that_are_wrong_are_thrown_away_and_fetched(store, layout):
    layer = layout.layer({"big": noise(1 << 20, 4)})
    layout.image("1", [layer])
    with store.content.begin("ns", f"layer-{layer.digest}") as ingest:
        ingest.write(b"\0" * 1000)
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
    assert store.files(layer.diff_id)["big"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + b"more",
        lambda data: data[:-4],
        lambda data: b"",
    ],
    ids=["corrupt", "longer", "shorter", "empty"],
)
async def test_a_layer_with_other_bytes_is_refused_and_nothing_kept(store, layout, change):
    layers, _ = two_layers(layout)
    with serving(layout.root, "app") as registry:
        registry.fail(f"blobs/{layers[1].digest}", change=change, times=99)
        with pytest.raises((FailedPrecondition, DataLoss), match=layers[1].digest) as caught:
            await store.pull(f"{registry.host}/app:1")
    assert f"{registry.host}/app:1" in str(caught.value)
    assert f"layer-{layers[1].digest}" not in store.ingests()
    assert store.left_over() == []


async def test_a_config_with_other_bytes_is_refused(store, layout):
    two_layers(layout)
    with serving(layout.root, "app") as registry:
        registry.fail("blobs", change=lambda data: b"X" + data[1:], times=99)
        with pytest.raises(DataLoss, match="instead of sha256:"):
            await store.pull(f"{registry.host}/app:1")
    assert store.ingests() == {}


async def test_a_layer_that_lies_about_its_diff_id_poisons_nothing(store, layout):
    good = layout.layer({"a": b"good"})
    bad = layout.layer({"a": b"bad"})
    layout.image("1", [Layer(bad.descriptor, good.diff_id)])
    why = f"unpacks to {bad.diff_id}, but the image's config says"
    with serving(layout.root, "app") as registry, pytest.raises(InvalidArgument, match=why):
        await store.pull(f"{registry.host}/app:1")
    assert store.left_over() == []
    assert store.snapshots.list("ns") == []
    assert labels.UNCOMPRESSED not in store.content.info("ns", bad.digest).labels


async def test_a_layer_count_that_disagrees_with_the_config_is_refused_before_any_layer(store, layout):
    layer = layout.layer({"a": b"1"})
    layout.image("1", [layer], config={"rootfs": {"type": "layers", "diff_ids": []}})
    with serving(layout.root, "app") as registry:
        with pytest.raises(InvalidArgument, match="has 1 layers, but its config 0 diff IDs"):
            await store.pull(f"{registry.host}/app:1")
        assert registry.requests(layer.digest) == []


@pytest.mark.parametrize(
    ("media_type", "why"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is foreign"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/x-something", "not an image layer"),
    ],
)
async def test_layers_that_cannot_be_unpacked_are_refused_before_any_is_fetched(store, layout, media_type, why):
    ok = layout.layer({"a": b"1"})
    odd = layout.layer({"b": b"2"})
    odd = Layer({**odd.descriptor, "mediaType": media_type, "urls": ["http://169.254.169.254/"]}, odd.diff_id)
    layout.image("1", [ok, odd])
    with serving(layout.root, "app") as registry:
        with pytest.raises(Unimplemented, match=why):
            await store.pull(f"{registry.host}/app:1")
        assert registry.requests(ok.digest) == []
        assert registry.requests(odd.digest) == []


async def test_an_artifact_is_pulled_without_being_unpacked(store, layout):
    config = layout.blob(b"{}", "application/vnd.example.config")
    data = layout.blob(b"whatever it is", "application/vnd.example.data")
    document = {"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": config, "layers": [data]}
    layout.tag("1", layout.json(document, manifest.OCI_MANIFEST))
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
    assert store.content.read("ns", data["digest"]) == b"whatever it is"


async def test_indexes_inside_each_other_end_somewhere(store, layout):
    entry = layout.manifest([])
    for level in range(6):
        entry = layout.index(str(level), [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}])
    with serving(layout.root, "app") as registry, pytest.raises(InvalidArgument, match="more than 4 indexes"):
        await store.pull(f"{registry.host}/app:5")


async def test_pulls_at_once_fetch_and_unpack_each_layer_once(store, layout):
    layers, chain = two_layers(layout)
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold(f"blobs/{layers[0].digest}")
        pulls = [asyncio.create_task(store.pull(name, namespace)) for namespace in ("ns", "ns", "ns", "other")]
        await asyncio.to_thread(gate.reached.wait)
        gate.let_go()
        results = await asyncio.gather(*pulls)
        for layer in layers:
            assert len(registry.requests(layer.digest)) == 1
    assert sum(result.is_new for result in results) == 2
    assert len(store.snapshots.list("ns")) == len(chain)
    assert store.left_over() == store.left_over("other") == []


async def test_the_largest_layers_are_asked_for_first(store, layout):
    layers = [layout.layer({"f": os.urandom(1000 * n)}) for n in (1, 5, 2, 4, 3)]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry:
        gates = {n: registry.hold(layer.digest) for n, layer in zip((1, 5, 2, 4, 3), layers, strict=True)}
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        for n in (5, 4, 3):
            await asyncio.to_thread(gates[n].reached.wait)
        assert not gates[1].reached.is_set()
        assert not gates[2].reached.is_set()
        for gate in gates.values():
            gate.let_go()
        await pulling


async def test_a_pull_says_where_its_time_went(store, layout):
    layer = layout.layer({"a": b"1"})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
    timings = json.loads(store.said[-1].descriptor.annotations["runtimed.timings"])
    assert timings["total_s"] > 0
    [one] = timings["layers"]
    assert (one["digest"], one["size"], one["was_here"]) == (layer.digest, timings["downloaded"], False)


async def test_one_cancelled_pull_does_not_stop_the_other(store, layout):
    layers, chain = two_layers(layout)
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold(f"blobs/{layers[1].digest}")
        first = asyncio.create_task(store.pull(name))
        await asyncio.to_thread(gate.reached.wait)
        second = asyncio.create_task(store.pull(name))
        await store.until_said("waiting", f"layer-{layers[1].digest}", 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.let_go()
        await second
        assert len(registry.requests(layers[1].digest)) == 1
    assert store.files(chain[1])["b"] == b"new"
    assert store.left_over() == []


async def test_a_cancelled_pull_keeps_its_bytes_and_nothing_else(store, layout):
    layer = layout.layer({"big": noise(2 << 20, 5)})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, cut_at=1 << 20)
        gate = registry.hold(layer.digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert store.ingests() == {f"layer-{layer.digest}": 1 << 20}
        assert store.left_over() == []
        gate.let_go()
        await store.pull(f"{registry.host}/app:1")
        assert registry.requests(layer.digest)[-1].headers["Range"] == f"bytes={1 << 20}-"


async def test_a_clients_own_lease_is_used_and_left(store, layout):
    layers, chain = two_layers(layout)
    await store.db.write(leases.create, "ns", leases.Lease(id="mine"))
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        with pytest.raises(NotFound, match="lease 'yours'"):
            await store.pull(name, lease="yours")
        await store.pull(name, lease="mine")
    held = await store.db.read(leases.resources, "ns", "mine")
    assert {resource.id for resource in held} >= {*chain, *(layer.digest for layer in layers)}


async def test_what_a_layer_lies_upon_is_not_collected_before_the_layer_is_there(store, layout, monkeypatch):
    """A layer that is left of an image that was removed is found there: the collection that is due must see that."""
    layers, (below, above) = two_layers(layout)
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        await store.pull(name)
    for lease, held in (
        ("mine", leases.Resource("content", layers[1].digest)),
        ("another's", leases.Resource(f"snapshots/{store.snapshots.name}", below)),
    ):
        await store.db.write(leases.create, "ns", leases.Lease(id=lease))
        await store.db.write(leases.add_resource, "ns", lease, held)
    await store.db.write(images.delete, "ns", name)
    await asyncio.to_thread(store.snapshots.remove, "ns", above)
    config = Gc(startup_delay_ms=0)
    collector = Collector(store.db, store.content, {store.snapshots.name: store.snapshots}, EventBus(), config, print)
    loop, prepare = asyncio.get_running_loop(), store.snapshots.prepare

    def collected_first(*arguments):
        store.db.submit(leases.delete, "ns", "another's").result()
        asyncio.run_coroutine_threadsafe(collector.collect(), loop).result(60)
        return prepare(*arguments)

    monkeypatch.setattr(store.snapshots, "prepare", collected_first)
    layer = UnpackedLayer(
        namespace="ns",
        snapshots=store.snapshots,
        descriptor=msgspec.convert(layers[1].descriptor, Descriptor),
        parent=below,
        diff_id=layers[1].diff_id,
        chain_id=above,
    )
    async with collector.running():
        await Unpacker(store.content, store.db, store.pool).unpack(layer, "mine", print)
    assert store.files(above) == {"a": b"1", "b": b"new", "c": BIG}


async def test_layers_that_were_there_once_are_waited_for_when_they_are_made_again(store, layout, monkeypatch):
    """Also if something still refers to what the last pull waited with, as tracebacks do in Python 3.13."""
    layers, chain = two_layers(layout)
    monkeypatch.setattr(unpack, "WeakValueDictionary", dict)
    store.puller = Puller(store.content, store.db, {store.snapshots.name: store.snapshots}, store.pool)
    with serving(layout.root, "app") as registry:
        for _ in range(2):
            await store.pull(f"{registry.host}/app:1")
            for name in reversed(chain):
                await asyncio.to_thread(store.snapshots.remove, "ns", name)


async def test_while_it_runs_a_pull_is_held_by_a_lease_that_expires(store, layout):
    layers, _ = two_layers(layout)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(f"blobs/{layers[1].digest}")
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        [lease] = await store.db.read(leases.list, "ns")
        assert labels.GC_EXPIRE in lease.labels
        gate.let_go()
        await pulling
    assert store.left_over() == []


async def test_what_a_killed_daemon_left_of_a_pull_is_removed_but_for_its_bytes(store):
    """The records are those of a pull that stopped between two steps."""
    marks = {labels.PULL: "true"}
    await store.db.write(leases.create, "ns", leases.Lease(id="dead", labels=marks))
    await store.db.write(leases.create, "ns", leases.Lease(id="a-clients"))
    for key in ("extract-1-x sha256:1", "base"):
        store.snapshots.prepare("ns", key, "", {}, lease="dead")
    store.snapshots.commit("ns", "done", "base", {}, lease="dead")
    with store.content.begin("ns", "layer-x", lease="dead") as ingest:
        ingest.write(b"bytes")

    await recover(store.db, store.content, {store.snapshots.name: store.snapshots})

    assert [info.name for info in store.snapshots.list("ns")] == ["done"]
    assert [lease.id for lease in await store.db.read(leases.list, "ns")] == ["a-clients"]
    assert store.ingests() == {"layer-x": 5}


async def test_an_unknown_snapshotter_is_reported_before_anything_is_asked_for(store):
    with pytest.raises(NotFound, match=f"snapshotter 'zfs'; there are: {store.snapshots.name}"):
        await store.pull("127.0.0.1:1/app:1", unpacks=(Unpack(snapshotter="zfs", platform=platforms.host()),))


async def test_the_embedded_images_need_no_registry(store):
    reference = parse(f"{embedded.HOST}/hello:latest")
    pulled = await store.pull(str(reference), source=LayoutSource(embedded.layout(), reference))
    assert store.content.info("ns", pulled.image.target.digest)
    assert [name for info in store.snapshots.list("ns") for name in store.files(info.name)]
    missing = parse(f"{embedded.HOST}/nothing:latest")
    with pytest.raises(NotFound, match="runtimed.io/nothing:latest: there are .*runtimed.io/hello:latest"):
        await store.pull(str(missing), source=LayoutSource(embedded.layout(), missing))


async def test_a_layout_with_a_damaged_blob_is_refused(store, layout):
    layers, _ = two_layers(layout, "example.com/app:1")
    path = layout.path(layers[1].digest)
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    reference = parse("example.com/app:1")
    with pytest.raises(RuntimedError, match="sha256:"):
        await store.pull(str(reference), source=LayoutSource(layout.root, reference))
    assert f"layer-{layers[1].digest}" not in store.ingests()
    assert store.left_over() == []


async def test_a_full_disk_is_reported_and_freed_again(store, layout, small_disk):
    big, small = layout.layer({"big": noise(4 << 20, 6)}), layout.layer({"small": b"1"})
    layout.image("big", [big])
    layout.image("small", [small])
    content = Content(store.db, LocalStore(small_disk / "content"))
    puller = Puller(content, store.db, {store.snapshots.name: store.snapshots}, store.pool)
    store = dataclasses.replace(store, content=content, puller=puller)
    with serving(layout.root, "app") as registry:
        with pytest.raises(ResourceExhausted, match=f"app:big: blob {big.digest}: .*No space left"):
            await store.pull(f"{registry.host}/app:big")
        assert store.ingests() == {}
        assert store.left_over() == []
        await store.pull(f"{registry.host}/app:small")
    assert store.files(small.diff_id) == {"small": b"1"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_over_tls_a_certificate_must_be_trusted(store, layout, tmp_path, monkeypatch):
    _, chain = two_layers(layout)
    certificate = make_certificate(tmp_path)
    with serving(layout.root, "app", auth="bearer", certificate=certificate) as registry:
        name = f"{registry.host}/app:1"
        with pytest.raises(PermissionDenied, match="app:1: certificate not trusted: .*self.signed"):
            await store.pull(name, source=store.source(name, default_scheme="https"))
        # Read when a pull begins, so an authority that is new is believed without a restart.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        await store.pull(name, source=store.source(name, default_scheme="https"))
    assert store.files(chain[1])["b"] == b"new"


async def test_a_client_that_writes_the_same_blob_is_waited_for(store, layout):
    layer = layout.layer({"a": b"1"})
    layout.image("1", [layer])
    with serving(layout.root, "app") as registry:
        name = f"layer-{layer.digest}"
        with store.content.begin("ns", name) as client:
            pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
            await store.until_said("waiting", name, 1)
            client.write(layout.path(layer.digest).read_bytes())
            client.commit()
        await pulling
        assert registry.requests(layer.digest) == []
    assert store.files(layer.diff_id) == {"a": b"1"}


async def test_an_image_is_pulled_from_debians_docker_registry(store, layout, registry):
    layers, chain = two_layers(layout)
    name = registry.push(layout.root, "pull/debian:1", source="1")
    pulled = await store.pull(name)
    assert pulled.image.target.digest == digest_of(store.content.read("ns", pulled.image.target.digest))
    assert store.files(chain[1])["b"] == b"new"
    with pytest.raises(NotFound, match="check name and tag"):
        await store.pull(f"{registry.host}/pull/debian:2")
