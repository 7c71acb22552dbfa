import json
import time

import pytest

from runtimed.errors import InvalidArgument, Unimplemented
from runtimed.oci import digest, manifest
from runtimed.oci.descriptor import Descriptor

D1, D2, D3 = ("sha256:" + c * 64 for c in "123")
CONFIG = {"mediaType": manifest.OCI_CONFIG, "digest": D1, "size": 10}
LAYER = {"mediaType": f"{manifest.OCI_LAYER}+gzip", "digest": D2, "size": 20}
MANIFEST = {"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
ENTRY = {"mediaType": manifest.OCI_MANIFEST, "digest": D1, "size": 10}
INDEX = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [ENTRY]}


def encoded(document):
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def children(document, media_type=manifest.OCI_MANIFEST):
    data = encoded(document)
    return manifest.children(Descriptor(media_type=media_type, digest=digest.of(data), size=len(data)), data)


def parsed_config(document):
    data = encoded(document)
    return manifest.parse_config(Descriptor(digest=digest.of(data), size=len(data)), data)


def test_a_manifest_has_its_config_and_layers_as_children():
    assert [child.digest for child in children(MANIFEST)] == [D1, D2]


def test_an_index_has_its_entries_as_children():
    assert [child.digest for child in children(INDEX, manifest.OCI_INDEX)] == [D1]


def test_a_layer_has_no_children():
    assert children(b"anything", manifest.OCI_LAYER) == ()


@pytest.mark.parametrize(
    "change",
    [{"layers": None}, {"layers": []}, {"annotations": None}, {"annotations": {"a": "b"}}, {"unknown": [[{}]]}],
)
def test_unknown_and_null_fields_do_no_harm(change):
    assert children(MANIFEST | change)[0].digest == D1


def test_a_document_may_leave_its_media_type_out():
    assert len(children({k: v for k, v in MANIFEST.items() if k != "mediaType"})) == 2


def test_of_a_repeated_key_the_last_counts():
    layers = json.dumps([LAYER]).encode()
    data = encoded(MANIFEST)[:-1] + b', "layers": [], "layers": ' + layers + b"}"
    assert [child.digest for child in children(data)] == [D1, D2]


@pytest.mark.parametrize(
    ("document", "media_type", "why"),
    [
        (MANIFEST | {"manifests": [ENTRY]}, manifest.OCI_MANIFEST, "a manifest and an index at once"),
        (INDEX | {"layers": []}, manifest.OCI_INDEX, "a manifest and an index at once"),
        (INDEX | {"config": CONFIG}, manifest.OCI_INDEX, "a manifest and an index at once"),
        (MANIFEST, manifest.DOCKER_MANIFEST, "says it is .* but was referred to as"),
        (INDEX, manifest.OCI_MANIFEST, "says it is"),
        ({"schemaVersion": 2, "manifests": [ENTRY]}, manifest.OCI_MANIFEST, "does not have the shape"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": []}, manifest.OCI_INDEX, "does not have the shape"),
        ({"schemaVersion": 1, "fsLayers": []}, manifest.OCI_MANIFEST, "schema 1, which is no longer supported"),
        (MANIFEST | {"schemaVersion": 3}, manifest.OCI_MANIFEST, "schemaVersion is 3"),
        (MANIFEST | {"config": None}, manifest.OCI_MANIFEST, "Expected `object`"),
        ({"schemaVersion": 2, "layers": []}, manifest.OCI_MANIFEST, "missing required field `config`"),
        (MANIFEST | {"layers": [LAYER | {"digest": "sha256:../../x"}]}, manifest.OCI_MANIFEST, "not of the form"),
        (MANIFEST | {"layers": [LAYER | {"size": -1}]}, manifest.OCI_MANIFEST, "is negative"),
        (MANIFEST | {"layers": [LAYER | {"size": "big"}]}, manifest.OCI_MANIFEST, "Expected `int`"),
        (MANIFEST | {"layers": [LAYER] * 10_001}, manifest.OCI_MANIFEST, "more than 10000"),
        (b"", manifest.OCI_MANIFEST, "truncated"),
        (b"{", manifest.OCI_MANIFEST, "truncated"),
        (b"<html>", manifest.OCI_MANIFEST, "malformed"),
        (b"[]", manifest.OCI_MANIFEST, "Expected `object`"),
        (encoded(MANIFEST)[:-1] + b', "x": "\xff"}', manifest.OCI_MANIFEST, "not UTF-8"),
        (encoded(MANIFEST)[:-1] + b', "x": NaN}', manifest.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST)[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", manifest.OCI_MANIFEST, "deep"),
        (encoded(MANIFEST)[:-1] + b" " * (4 << 20) + b"}", manifest.OCI_MANIFEST, "larger than 4194304 bytes"),
    ],
)
def test_a_hostile_document_is_refused_with_the_reason(document, media_type, why):
    with pytest.raises(InvalidArgument, match=why) as caught:
        children(document, media_type)
    assert len(str(caught.value)) < 400


def test_a_large_document_is_parsed_in_no_time():
    data = encoded(MANIFEST)[:-1] + b', "x": [' + b"{}," * 1_000_000 + b"{}]}"
    started = time.perf_counter()
    children(data)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (MANIFEST, manifest.OCI_MANIFEST),
        (INDEX, manifest.OCI_INDEX),
        ({"schemaVersion": 2, "manifests": []}, manifest.OCI_INDEX),
        ({"schemaVersion": 2, "config": CONFIG}, manifest.OCI_MANIFEST),
        (MANIFEST | {"mediaType": manifest.DOCKER_MANIFEST}, manifest.DOCKER_MANIFEST),
    ],
)
def test_the_media_type_is_what_the_document_says_or_looks_like(document, media_type):
    assert manifest.media_type_of(encoded(document), "x") == media_type


def test_schema_1_is_refused_by_its_media_type():
    document = {"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    with pytest.raises(InvalidArgument, match="schema 1"):
        manifest.media_type_of(encoded(document), "x")


@pytest.mark.parametrize(
    ("media_type", "why"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "is foreign"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is foreign"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "not an image layer"),
        ("", "not an image layer"),
    ],
)
def test_a_layer_that_cannot_be_unpacked_is_named(media_type, why):
    layer = Descriptor(media_type=media_type, digest=D2, size=1, urls=("http://169.254.169.254/",))
    with pytest.raises(Unimplemented, match=why) as caught:
        manifest.check_layers(Descriptor(digest=D1, size=1), [layer])
    assert D2 in str(caught.value)


def test_an_image_config_gives_platform_and_diff_ids():
    config = parsed_config(
        {
            "os": "linux",
            "architecture": "arm",
            "variant": "v7",
            "rootfs": {"type": "layers", "diff_ids": [D1, D2]},
            "config": {"Env": None, "Cmd": ["/bin/sh"], "Labels": {"a": "b"}, "Volumes": {"/x": {}}, "Healthcheck": {}},
            "history": [{"created_by": "x"}],
        }
    )
    assert (config.platform.architecture, config.platform.variant) == ("arm", "v7")
    assert config.rootfs.diff_ids == (D1, D2)
    assert config.config is not None
    assert config.config.cmd == ("/bin/sh",)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"os": "linux"}, "missing required field `rootfs`"),
        ({"rootfs": {"type": "squashfs", "diff_ids": []}}, "rootfs type 'squashfs'"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}}, "not of the form"),
        ({"rootfs": {"type": "layers"}, "config": {"User": 5}}, "Expected `str | null`"),
    ],
)
def test_a_bad_image_config_is_refused(document, why):
    with pytest.raises(InvalidArgument, match=why):
        parsed_config(document)


def test_chain_ids_follow_the_image_spec():
    one = D1
    two = digest.of(f"{one} {D2}".encode())
    three = digest.of(f"{two} {D3}".encode())
    assert manifest.chain_ids([D1, D2, D3]) == [one, two, three]
    assert manifest.chain_ids([]) == []
