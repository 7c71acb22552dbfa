"""What a person pushes and tags with rctl, and what ctr pushes itself, read back by skopeo."""

import json
import subprocess

import pytest

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def raw(reference):
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def test_rctl_tags_and_pushes(daemon, pulled, registry):
    name = f"{registry.host}/e2e/pushed:1"
    assert daemon.rctl("tag", pulled, name).stdout == f"{name}\n"
    done = daemon.rctl("push", name)
    assert done.stdout == f"{name}\n"
    assert raw(name) == raw(pulled)
    other = f"{registry.host}/e2e/pushed:2"
    assert json.loads(daemon.rctl("-o", "json", "push", name, other).stdout)["name"] == other
    assert raw(other) == raw(pulled)


def test_an_image_that_is_not_here_cannot_be_pushed(daemon, registry):
    done = daemon.rctl("push", f"{registry.host}/e2e/nosuch:1", check=False)
    assert done.returncode == 1
    assert "e2e/nosuch:1" in done.stderr


def test_ctr_pushes_exports_and_imports_by_itself(daemon, busybox, registry, tmp_path):
    daemon.ctr("images", "pull", "--plain-http", busybox)
    name = f"{registry.host}/e2e/by-ctr:1"
    daemon.ctr("images", "push", "--plain-http", name, busybox)
    assert raw(name) == raw(busybox)
    archive = tmp_path / "image.tar"
    daemon.ctr("images", "export", archive, busybox)
    daemon.ctr("images", "rm", busybox)
    daemon.ctr("images", "import", archive)
    assert busybox in daemon.ctr("images", "ls", "-q").stdout.split()
    assert daemon.ctr("run", "--rm", busybox, "imported", "cat", "/etc/motd").stdout == "welcome\n"
