"""What rctl does with images that are here: check, usage, mount, unmount, convert."""

import json
import subprocess

import pytest

from tests.images.archives import oci_archive
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_a_pulled_image_is_complete_and_unpacked(daemon, pulled):
    [found] = json.loads(daemon.rctl("-o", "json", "images", "check", "--read", pulled).stdout)
    assert (found["name"], found["is_complete"], found["is_unpacked"], found["blobs"]) == (pulled, True, True, 5)
    assert "complete  5/5" in daemon.rctl("images", "check").stdout


def test_a_blob_that_is_missing_or_damaged_is_named(fresh, busybox):
    fresh.rctl("pull", busybox)
    layers = json.loads(fresh.rctl("-o", "json", "inspect", busybox).stdout)
    digest = layers["manifest"]["layers"][0]["digest"]
    blob = fresh.root / "content/blobs/sha256" / digest.partition(":")[2]
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
    assert fresh.rctl("images", "check").returncode == 0  # not read
    done = fresh.rctl("images", "check", "--read", check=False)
    assert done.returncode == 1
    assert f"{digest} is damaged; get it anew with: rctl pull {busybox}" in done.stderr

    fresh.ctr("content", "rm", digest)
    done = fresh.rctl("-o", "json", "images", "check", check=False)
    assert done.returncode == 1
    [found] = json.loads(done.stdout)
    assert not found["is_complete"]
    assert [digest in what for what in found["wrong"]] == [True]


def test_usage_is_told_by_layer(daemon, pulled):
    rows = json.loads(daemon.rctl("-o", "json", "images", "usage", pulled).stdout)
    assert len(rows) == 3
    assert all(row["size"] > 0 and row["inodes"] > 0 for row in rows)
    assert len(daemon.rctl("images", "usage", pulled).stdout.splitlines()) == 4


@pytest.mark.parametrize("options", [[], ["--rw"]])
def test_an_image_is_mounted_and_unmounted(daemon, pulled, tmp_path, options):
    where = tmp_path / "image"
    where.mkdir()
    before = daemon.ctr("snapshots", "ls").stdout
    assert daemon.rctl("images", "mount", *options, pulled, where).stdout == f"{where}\n"
    try:
        assert (where / "etc/motd").read_text() == "welcome\n"
        if options:
            (where / "written").write_text("x")
        else:
            with pytest.raises(OSError, match="Read-only"):
                (where / "written").write_text("x")
        daemon.rctl("gc", "run")
        assert (where / "etc/motd").read_text() == "welcome\n"
        again = daemon.rctl("images", "mount", pulled, where, check=False)
        assert again.returncode == 1
        assert "mounted on" in again.stderr
    finally:
        assert daemon.rctl("images", "unmount", where).stdout == f"{where}\n"
    assert list(where.iterdir()) == []
    assert daemon.ctr("snapshots", "ls").stdout == before
    assert daemon.ctr("leases", "ls", "-q").stdout == ""


def test_a_mount_that_went_by_other_means_can_be_forgotten(daemon, pulled, tmp_path):
    before = daemon.ctr("snapshots", "ls").stdout
    daemon.rctl("images", "mount", pulled, tmp_path)
    subprocess.run(["umount", tmp_path], check=True, timeout=20)
    daemon.rctl("images", "mount", pulled, tmp_path)
    daemon.rctl("images", "unmount", tmp_path)
    assert daemon.ctr("snapshots", "ls").stdout == before
    done = daemon.rctl("images", "unmount", tmp_path, check=False)
    assert done.returncode == 1
    assert f"no image is mounted on {tmp_path}" in done.stderr


def test_only_a_directory_can_be_mounted_on(daemon, pulled, tmp_path):
    done = daemon.rctl("images", "mount", pulled, tmp_path / "nosuch", check=False)
    assert done.returncode == 1
    assert "is not a directory; make it with" in done.stderr


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_an_image_is_converted_and_runs(daemon, pulled, registry, compression):
    name = f"{registry.host}/e2e/{compression}:1"
    assert daemon.rctl("images", "convert", "--to", compression, pulled, name).stdout == f"{name}\n"
    try:
        before, after = (json.loads(daemon.rctl("-o", "json", "inspect", one).stdout) for one in (pulled, name))
        suffix = "tar" if compression == "none" else compression
        kinds = {layer["mediaType"].rpartition("." if compression == "none" else "+")[2] for layer in
                 after["manifest"]["layers"]}  # fmt: skip
        assert kinds == {suffix}
        assert after["config"] == before["config"]
        daemon.rctl("gc", "run")
        [found] = json.loads(daemon.rctl("-o", "json", "images", "check", "--read", name).stdout)
        assert found["is_complete"]
        assert found["is_unpacked"]  # snapshots are of what is in the layers
        assert daemon.run("--rm", name, "--", "cat", "/etc/motd").stdout == "welcome\n"
        daemon.rctl("push", name)  # and a registry takes it
    finally:
        daemon.rctl("rmi", name)


def test_the_platforms_that_are_not_chosen_are_left_out(daemon, registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    other = "linux/s390x"
    manifests = [layout.manifest([layout.layer({"a": one.encode()})], platform=one) for one in (PLATFORM, other)]
    layout.index("example.org/two:1", manifests)
    (tmp_path / "two.tar").write_bytes(oci_archive(layout))
    daemon.rctl("images", "import", "--all-platforms", "--no-unpack", tmp_path / "two.tar")
    try:
        daemon.rctl("images", "convert", "example.org/two:1", "example.org/one:1")
        daemon.rctl("images", "convert", "--all-platforms", "example.org/two:1", "example.org/both:1")
        made = {image["name"]: image for image in json.loads(daemon.rctl("-o", "json", "images").stdout)}
        assert made["example.org/one:1"]["media_type"].endswith("image.manifest.v1+json")
        assert made["example.org/both:1"]["media_type"].endswith("image.index.v1+json")
        daemon.rctl("images", "check", "--platform", other, "example.org/both:1")
        refused = daemon.rctl("images", "check", "--platform", other, "example.org/one:1", check=False)
        assert refused.returncode == 1
        assert "nothing for linux/s390x" in refused.stderr
    finally:
        for name in ("two", "one", "both"):
            daemon.rctl("rmi", f"example.org/{name}:1", check=False)
