"""After a power cut: layers are checked before their first use, and made anew from their blobs."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtimed.errors import DataLoss, NotFound
from runtimed.images.pull import Puller
from runtimed.images.repair import Repairer
from runtimed.oci import manifest
from tests.fakes.registry import serving
from tests.images.layouts import Layout
from tests.integration.images.conftest import Store

pytestmark = pytest.mark.root

FILES = {"one": b"1" * 5000, "two": b"2" * 5000, "three": b"3" * 5000}


class Image:
    """An image of three layers that is pulled, and what a power cut does to it."""

    def __init__(self, store: Store, reference: str, digests: list[str], chain: list[str]) -> None:
        self.store = store
        self.reference = reference
        self.digests = digests
        self.chain = chain
        self.repairer = Repairer(store.content, store.db, store.pool)
        store.puller = Puller(
            store.content, store.db, {store.snapshots.name: store.snapshots}, store.pool, self.repairer
        )

    async def cut(self) -> None:
        await self.repairer.begin("one boot")
        await self.repairer.begin("another boot")

    async def ensure(self, key: str | None = None) -> None:
        await self.repairer.ensure("ns", self.store.snapshots, key or self.chain[-1])

    def place(self, chain_id: str) -> Path:
        """Return the file or directory of a layer."""
        backend = next(row.backend_key for row in self.store.snapshots.committed("ns") if row.key == chain_id)
        records = self.store.snapshots.snapshotter._records  # type: ignore[attr-defined]
        root: Path = self.store.snapshots.snapshotter._root  # type: ignore[attr-defined]
        path: Path = root / "snapshots" / records.names()[backend]
        return path / "layer.erofs" if (path / "layer.erofs").exists() else path

    def blob(self, digest: str) -> Path:
        return self.store.content.path("ns", digest)

    def mounted(self) -> dict[str, bytes]:
        return self.store.files(self.chain[-1])


@pytest.fixture
async def image(store: Store, layout: Layout) -> AsyncIterator[Image]:
    layers = [layout.layer({name: data}) for name, data in FILES.items()]
    layout.image("1", layers)
    with serving(layout.root, "app") as registry:
        chain = manifest.chain_ids([layer.diff_id for layer in layers])
        made = Image(store, f"{registry.host}/app:1", [layer.digest for layer in layers], list(chain))
        await store.pull(made.reference)
        yield made


def pytest_generate_tests(metafunc):
    if "image" in metafunc.fixturenames:
        metafunc.parametrize("store", ["native", "overlayfs"], indirect=True)


def cut_short(path: Path) -> None:
    file = path if path.is_file() else path / "one"
    with file.open("r+b") as opened:
        opened.truncate(0)


def vanish(path: Path) -> None:
    path.unlink() if path.is_file() else shutil.rmtree(path)


@pytest.mark.parametrize("damage", [cut_short, vanish])
async def test_a_damaged_layer_is_made_anew_before_its_first_use(image: Image, damage: Callable[[Path], None]):
    places = [image.place(name) for name in image.chain]
    others = [place.stat().st_ino for place in places[1:]]
    await image.cut()
    damage(places[0])
    await image.ensure()
    assert image.place(image.chain[0]) == places[0]
    assert image.store.files(image.chain[0]) == {"one": FILES["one"]}
    if (
        image.store.snapshots.name == "overlayfs"
    ):  # a copy has the damage, too; which is not looked for where it was not
        assert image.mounted() == FILES
        assert [place.stat().st_ino for place in places[1:]] == others
    assert image.store.left_over() == []


async def test_a_layer_that_holds_is_looked_at_once_and_not_again_after_a_restart(image: Image):
    await image.cut()
    await image.ensure()
    cut_short(image.place(image.chain[0]))
    again = Repairer(image.store.content, image.store.db, image.store.pool)
    await again.begin("another boot")
    for repairer in (image.repairer, again):
        await repairer.ensure("ns", image.store.snapshots, image.chain[-1])  # or it would raise, or mend
    place = image.place(image.chain[0])
    assert (place if place.is_file() else place / "one").stat().st_size == 0


async def test_what_is_not_looked_at_yet_stays_suspect_over_a_restart(image: Image):
    await image.cut()
    cut_short(image.place(image.chain[0]))
    await image.repairer.end()
    again = Repairer(image.store.content, image.store.db, image.store.pool)
    await again.begin("another boot")
    await again.ensure("ns", image.store.snapshots, image.chain[0])
    assert image.store.files(image.chain[0]) == {"one": FILES["one"]}


@pytest.mark.parametrize("ends", [True, False])
async def test_nothing_is_suspect_after_a_daemon_that_stopped_or_died_by_itself(image: Image, ends: bool):
    await image.repairer.begin("one boot")
    if ends:
        await image.repairer.end()
    await image.repairer.begin("another boot" if ends else "one boot")
    place = image.place(image.chain[0])
    before = place.stat().st_ino
    cut_short(place)
    await image.ensure()
    assert place.stat().st_ino == before


async def test_a_layer_whose_blob_is_gone_says_what_to_do(image: Image):
    await image.cut()
    cut_short(image.place(image.chain[0]))
    image.store.content.delete("ns", image.digests[0])
    with pytest.raises(DataLoss, match=f"{image.chain[0]}.* is damaged .*pull its image again"):
        await image.ensure()
    assert image.store.left_over() == []
    await image.store.pull(image.reference)
    assert image.store.files(image.chain[0]) == {"one": FILES["one"]}


async def test_a_damaged_blob_is_dropped_so_that_a_pull_gets_it_anew(image: Image):
    await image.cut()
    cut_short(image.place(image.chain[0]))
    blob = image.blob(image.digests[0])
    blob.chmod(0o600)
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(DataLoss, match="pull its image again"):
        await image.ensure()
    with pytest.raises(NotFound):
        image.store.content.store.size(image.digests[0])
    await image.store.pull(image.reference)
    assert image.store.files(image.chain[0]) == {"one": FILES["one"]}


async def test_a_pull_mends_what_it_finds(image: Image):
    await image.cut()
    cut_short(image.place(image.chain[0]))
    await image.store.pull(image.reference)
    assert image.store.files(image.chain[0]) == {"one": FILES["one"]}
