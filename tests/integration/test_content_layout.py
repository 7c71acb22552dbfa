"""The content store as other tools see it: skopeo copies images out of it."""

import json
import shutil
import subprocess

import pytest

from runtimed.content.local import LocalStore
from runtimed.metadata import images
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.oci import digest
from runtimed.oci.descriptor import Descriptor

pytestmark = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def content(tmp_path):
    database = Database(tmp_path / "metadata.db")
    yield Content(database, LocalStore(tmp_path / "content"))
    database.close()


def add(content, media_type, data, namespace="ns"):
    with content.begin(namespace, f"ref-{digest.of(data)}") as ingest:
        ingest.write(data)
        info = ingest.commit()
    return {"mediaType": media_type, "digest": info.digest, "size": info.size}


def add_image(content, name, layer):
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest.of(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add(content, CONFIG, json.dumps(config | {"author": name}).encode()),
        "layers": [add(content, LAYER, layer)],
    }
    target = add(content, MANIFEST, json.dumps(manifest).encode())
    descriptor = Descriptor(media_type=MANIFEST, digest=target["digest"], size=target["size"])
    content._db.submit(images.create, "ns", Image(name=name, target=descriptor)).result()
    content.write_index()
    return target["digest"]


@pytest.mark.parametrize("name", ["docker.io/library/busybox:latest", "localhost:5000/a/b:1.0", "plain"])
def test_skopeo_copies_an_image_by_its_name(content, tmp_path, name):
    layer = b"\0" * 1024  # an empty tar archive
    expected = add_image(content, name, layer)
    assert add_image(content, "other/image:1", b"\0" * 2048) != expected
    copy = tmp_path / "copy"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{content.store.root}:{name}", f"dir:{copy}"],
        check=True,
        capture_output=True,
    )
    assert digest.of((copy / "manifest.json").read_bytes()) == expected
    assert (copy / digest.of(layer).removeprefix("sha256:")).read_bytes() == layer


def test_skopeo_finds_no_image_that_was_deleted(content, tmp_path):
    add_image(content, "a:1", b"\0" * 1024)
    content._db.submit(images.delete, "ns", "a:1").result()
    content.write_index()
    inspected = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{content.store.root}:a:1"], check=False, capture_output=True
    )
    assert inspected.returncode != 0
