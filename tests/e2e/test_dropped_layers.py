"""A namespace that keeps no blobs of layers that are unpacked."""

import json
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon
from tests.fakes.registry import serving
from tests.images.layouts import Layout
from tests.registry import Registry

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def layers_here(daemon: PrivateDaemon, layers) -> int:
    daemon.rctl("gc", "run")
    return sum((daemon.root / "content/blobs/sha256" / layer.digest.split(":")[1]).exists() for layer in layers)


def test_layers_go_once_they_are_unpacked_and_come_back_for_a_push_or_an_export(
    fresh: PrivateDaemon, registry: Registry, tmp_path: Path
):
    layout = Layout(tmp_path / "layout")
    programs: dict[str, bytes | str] = {"bin/busybox": Path("/bin/busybox").read_bytes(), "bin/echo": "busybox"}
    layers = [layout.layer(programs), layout.layer({"top": b"1"})]
    layout.image("1", layers, run={"Env": ["PATH=/bin"]})
    fresh.ctr("namespaces", "create", fresh.namespace)
    fresh.ctr("namespaces", "label", fresh.namespace, "runtimed.io/discard-unpacked-layers=true")
    with serving(layout.root, "app") as origin:
        reference = f"{origin.host}/app:1"
        fresh.rctl("pull", reference)
        assert layers_here(fresh, layers) == 0
        assert fresh.run("--rm", reference, "--", "echo", "hello").stdout == "hello\n"
        assert json.loads(fresh.rctl("-o", "json", "df").stdout)["images"][0]["blobs"] < 20_000

        asked = [len(origin.requests(layer.digest)) for layer in layers]
        fresh.rctl("pull", reference)
        assert [len(origin.requests(layer.digest)) for layer in layers] == asked, "a layer was fetched to be dropped"

        fresh.rctl("images", "export", tmp_path / "image.tar", reference)
        assert layers_here(fresh, layers) == 0
        fresh.rctl("tag", reference, f"{registry.host}/dropped/copy:1")
        fresh.rctl("push", f"{registry.host}/dropped/copy:1")
        assert layers_here(fresh, layers) == 0
        fresh.rctl("rmi", reference, f"{registry.host}/dropped/copy:1")
        fresh.rctl("gc", "run")
        fresh.rctl("images", "import", tmp_path / "image.tar")
        assert fresh.run("--rm", reference, "--", "echo", "hello").stdout == "hello\n"
    fresh.rctl("images", "export", tmp_path / "again.tar", reference)  # an import keeps what it brought
