"""Docker with containerd's image store, and its BuildKit, on a daemon of ours: images, layers and leases are all ours.

Debian 13's dockerd has both; `make test-docker`.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.dockerd import IMAGE, Dockerd, private_dockerd
from tests.registry import Registry

RECOVERS_WITHIN_S = 40.0
CONFIGURATION = {"features": {"containerd-snapshotter": True}, "storage-driver": "overlayfs"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as running:
        yield running


class HostsNetwork(Dockerd):
    """It is where the registry is, and changes nothing there."""

    def command(self) -> list[str]:
        command = super().command()
        return [*command[command.index("dockerd") + 1 :], "--bridge=none"]


@pytest.fixture(scope="module")
def docker(daemon: PrivateDaemon) -> Iterator[Dockerd]:
    with private_dockerd(daemon, daemon.base / "docker", kind=HostsNetwork, configuration=CONFIGURATION) as running:
        yield running
    for group in Path("/sys/fs/cgroup").glob(f"*/{daemon.cgroup_parent.lstrip('/')}/buildkit"):
        group.rmdir()  # dockerd leaves that


def run(docker: Dockerd, image: str, *command: str) -> str:
    return docker.out("run", "--rm", "--network=none", image, *command)


def test_its_images_are_the_daemons(docker: Dockerd, daemon: PrivateDaemon) -> None:
    assert docker.out("info", "--format", "{{.Driver}} {{.DriverStatus}}") == (
        "overlayfs [[driver-type io.containerd.snapshotter.v1]]"
    )
    assert run(docker, IMAGE, "echo", "hello") == "hello"
    assert f"docker.io/library/{IMAGE}:latest" in images(daemon)


def test_a_container_is_committed_saved_and_loaded(docker: Dockerd, tmp_path: Path) -> None:
    id = docker.out("run", "--detach", "--network=none", IMAGE, "sleep", "1000")
    docker("exec", id, "sh", "-c", "echo written > /file; rm /etc/passwd")
    assert sorted(docker.out("diff", id).splitlines()) == ["A /file", "C /etc", "D /etc/passwd"]
    docker("commit", id, "made:1")
    docker("save", "--output", tmp_path / "made.tar", "made:1")
    docker("rmi", "made:1")
    docker("load", "--input", tmp_path / "made.tar")
    assert run(docker, "made:1", "sh", "-c", "cat /file; test -e /etc/passwd || echo gone") == "written\ngone"
    docker("rm", "--force", id)


def images(daemon: PrivateDaemon) -> list[str]:
    """Return the names that Docker's images have in the daemon."""
    listed = daemon.rctl("--namespace", "moby", "-o", "json", "images").stdout
    return [image["name"] for image in json.loads(listed)]


def build(docker: Dockerd, context: Path, name: str, text: str) -> None:
    context.mkdir(exist_ok=True)
    (context / "a").write_text(text)
    (context / "Dockerfile").write_text(
        f'FROM {IMAGE}\nCOPY a /a\nRUN echo "$(cat /a), built" > /b && rm /etc/passwd\nCMD ["cat", "/b"]\n'
    )
    docker("buildx", "build", "--network=none", "--progress=plain", "--tag", name, context, timeout=120)


def test_an_image_is_built_by_buildkit(docker: Dockerd, tmp_path: Path) -> None:
    build(docker, tmp_path / "context", "built:1", "one")
    assert run(docker, "built:1") == "one, built"
    assert run(docker, "built:1", "sh", "-c", "test -e /etc/passwd || echo gone") == "gone"
    build(docker, tmp_path / "context", "built:2", "two")
    assert run(docker, "built:2") == "two, built"


def test_an_image_is_pushed_and_pulled(docker: Dockerd, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/docker/pushed:1"
    build(docker, tmp_path / "context", name, "pushed")
    docker("push", name)
    docker("rmi", name)
    docker("pull", name)
    assert run(docker, name) == "pushed, built"


def test_the_next_build_works_when_the_daemon_is_back(docker: Dockerd, daemon: PrivateDaemon, tmp_path: Path) -> None:
    build(docker, tmp_path / "context", "before:1", "before")
    daemon.stop()
    daemon.start()
    deadline = time.monotonic() + RECOVERS_WITHIN_S
    while docker("system", "df", check=False).returncode:  # its connection is tried again now and then
        assert time.monotonic() < deadline
    build(docker, tmp_path / "context", "after:1", "after")
    assert run(docker, "after:1") == "after, built"
    assert run(docker, "before:1") == "before, built"


def test_what_is_removed_is_gone_from_the_daemon(docker: Dockerd, daemon: PrivateDaemon) -> None:
    docker("system", "df", "--verbose")
    docker("image", "prune", "--all", "--force")
    docker("builder", "prune", "--all", "--force")
    assert docker.out("images", "--quiet") == ""
    assert images(daemon) == []
