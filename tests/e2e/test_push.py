"""What a person pushes and tags with rctl, and what ctr pushes itself, read back by skopeo."""

import json
import subprocess

import grpc
import pytest

from runtimed.api import registry_pb2 as pb
from runtimed.api.registry_pb2_grpc import RegistryStub
from tests.fakes.registry import serving
from tests.images.layouts import OCI_MANIFEST, Layout, digest_of

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


def test_what_refers_to_an_image_is_listed_by_its_registry(daemon, busybox, registry, tmp_path):
    """Debian's registry has no list of referrers: the daemon keeps it under a tag when it pushes one."""
    layout = Layout(tmp_path / "layout")
    data = raw(busybox)
    repository = f"{registry.host}/e2e/busybox"
    for tag, kind in (("sbom", "text/spdx"), ("signature", "application/x-signature")):
        document = {
            **{"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind},
            **{"config": layout.blob(b"{}", "application/vnd.oci.empty.v1+json")},
            **{"layers": [layout.blob(tag.encode(), kind)], "annotations": {"made.by": tag}},
            **{"subject": {"mediaType": OCI_MANIFEST, "digest": digest_of(data), "size": len(data)}},
        }
        layout.tag(tag, layout.json(document, OCI_MANIFEST))
    with serving(layout.root, "artifacts") as source, grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        stub = RegistryStub(channel)
        assert stub.Referrers(pb.ReferrersRequest(reference=busybox)) == pb.ReferrersResponse(digest=digest_of(data))
        for tag in ("sbom", "signature"):
            daemon.rctl("pull", f"{source.host}/artifacts:{tag}")
            daemon.rctl("push", f"{source.host}/artifacts:{tag}", f"{repository}:{tag}")
        found = stub.Referrers(pb.ReferrersRequest(reference=busybox))
        assert found.digest == digest_of(data)
        assert {one.artifact_type: dict(one.annotations) for one in found.referrers} == {
            "text/spdx": {"made.by": "sbom"},
            "application/x-signature": {"made.by": "signature"},
        }
        for one in found.referrers:
            assert digest_of(raw(f"{repository}@{one.digest}")) == one.digest
            assert (one.media_type, one.size) == (OCI_MANIFEST, len(raw(f"{repository}@{one.digest}")))
        [only] = stub.Referrers(pb.ReferrersRequest(reference=busybox, artifact_type="text/spdx")).referrers
        assert only.annotations["made.by"] == "sbom"
        for reference, code in ((f"{repository}:nosuch", "NOT_FOUND"), ("not a reference", "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as failed:
                stub.Referrers(pb.ReferrersRequest(reference=reference))
            assert failed.value.code() is grpc.StatusCode[code]
    table = daemon.rctl("registry", "referrers", busybox).stdout
    assert "text/spdx" in table
    assert "application/x-signature" in table
