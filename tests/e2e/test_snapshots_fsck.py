"""``rctl snapshots fsck`` against a running daemon."""

import json
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_a_layer_file_that_was_changed_is_found_and_pulled_again(fresh: PrivateDaemon, busybox: str):
    fresh.rctl("pull", busybox)
    layers = json.loads(fresh.rctl("-o", "json", "snapshots", "fsck").stdout)["layers"]
    healthy = f"{len(layers)} layers, 0 damaged\n"
    assert fresh.rctl("snapshots", "fsck").stdout == healthy
    layer = max(layers, key=lambda layer: layer["size"])
    assert (layer["snapshotter"], layer["namespace"], layer["error"]) == ("overlayfs", fresh.namespace, None)

    file = Path(layer["path"])
    whole = file.read_bytes()
    for place in (len(whole) // 2, 1024 + 40):  # a byte of a program; one of the superblock
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = fresh.rctl("snapshots", "fsck", check=False)
        assert found.returncode == 1
        assert f"{fresh.namespace} {layer['name']}: " in found.stdout
        assert f"{len(layers)} layers, 1 damaged" in found.stdout

    fresh.rctl("rmi", busybox)
    fresh.rctl("gc", "run")
    assert not file.exists()
    fresh.rctl("pull", busybox)
    assert fresh.rctl("snapshots", "fsck").stdout == healthy
