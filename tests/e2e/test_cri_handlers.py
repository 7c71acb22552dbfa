"""Runtime handlers with another snapshotter than the default one's, and images that may not be used."""

import http.client
import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.fakes.registry import FakeRegistry
from tests.images.busybox import NAME, PLATFORM, busybox
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SETTINGS = """[cri.runtimes.other]
snapshotter = "native"
[image_verification]
directory = "{0}"
[metrics]
address = "{0}/metrics.sock"
"""
VERIFIER = """#!/bin/sh
case "$2" in *forbidden*) echo no signature of ours; exit 1;; esac
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The directory of the verifier, and of the socket for metrics."""
    path = tmp_path_factory.mktemp("node")
    (path / "policy").write_text(VERIFIER)
    (path / "policy").chmod(0o755)
    return path


@pytest.fixture(scope="module")
def cri(programs):
    with cri_daemon(SETTINGS.format(programs)) as running:
        for handler in ("", "other"):  # the pause image stays: what is counted below is the tests' own
            running.remove_pod(running.run_pod("first", handler, network=pb.NODE))
        yield running


@pytest.fixture
def image(registry, tmp_path, request):
    """The reference of a busybox image."""
    layout = busybox(tmp_path / "layout")
    return registry.push(layout, f"handlers/{request.node.name.replace('_', '-')}:1", source=NAME)


def pull(cri, image, handler=""):
    request = pb.PullImageRequest(image=pb.ImageSpec(image=image, runtime_handler=handler))
    return cri.images.PullImage(request, timeout=TIMEOUT_S).image_ref


def remove(cri, image):
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=TIMEOUT_S)


def ctr(cri, *arguments):
    """Return what ctr says of the namespace of Kubernetes."""
    command = ["ctr", "--address", str(cri.daemon.address), "--namespace", "k8s.io", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


def snapshots(cri, snapshotter):
    """Return the names of the layers there are."""
    lines = ctr(cri, "snapshots", "--snapshotter", snapshotter, "ls").splitlines()[1:]
    return {line.split()[0] for line in lines if "Committed" in line}


def used(cri):
    """Return the bytes that images and containers take, by snapshotter."""
    found = cri.images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=TIMEOUT_S).image_filesystems
    return {one.fs_id.mountpoint.rpartition("/")[2]: one.used_bytes.value for one in found}


def metrics(programs):
    """Return what Prometheus is told, by name and labels."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    with closing(connection):
        connection.sock.connect(str(programs / "metrics.sock"))
        connection.request("GET", "/v1/metrics", headers={"Connection": "close"})
        lines = connection.getresponse().read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def run(cri, pod, image, *mounts):
    """Run a container until it says what it sees."""
    config = cri.container_config("main", "exec sleep 600", image=image, mounts=mounts)
    container = cri.create(pod, config)
    cri.start(container)
    return container


def test_an_image_that_is_pulled_for_a_handler_is_unpacked_where_that_has_its_layers(cri, image):
    before = used(cri)
    assert set(before) == {"overlayfs", "native"}
    layers = snapshots(cri, "overlayfs")
    pull(cri, image, "other")
    assert snapshots(cri, "overlayfs") == layers
    assert used(cri)["native"] > before["native"]
    pod = cri.run_pod("pod", "other", network=pb.NODE)
    container = run(cri, pod, image)
    assert cri.shell(container, "echo hello > /file; cat /file") == "hello\n"
    assert cri.container_info(container)["snapshotter"] == "native"
    assert any((cri.daemon.root / "snapshotters/native").rglob("file"))
    cri.remove_pod(pod)
    remove(cri, image)


def test_an_image_that_was_pulled_for_no_handler_runs_with_each_and_is_freed_from_all(cri, image):
    there = snapshots(cri, "overlayfs"), snapshots(cri, "native")
    pull(cri, image)
    pods = [cri.run_pod(f"pod-{handler}", handler, network=pb.NODE) for handler in ("", "other")]
    volume = pb.Mount(container_path="/image", image=pb.ImageSpec(image=image), readonly=True)
    for pod in pods:
        container = run(cri, pod, image, volume)
        assert cri.shell(container, "ls /image/bin/busybox") == "/image/bin/busybox\n"
    assert snapshots(cri, "native") > there[1]
    for pod in pods:
        cri.remove_pod(pod)
    remove(cri, image)
    assert (snapshots(cri, "overlayfs"), snapshots(cri, "native")) == there


def test_how_far_a_pull_is_can_be_seen_while_it_runs(cri, programs, tmp_path):
    def pulls_told():
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
        of_image = cri.images.ImageStatus(request, timeout=TIMEOUT_S)
        info = cri.runtime.Status(pb.StatusRequest(verbose=True), timeout=TIMEOUT_S).info
        assert not of_image.HasField("image")
        assert json.loads(of_image.info["pulls"]) == json.loads(info["pulls"])
        return json.loads(info["pulls"])

    layout = Layout(tmp_path / "layout")
    layer = layout.layer({"etc/test": b"slow"})
    layout.image("1", [layer], platform=PLATFORM)
    with FakeRegistry() as registry, ThreadPoolExecutor(1) as threads:
        registry.add(layout.root, "slow")
        name = f"{registry.host}/slow:1"
        fault = registry.hold(layer.digest)
        pulling = threads.submit(pull, cri, name)
        try:
            assert fault.reached.wait(TIMEOUT_S)
            [told] = pulls_told()
            assert (told["image"], told["unpackedLayers"]) == (name, 0)
            assert told["totalBytes"] - told["fetchedBytes"] == layer.descriptor["size"]
            measured = metrics(programs)
            assert measured["runtimed_image_pulls_running"] == 1
            assert measured['runtimed_image_pulls_running_bytes{state="fetched"}'] == told["fetchedBytes"] > 0
            assert measured['runtimed_image_pulls_running_bytes{state="total"}'] == told["totalBytes"]
        finally:
            fault.let_go()
        pulling.result()
    assert json.loads(cri.runtime.Status(pb.StatusRequest(verbose=True), timeout=TIMEOUT_S).info["pulls"]) == []
    assert metrics(programs)["runtimed_image_pulls_running"] == 0
    remove(cri, name)


def test_where_layers_are_not_kept_any_more_who_needs_them_is_told_to_pull(cri, registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    layer = layout.layer({"etc/test": b"dropped"})
    layout.image("one", [layer], platform=PLATFORM, run={"Cmd": ["/x"]})
    name = registry.push(layout.root, "handlers/dropped:1", source="one")
    pull(cri, name)
    ctr(cri, "content", "rm", layer.digest)
    pod = cri.run_pod("pod", "other", network=pb.NODE)
    config = cri.container_config("main", image=name)
    with pytest.raises(grpc.RpcError) as failed:
        cri.create(pod, config)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert f"image {name} is not unpacked for snapshotter 'native', and blob {layer.digest} of it" in str(failed.value)
    pull(cri, name, "other")
    cri.create(pod, config)
    cri.remove_pod(pod)
    remove(cri, name)


def test_a_handler_that_is_not_configured_gets_no_image(cri, image):
    with pytest.raises(grpc.RpcError) as failed:
        pull(cri, image, "missing")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "runtime handler 'missing' is not configured" in str(failed.value)


def test_an_image_that_a_verifier_refuses_is_an_error_with_its_reason_and_nothing_of_it_is_kept(
    cri, registry, tmp_path
):
    layout = Layout(tmp_path / "layout")
    target = layout.image("one", [layout.layer({"etc/test": b"forbidden"})], platform=PLATFORM)
    name = registry.push(layout.root, "handlers/forbidden:1", source="one")
    there = snapshots(cri, "overlayfs")
    for _ in range(2):  # a no is not kept: it is asked again
        with pytest.raises(grpc.RpcError) as failed:
            pull(cri, name)
        assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "refused by the verifier policy: no signature of ours" in str(failed.value)
        assert name in str(failed.value)
    found = cri.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name)), timeout=TIMEOUT_S)
    assert not found.HasField("image")
    assert target["digest"] not in ctr(cri, "content", "ls", "-q")
    assert snapshots(cri, "overlayfs") == there
