"""rctl's nouns for each service, for people and as JSON."""

import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api.containers_pb2 import Container, CreateContainerRequest
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.images_pb2 import CreateImageRequest, GetImageRequest, Image
from runtimed.api.images_pb2_grpc import ImagesStub

BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def ask(daemon, pulled):
    """What rctl says, as JSON."""
    return lambda *words: json.loads(daemon.rctl("-o", "json", *words).stdout)


def test_content(daemon, ask):
    data = b"of a test"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    put = daemon.rctl_command("content", "put", "-l", "containerd.io/gc.root=1", "--expected", digest)
    done = subprocess.run(put, input=data, capture_output=True, check=True)
    assert done.stdout.decode() == f"{digest}\n"
    (blob,) = ask("content", "ls", f"digest=={digest}")
    assert (blob["size"], blob["labels"]) == (len(data), {"containerd.io/gc.root": "1"})
    assert daemon.rctl("content", "get", digest).stdout.encode() == data
    assert ask("content", "label", digest, "a=b")["labels"]["a"] == "b"
    assert digest in daemon.rctl("content", "ls").stdout
    assert ask("content", "ingests") == []
    assert daemon.rctl("content", "abort", "none", check=False).returncode == 1
    daemon.rctl("content", "rm", digest)
    assert ask("content", "ls", f"digest=={digest}") == []


def test_leases(daemon, ask):
    made = ask("leases", "create", "--expires", "1h", "-l", "a=b", "of-a-test")
    assert {"a", "containerd.io/gc.expire"} == made["labels"].keys()
    assert [lease["id"] for lease in ask("leases", "ls", "id==of-a-test")] == ["of-a-test"]
    digest = ask("content", "ls")[0]["digest"]
    daemon.rctl("leases", "add", "of-a-test", "content", digest)
    assert ask("leases", "resources", "of-a-test") == [{"type": "content", "id": digest}]
    daemon.rctl("leases", "remove", "of-a-test", "content", digest)
    daemon.rctl("leases", "rm", "--sync", "of-a-test")
    refused = daemon.rctl("leases", "create", "--expires", "soon", check=False)
    assert "--expires 'soon'" in refused.stderr


def test_namespaces(daemon, ask):
    assert ask("namespaces", "create", "-l", "a=b", "made") == {"name": "made", "labels": {"a": "b"}}
    assert ask("namespaces", "label", "made", "a=", "c=d")["labels"] == {"c": "d"}
    assert {"made", daemon.namespace} <= {one["name"] for one in ask("namespaces", "ls")}
    daemon.rctl("namespaces", "rm", "made")
    refused = daemon.rctl("namespaces", "rm", daemon.namespace, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")


def test_snapshots(daemon, ask, pulled):
    daemon.run("--rm", pulled, "--", "true")
    daemon.run(pulled, "written", "sh", "-c", "echo x > /new")
    assert [one["kind"] for one in ask("snapshots", "ls", "name==written")] == ["active"]
    (tree,) = ask("snapshots", "tree")
    depth = 0
    while tree["children"]:
        (tree,), depth = tree["children"], depth + 1
    assert (tree["name"], depth) == ("written", 3)
    assert daemon.rctl("snapshots", "tree").stdout.splitlines()[-1].startswith("      written  ")
    assert ask("snapshots", "usage", "written")["written"]["inodes"] > 0
    assert daemon.rctl("snapshots", "mounts", "written", "/mnt").stdout.startswith("mount -t overlay overlay /mnt -o ")
    layer = subprocess.run(daemon.rctl_command("snapshots", "diff", "written"), capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert "new" in {name.lstrip("./") for name in archive.getnames()}
    parent = ask("snapshots", "ls", "name==written")[0]["parent"]
    layer = subprocess.run(daemon.rctl_command("snapshots", "diff", parent), capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert "etc/motd" in {name.lstrip("./") for name in archive.getnames()}
    assert daemon.rctl("snapshots", "rm", parent, check=False).returncode == 1
    assert len(ask("snapshots", "ls")) == 4  # no view is left
    daemon.rctl("rm", "written")


def test_plugins_mounts_and_sandboxes(daemon, ask):
    (plugin,) = ask("plugins", "type==io.containerd.snapshotter.v1,id==overlayfs")
    assert plugin["error"] is None
    assert "io.containerd.snapshotter.v1" in daemon.rctl("plugins").stdout
    for noun in ("mounts", "sandboxes"):
        assert ask(noun, "ls") == []
        assert daemon.rctl(noun, "ls").returncode == 0
        assert "not found" in daemon.rctl(noun, "rm", "none", check=False).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    script = subprocess.run([BIN / "rctl", "completion", shell], capture_output=True, text=True, check=True).stdout
    assert "_RCTL_COMPLETE" in script
    environment = {
        "_RCTL_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "rctl sn",
        "COMP_CWORD": "sn" if shell == "fish" else "1",
        "PATH": "/bin",
    }
    done = subprocess.run([BIN / "rctl"], env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"\bsnapshots\b", done.stdout)


def test_names_are_completed(daemon, pulled):
    def completed(*words, begun=""):
        environment = {
            "_RCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": shlex.join(["rctl", "-a", str(daemon.address), *words, begun]),
            "COMP_CWORD": str(len(words) + 3),
            "RUNTIMED_NAMESPACE": daemon.namespace,
            "PATH": "/bin",
        }
        done = subprocess.run([BIN / "rctl"], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    daemon.run(pulled, "ended", "true")
    with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        images, metadata = ImagesStub(channel), [("containerd-namespace", daemon.namespace)]
        target = images.Get(GetImageRequest(name=pulled), metadata=metadata).image.target
        for name in ("docker.io/library/short:1", "$(reboot)"):
            images.Create(CreateImageRequest(image=Image(name=name, target=target)), metadata=metadata)
    assert completed("rm") == ["ended"]
    assert completed("rm", "ended") == []
    assert completed("exec", begun="en") == ["ended"]
    assert completed("exec", begun="x") == []
    assert set(completed("rmi")) == {pulled, "short:1"}  # a shell would run the other one
    assert completed("rmi", begun="docker.io/") == ["docker.io/library/short:1"]
    assert set(completed("inspect")) == {"ended", pulled, "short:1"}
    assert daemon.namespace in completed("-n")
    assert completed("-n", "none", "rm") == []
    daemon.rctl("rm", "ended")
    daemon.rctl("rmi", "short:1", "$(reboot)")


def test_containers_are_listed_however_large_their_specs_are(daemon, pulled):
    spec = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b" " * (1 << 20) + b"{}")
    ids = {f"large-{number}" for number in range(20)}  # more than a message of 16 MiB takes
    with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        containers, metadata = ContainersStub(channel), [("containerd-namespace", daemon.namespace)]
        for id in ids:
            record = Container(id=id, runtime=Container.Runtime(name="io.containerd.runc.v2"), spec=spec)
            containers.Create(CreateContainerRequest(container=record), metadata=metadata)
    assert set(daemon.rctl("ps", "-aq").stdout.split()) == ids
    assert daemon.rctl("gc", "plan").returncode == 0
    daemon.rctl("rm", *ids)
