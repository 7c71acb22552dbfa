"""Pulls that make a file of each layer: the bytes of a layer may come before the ones below it, its index may not."""

import asyncio
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument
from runtimed.labels import SNAPSHOT_REF
from runtimed.mounts import mounted_temporarily
from runtimed.oci import manifest
from runtimed.workers.pool import Pool
from tests import processes
from tests.fakes.registry import serving
from tests.images.layouts import Layer

pytestmark = [pytest.mark.root, pytest.mark.parametrize("store", ["overlayfs"], indirect=True)]

# struct posix_acl_xattr_entry (linux/posix_acl_xattr.h): user::rw-, user:1000:r--, group::r--, mask::r--, other::r--
ACL = "0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff"


def chain_of(layers: list[Layer]) -> list[str]:
    return manifest.chain_ids([layer.diff_id for layer in layers])


def is_file(store, name: str) -> bool:
    """Say whether the committed snapshot *name* is a file, by what mounts name for it."""
    mounts = store.snapshots.view("ns", "look", name, {})
    store.snapshots.remove("ns", "look")
    options = mounts[0].options[-1] if mounts[0].type == "overlay" else mounts[0].source
    return "/layers/" in options.removeprefix("lowerdir=").split(":")[0]


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


async def test_layers_that_arrive_from_the_top_down_wait_for_those_below(store, layout):
    layers = [
        layout.layer({"d": member("d", tarfile.DIRTYPE, mode=0o750, uid=7), "d/0": b"0", "gone": b"0"}),
        layout.layer({"d/1": b"1"}),  # whose parent has the owner and mode that it has below
        layout.layer({"d/2": b"2", ".wh.gone": b""}),
        layout.layer({"link": "d"}),
        layout.layer({"link/4": b"4"}),
        layout.layer({"d/5": b"5"}),
        layout.layer({"d/6": b"6"}),
    ]
    layout.image("1", layers)
    chain = chain_of(layers)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(layers[0].digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        for layer in layers[1:]:
            await store.until_said("extracting", f"layer-{layer.digest}", 1)
        assert store.snapshots.list("ns") == []
        gate.let_go()
        await pulling
    assert store.left_over() == []
    assert all(is_file(store, name) for name in chain)
    with mounted_temporarily(store.snapshots.view("ns", "v", chain[-1], {})) as root:
        assert sorted(path.name for path in root.iterdir()) == ["d", "link"]
        assert sorted(path.name for path in (root / "d").iterdir()) == ["0", "1", "2", "4", "5", "6"]
        assert ((root / "d").stat().st_mode & 0o7777, (root / "d").stat().st_uid) == (0o750, 7)
    store.snapshots.remove("ns", "v")


async def test_a_layer_that_no_file_expresses_is_extracted_wherever_it_lies(store, layout):
    acl = {"SCHILY.xattr.system.posix_acl_access": bytes.fromhex(ACL).decode("utf-8", "surrogateescape")}
    layers = [
        layout.layer({"a": b"1"}),
        layout.layer({"with-acl": member("with-acl", pax_headers=acl), "a": b"2"}),
        layout.layer({"b": b"3"}),
    ]
    layout.image("1", layers)
    chain = chain_of(layers)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(layers[0].digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        await store.until_said("extracting", f"layer-{layers[1].digest}", 1)
        gate.let_go()
        await pulling
    assert [is_file(store, name) for name in chain] == [True, False, True]
    assert store.files(chain[-1]) == {"a": b"2", "b": b"3", "with-acl": b""}


async def test_a_layer_that_lies_about_its_diff_id_is_no_snapshot_nor_the_ones_above(store, layout):
    layers = [layout.layer({"a": b"1"}), layout.layer({"b": b"2"}), layout.layer({"c": b"3"})]
    lying = [layers[0], Layer(layers[1].descriptor, layers[0].diff_id), layers[2]]
    layout.image("1", lying)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(layers[0].digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        await store.until_said("extracting", f"layer-{layers[2].digest}", 1)
        gate.let_go()
        with pytest.raises(InvalidArgument, match=f"{layers[1].digest} unpacks to {layers[1].diff_id}"):
            await pulling
    assert [info.name for info in store.snapshots.list("ns")] == [layers[0].diff_id]
    assert store.left_over() == []


async def test_a_pull_that_ends_while_layers_wait_leaves_no_worker_with_one(store, layout, tmp_path):
    layers = [layout.layer({f"{number}": b"1"}) for number in range(6)]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(layers[0].digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        for layer in layers[1:]:
            await store.until_said("extracting", f"layer-{layer.digest}", 1)
        async with asyncio.timeout(20):
            while len(unnamed_files(tmp_path)) < 4:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.005)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert store.left_over() == []
        assert unnamed_files(tmp_path) == []
        gate.let_go()
        await store.pull(f"{registry.host}/app:1")
    assert len(store.files(chain_of(layers)[-1])) == 6


async def test_what_is_fetched_is_not_read_again(store, layout, monkeypatch):

    def never(*_: object) -> None:
        raise AssertionError("a blob is read again")

    layers = [layout.layer({f"{number}": bytes(1000 * number)}) for number in range(1, 5)]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry, monkeypatch.context() as patched:
        for name in ("received", "apply"):
            patched.setattr(Pool, name, never)
        await store.pull(f"{registry.host}/app:1")
    assert len(store.files(chain_of(layers)[-1])) == 4
    assert all(is_file(store, name) for name in chain_of(layers))
    assert store.left_over() == []


async def test_a_layer_that_comes_twice_is_fetched_once(store, layout):
    low, high = layout.layer({"1": b"1"}), layout.layer({"2": b"2"})
    layers = [low, high, low]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
    assert len(store.files(chain_of(layers)[-1])) == 2
    assert store.left_over() == []


def unnamed_files(below: Path) -> list[str]:
    """Return the files without a name that processes of this test hold below *below*."""
    held = []
    for pid in processes.descendants():
        with suppress(OSError):  # it ends
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    held.append(str(fd.readlink()))
    return [target for target in held if target.startswith(f"{below}/snapshotters") and "(deleted)" in target]


async def test_two_pulls_of_one_image_wait_together_and_one_may_go(store, layout):
    layers = [layout.layer({f"{number}": b"1"}) for number in range(3)]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold(layers[0].digest)
        first = asyncio.create_task(store.pull(name))
        await asyncio.to_thread(gate.reached.wait)
        await store.until_said("extracting", f"layer-{layers[2].digest}", 1)
        second = asyncio.create_task(store.pull(name))
        await store.until_said("extracting", f"layer-{layers[2].digest}", 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.let_go()
        await second
    assert len(store.files(chain_of(layers)[-1])) == 3
    assert store.left_over() == []


async def test_a_client_that_unpacks_on_its_own_is_faster_or_not(store, layout):
    layers = [layout.layer({"a": b"1"}), layout.layer({"b": b"2"})]
    layout.image("1", layers)
    chain = chain_of(layers)
    with serving(layout.root, "app") as registry:
        gate = registry.hold(layers[0].digest)
        pulling = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await asyncio.to_thread(gate.reached.wait)
        await store.until_said("extracting", f"layer-{layers[1].digest}", 1)
        parent = ""
        for name, file in zip(chain, "ab", strict=True):
            with mounted_temporarily(store.snapshots.prepare("ns", "mine", parent, {SNAPSHOT_REF: name})) as root:
                (root / file).write_bytes(b"client")
            store.snapshots.commit("ns", name, "mine", {})
            parent = name
        gate.let_go()
        await pulling
    assert store.files(chain[-1]) == {"a": b"client", "b": b"client"}
    assert store.left_over() == []
