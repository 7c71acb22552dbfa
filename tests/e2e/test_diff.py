"""Layers of what a container has changed, made by the daemon for ctr."""

import gzip

import pytest

from tests.images.archives import members_of

pytestmark = [pytest.mark.root, pytest.mark.e2e]

CHANGE = "echo changed > /etc/motd; rm /etc/passwd; mkdir -p /srv/a; echo new > /srv/a/b; ln /srv/a/b /srv/a/c"
MOUNTPOINTS = {"dev", "proc", "sys"}  # runc makes them in an image that has none


@pytest.fixture
def changed(daemon, pulled):
    """A container that runs and has changed its root file system."""
    daemon.run("-d", pulled, "changed", "sleep", "600")
    try:
        daemon.rctl("exec", "changed", "sh", "-c", CHANGE)
        yield "changed"
    finally:
        daemon.rctl("rm", "-f", "changed")


def test_ctr_shows_what_a_running_container_has_changed(daemon, changed):
    key = daemon.ctr("containers", "info", changed).stdout.partition('"SnapshotKey": "')[2].partition('"')[0]
    layer = daemon.ctr("snapshots", "diff", key, text=False).stdout
    members = members_of(gzip.decompress(layer))
    found = [name for name in members if name not in MOUNTPOINTS]
    assert found == ["etc", "etc/motd", "etc/.wh.passwd", "srv", "srv/a", "srv/a/b", "srv/a/c"]
    assert members["etc/motd"] == b"changed\n"
    assert members["srv/a/b"] == b"new\n"


def test_a_layer_that_ctr_keeps_can_be_read_from_the_content_store(daemon, changed):
    before = set(daemon.ctr("content", "ls", "-q").stdout.split())
    key = daemon.ctr("containers", "info", changed).stdout.partition('"SnapshotKey": "')[2].partition('"')[0]
    media_type = "application/vnd.oci.image.layer.v1.tar"
    daemon.ctr("snapshots", "diff", "--keep", "--media-type", media_type, "--label", "containerd.io/gc.root=x", key)
    [digest] = set(daemon.ctr("content", "ls", "-q").stdout.split()) - before
    assert "etc/.wh.passwd" in members_of(daemon.ctr("content", "get", digest, text=False).stdout)
    daemon.ctr("content", "rm", digest)
