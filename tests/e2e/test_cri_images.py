"""runtime.v1.ImageService over the daemon's socket, with a real registry."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.fakes.registry import FakeRegistry
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout, digest_of

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def cri():
    with cri_daemon() as running:
        yield running


@pytest.fixture
def image(registry, tmp_path, request):
    """The reference of a small image of the test's own, with a user as the test says."""
    layout = Layout(tmp_path / "layout")
    user = getattr(request, "param", "")
    layer = layout.layer({"etc/test": request.node.name.encode()})
    layout.image("one", [layer], platform=PLATFORM, run={"User": user} if user else {})
    name = digest_of(request.node.name.encode()).removeprefix("sha256:")[:12]
    return registry.push(layout.root, f"cri/t{name}:1", source="one")


def pull(cri, name, **auth):
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name), auth=pb.AuthConfig(**auth))
    return cri.images.PullImage(request, timeout=TIMEOUT_S).image_ref


def status(cri, name, **options):
    return cri.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name), **options), timeout=TIMEOUT_S)


def remove(cri, name):
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=TIMEOUT_S)


def listed(cri, name=""):
    request = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=name)) if name else None)
    return cri.images.ListImages(request, timeout=TIMEOUT_S).images


def test_every_way_to_name_an_image_gives_one_identity(cri, image):
    id = pull(cri, image)
    found = status(cri, image).image
    assert found.id == id
    assert list(found.repo_tags) == [image]
    [by_digest] = found.repo_digests
    assert by_digest.startswith(image.rpartition(":")[0] + "@sha256:")
    assert found.size > 0
    for name in (by_digest, id, id.removeprefix("sha256:"), id[7:20]):
        assert status(cri, name).image.id == id, name
    assert id in [one.id for one in listed(cri)]
    assert [one.id for one in listed(cri, image)] == [id]


def test_an_image_pulled_by_digest_has_no_tags(cri, image):
    [by_digest] = (status(cri, pull(cri, image)).image.repo_digests,)[0]
    remove(cri, image)
    id = pull(cri, by_digest)
    found = status(cri, id).image
    assert (list(found.repo_tags), list(found.repo_digests)) == ([], [by_digest])


@pytest.mark.parametrize("by", ["tag", "digest", "id"])
def test_removing_by_any_name_removes_all_of_them(cri, image, by):
    id = pull(cri, image)
    names = {"tag": image, "digest": status(cri, image).image.repo_digests[0], "id": id}
    remove(cri, names[by])
    for name in names.values():
        assert not status(cri, name).HasField("image")
    assert not listed(cri, id)


def test_five_removals_at_once_all_succeed(cri, image):
    id = pull(cri, image)
    with ThreadPoolExecutor(5) as threads:
        for done in [threads.submit(remove, cri, name) for name in (image, id, image, id, image)]:
            done.result()
    assert not status(cri, id).HasField("image")


def test_what_is_not_here_has_no_status_and_can_be_removed(cri):
    assert not status(cri, "registry.example/never:1").HasField("image")
    assert not status(cri, "sha256:" + "0" * 64).HasField("image")
    remove(cri, "registry.example/never:1")
    assert not listed(cri, "registry.example/never:1")


def test_a_name_that_cannot_be_is_refused(cri):
    for call in (lambda: status(cri, ""), lambda: status(cri, "a/UPPER"), lambda: pull(cri, "a b")):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_pull_of_what_the_registry_does_not_have_says_so(cri, registry):
    with pytest.raises(grpc.RpcError) as failed:
        pull(cri, f"{registry.host}/cri/none:1")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert "cri/none:1" in str(failed.value)


@pytest.mark.parametrize(
    ("image", "uid", "name"),
    [
        ("1003:1004", 1003, ""),
        ("1002", 1002, ""),
        ("www-data:1004", None, "www-data"),
        ("+0", None, "+0"),
        ("99999999999", None, "99999999999"),
        ("", None, ""),
    ],
    indirect=["image"],
)
def test_the_user_of_an_image_is_a_number_or_a_name(cri, image, uid, name):
    found = status(cri, pull(cri, image)).image
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, name)


def test_a_verbose_status_holds_the_image_config(cri, image):
    info = json.loads(status(cri, pull(cri, image), verbose=True).info["info"])
    assert info["chainID"] == info["imageSpec"]["rootfs"]["diff_ids"][0]
    assert not status(cri, image).info


def test_the_file_system_says_what_images_take(cri, image):
    pull(cri, image)
    [usage] = cri.images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=TIMEOUT_S).image_filesystems
    assert usage.fs_id.mountpoint == str(cri.daemon.root / "snapshotters/overlayfs")
    assert usage.used_bytes.value > 0
    assert usage.inodes_used.value > 0
    assert usage.timestamp > 0


def test_the_stream_of_images_is_the_list(cri, image):
    pull(cri, image)
    stream = cri.images.StreamImages(pb.StreamImagesRequest(), timeout=TIMEOUT_S)
    streamed = [one for some in stream for one in some.images]
    assert streamed == list(listed(cri))


def test_pulls_at_once_get_one_answer(cri, image):
    with ThreadPoolExecutor(4) as threads:
        ids = {one.result() for one in [threads.submit(pull, cri, image) for _ in range(4)]}
    assert len(ids) == 1


def test_what_is_pulled_is_in_the_namespace_that_containerds_clients_look_in(cri, image):
    pull(cri, image)
    cri.daemon.namespace, own = "k8s.io", cri.daemon.namespace
    try:
        assert image in cri.daemon.ctr("images", "ls", "-q").stdout.split()
    finally:
        cri.daemon.namespace = own


def test_credentials_come_with_the_request_and_only_count_for_their_server(cri, tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image("1", [layout.layer({"secret": b"x"})], platform=PLATFORM)
    with FakeRegistry(auth="basic", users={"ann": "pass:word"}) as registry:
        registry.add(layout.root, "cri/private")
        name = f"{registry.host}/cri/private:1"
        both = base64.b64encode(b"ann:pass:word").decode()
        refused = [
            {},
            {"username": "ann", "password": "wrong"},
            {"auth": both, "server_address": "https://elsewhere.example/v1/"},
        ]
        for auth in refused:
            with pytest.raises(grpc.RpcError) as failed:
                pull(cri, name, **auth)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as failed:
            pull(cri, name, auth="not base64")
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        for auth in ({"username": "ann", "password": "pass:word"}, {"auth": both, "server_address": registry.host}):
            id = pull(cri, name, **auth)
            remove(cri, id)
