"""A daemon that finds that the machine went down under it; tests/vm cuts the power for real."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def layer_of(daemon: PrivateDaemon) -> Path:
    layers = daemon.root.glob("snapshotters/overlayfs/snapshots/*/layer.erofs")
    return max(layers, key=lambda path: path.stat().st_size)


def test_a_layer_that_was_cut_short_is_made_anew_when_a_container_needs_it(fresh: PrivateDaemon, busybox: str):
    fresh.rctl("pull", busybox)
    fresh.kill()
    with sqlite3.connect(fresh.root / "metadata.db") as records:
        assert records.execute("UPDATE facts SET value = 'another boot' WHERE key = 'boot'").rowcount == 1
    records.close()
    whole = layer_of(fresh).read_bytes()
    layer_of(fresh).write_bytes(whole[: len(whole) // 2])
    fresh.start()
    assert fresh.run("--rm", busybox, "--", "echo", "hello").stdout == "hello\n"
    assert layer_of(fresh).read_bytes() == whole
    assert "layer was made anew from its blob" in fresh.log.read_text()


def test_images_check_repairs_layers_and_drops_damaged_blobs(fresh: PrivateDaemon, busybox: str):
    fresh.rctl("pull", busybox)
    assert fresh.rctl("images", "check", "--repair", "--read").returncode == 0
    layer = layer_of(fresh)
    layer.write_bytes(b"")
    mended = fresh.rctl("images", "check", "--repair")
    assert "was damaged, and has been made anew" in mended.stderr
    assert fresh.rctl("snapshots", "fsck").stdout.endswith("layers, 0 damaged\n")

    shutil.copyfile(
        "/etc/hostname", max(fresh.root.glob("content/blobs/sha256/*"), key=lambda path: path.stat().st_size)
    )
    layer.write_bytes(b"")
    failed = fresh.rctl("images", "check", "--repair", "--read", check=False)
    assert failed.returncode == 1
    assert "cannot be made anew" in failed.stderr
    fresh.rctl("pull", busybox)
    assert fresh.rctl("images", "check", "--repair", "--read").returncode == 0
    assert fresh.run("--rm", busybox, "--", "echo", "hello").stdout == "hello\n"
