"""Images that are made to be expensive, or to confuse: refused before a layer is asked for."""

import pytest

from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from tests.fakes.registry import serving

pytestmark = pytest.mark.root

AMD64 = {"os": "linux", "architecture": "amd64"}


async def test_an_index_of_more_manifests_than_any_image_has_is_refused(store, layout):
    entry = {**layout.manifest([]), "platform": AMD64}
    layout.index("many", [entry] * 1001)
    with serving(layout.root, "app") as registry, pytest.raises(InvalidArgument, match="more than 1000 manifests"):
        await store.pull(f"{registry.host}/app:many")
    assert store.left_over() == []


async def test_an_index_that_claims_another_platform_for_an_image_does_not_get_it_run(store, layout):
    layer = layout.layer({"a": b"1"})
    other = layout.manifest([layer], platform="linux/s390x")
    layout.index("lie", [{**other, "platform": AMD64}])
    with serving(layout.root, "app") as registry:
        with pytest.raises(NotFound, match="is for linux/s390x, not for linux/amd64"):
            await store.pull(f"{registry.host}/app:lie")
        assert registry.requests(layer.digest) == []
    assert store.snapshots.list("ns") == []


async def test_an_entry_of_absurd_size_is_refused_by_what_arrives(store, layout):
    layer = layout.layer({"a": b"1"})
    layer.descriptor["size"] = 1 << 50
    layout.image("huge", [layer])
    with serving(layout.root, "app") as registry, pytest.raises(RuntimedError):
        await store.pull(f"{registry.host}/app:huge")
    assert store.snapshots.list("ns") == []
    assert store.left_over() == []
