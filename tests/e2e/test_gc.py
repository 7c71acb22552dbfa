"""Garbage collection as users see it: the disk is free again, what is used stays."""

import json
import time

import pytest

from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def on_disk(daemon: PrivateDaemon) -> tuple[int, int]:
    """Return how many blobs and snapshot directories there are."""
    snapshots = daemon.root / "snapshotters/overlayfs/snapshots"
    return len(list((daemon.root / "content/blobs").glob("*/*"))), len(list(snapshots.iterdir()))


def until_gone(daemon: PrivateDaemon, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while on_disk(daemon) != (0, 0):
        assert time.monotonic() < deadline, on_disk(daemon)
        time.sleep(0.02)


def test_an_image_removed_with_sync_has_freed_the_disk_when_the_command_ends(fresh, busybox):
    fresh.rctl("pull", busybox)
    assert min(on_disk(fresh)) > 0
    fresh.ctr("images", "rm", "--sync", busybox)
    assert on_disk(fresh) == (0, 0)


def test_without_sync_it_is_free_within_a_second(fresh, busybox):
    fresh.rctl("pull", busybox)
    fresh.ctr("images", "rm", busybox)
    until_gone(fresh, 1.0 + 2.0)  # a busy test machine


def test_plan_run_and_why(fresh, busybox):
    fresh.rctl("pull", busybox)
    assert json.loads(fresh.rctl("-o", "json", "gc", "plan").stdout) == []
    digest = next((fresh.root / "content/blobs/sha256").iterdir()).name
    assert fresh.rctl("gc", "why", digest[:12]).stdout.startswith(f"image {busybox}\n")
    fresh.rctl("gc", "run")
    assert min(on_disk(fresh)) > 0


def test_a_container_keeps_its_snapshots_when_its_image_goes(fresh, busybox):
    fresh.rctl("pull", busybox)
    fresh.run("-d", busybox, "box", "sleep", "60")
    fresh.rctl("rmi", busybox)
    fresh.rctl("gc", "run")
    assert fresh.rctl("exec", "box", "echo", "here").stdout == "here\n"
    assert on_disk(fresh)[0] == 0
    fresh.rctl("rm", "-f", "box")
    fresh.rctl("gc", "run")
    assert on_disk(fresh) == (0, 0)


def test_a_lease_that_expires_lets_go_in_an_idle_daemon(fresh):
    fresh.ctr("leases", "create", "--id", "short", "--expires", "2s")
    assert fresh.ctr("leases", "ls", "-q").stdout.split() == ["short"]
    until = time.monotonic() + 8
    while fresh.ctr("leases", "ls", "-q").stdout.split():
        assert time.monotonic() < until
        time.sleep(0.1)
