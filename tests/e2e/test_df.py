"""``rctl df`` and du(1) agree."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.registry import serving
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def du(*paths: Path) -> int:
    if not paths:
        return 0
    done = subprocess.run(["du", "-s", "-x", "-B1", "-c", *paths], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1].split()[0])


@pytest.mark.parametrize("layers", ["erofs", "directories"])
def test_it_adds_up_to_what_du_says_and_tells_shared_from_unique(tmp_path, layers):
    layout = Layout(tmp_path / "layout")
    base = layout.layer({"base": b"b" * 300_000}, "")
    mine = layout.layer({"mine": bytes(range(256)) * 1000}, "")
    layout.image("one", [base, mine], platform=PLATFORM)
    layout.image("two", [base], platform=PLATFORM, run={"Env": ["A=1"]})
    with private_daemon(start=False) as daemon, serving(layout.root, "app") as registry:
        daemon.config.write_text(f'version = 1\n[snapshotters.overlayfs]\nlayers = "{layers}"\n')
        daemon.start()
        for tag in ("one", "two"):
            daemon.rctl("pull", f"{registry.host}/app:{tag}")
        daemon.rctl("tag", f"{registry.host}/app:one", "again:1")
        usage = settled(daemon)
        groups = ("blobs", "ingests", "layers", "active")
        assert usage["total"] == sum(usage[group]["size"] for group in groups) + usage["other"]
        assert usage["blobs"]["size"] == du(*daemon.root.glob("content/blobs/sha256/*"))
        pattern = "*/layer.erofs" if layers == "erofs" else "*/fs"
        assert usage["layers"]["size"] == du(*daemon.root.glob(f"snapshotters/overlayfs/snapshots/{pattern}"))
        assert usage["layers"]["count"] == 2
        assert usage["blobs"]["unused"] == usage["layers"]["unused"] == 0
        one, two = usage["images"]
        names = {name["name"] for name in one["names"]}
        assert names == {"docker.io/library/again:1", f"{registry.host}/app:one"}
        assert one["unique"] + one["shared"] == one["blobs"] + one["layers"]
        assert one["unique"] >= 2 * 256_000  # its own layer, as a blob and unpacked
        assert 2 * 300_000 <= one["shared"] == two["shared"] < 2 * 300_000 + 40_000
        assert two["unique"] < 30_000  # documents
        daemon.rctl("rmi", f"{registry.host}/app:two")
        daemon.rctl("gc", "run")
        assert settled(daemon)["images"][0]["shared"] == 0
        assert "total" in daemon.rctl("df").stdout
        assert "again:1" in daemon.rctl("df", "--images").stdout


def settled(daemon: PrivateDaemon) -> dict[str, Any]:
    """Return the usage once nothing changes while it is measured: du and rctl saw the same."""
    for _ in range(20):
        before = du(daemon.root)
        usage = json.loads(daemon.rctl("-o", "json", "df").stdout)
        if before == usage["total"] == du(daemon.root):
            return dict(usage)
    raise AssertionError(f"rctl df says {usage['total']}, du {before}")
