"""Containers made from checkpoints, as far as CRIU has no part in it; with it: vm/inside/test_cri_restore.py.

CRIU is a program here that fails, so that such a container can be created, and cannot be started.
"""

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.fakes.registry import FakeRegistry
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout, tar_of

pytestmark = [pytest.mark.root, pytest.mark.e2e]

DIFF = tar_of({"etc/passwd": b"root:x:0:0::/:\nsaved:x:77:78::/:\n", "etc/.wh.motd": b"", "etc/mine": b"mine"})
SAVED_LOG = b"2026-01-01T00:00:00.000000000Z stdout F begun\n"
MARK = "org.criu.checkpoint.container.name"


@pytest.fixture(scope="module")
def cri(busybox, tmp_path_factory):
    programs = tmp_path_factory.mktemp("programs")
    (programs / "criu").write_text("#!/bin/sh\necho 'no CRIU' >&2\nexit 1\n")
    (programs / "criu").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with cri_daemon("[cri]\ncheckpoint_images = true\n") as running:
            running.image = busybox
            running.pull(busybox)
            running.remove_pod(running.run_pod("first", network=pb.NODE))  # the pause image stays
            yield running


@pytest.fixture
def pod(cri):
    """A pod of the test's own; nothing of what is made in it stays behind it."""
    before = kept(cri)
    yield cri.run_pod("pod", network=pb.NODE)
    for one in cri.pods():
        cri.remove_pod(one.id)
    assert kept(cri) == before


def kept(cri):
    """Return the snapshots, the directories of containers and the mounts of the moment."""
    snapshots = ctr(cri, "snapshots", "ls").splitlines()[1:]
    paths = [*cri.daemon.root.glob("cri/containers/*"), *cri.daemon.state.glob("cri/mounts/*")]
    return sorted(line.split()[0] for line in snapshots), paths


def ctr(cri, *arguments):
    command = ["ctr", "--address", cri.daemon.address, "--namespace", "k8s.io", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def members(cri, **replaced):
    """Return the files of a checkpoint of a busybox container; *replaced* by their names, without what is None."""
    status = cri.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=cri.image))).image
    config = {"rootfsImage": cri.image, "rootfsImageName": cri.image, "rootfsImageRef": status.repo_digests[0]}
    spec = {"process": {"terminal": False}, "mounts": [{"destination": "/proc", "type": "proc"}]}
    files = {
        "config.dump": json.dumps({**config, **replaced.pop("config", {})}).encode(),
        "spec.dump": json.dumps({**spec, **replaced.pop("spec", {})}).encode(),
        "checkpoint/inventory.img": b"inventory",
        "checkpoint/pages-1.img": bytes(10_000),
        "rootfs-diff.tar": DIFF,
        "container.log": SAVED_LOG,
        **{name.replace("_", "."): content for name, content in replaced.items()},
    }
    return {name: content for name, content in files.items() if content is not None}


@pytest.fixture
def archive(cri, tmp_path):
    def make(**replaced):
        path = tmp_path / "checkpoint.tar"
        path.write_bytes(tar_of(members(cri, **replaced)))
        return str(path)

    return make


def of(cri, image, **options):
    return cri.container_config("restored", image=image, **options)


def upper(cri, id):
    """Return the directory of what a container has changed."""
    [mount] = ctr(cri, "snapshots", "mounts", "/nowhere", id).splitlines()
    return Path(next(part for part in mount.replace(" ", ",").split(",") if part.startswith("upperdir="))[9:])


def test_the_files_are_those_of_the_checkpoint_and_all_else_is_as_the_request_says(cri, pod, archive):
    image = archive()
    config = of(cri, image, annotations={"a": "b"})
    config.linux.security_context.run_as_username = "saved"
    id = cri.create(pod, config)
    assert cri.create(pod, config) == id  # a retry
    changed = upper(cri, id)
    assert (changed / "etc/mine").read_bytes() == b"mine"
    assert stat.S_ISCHR((changed / "etc/motd").lstat().st_mode)  # overlayfs' mark for what is deleted
    status = cri.status(id)
    assert (status.state, status.image.image, dict(status.annotations)) == (pb.CONTAINER_CREATED, cri.image, {"a": "b"})
    assert status.user.linux.uid == 77
    [listed] = cri.containers()
    assert (listed.image.image, listed.image_ref) == (cri.image, status.image_id)
    directory = cri.daemon.root / "cri/containers" / id / "restore"
    assert {path.name for path in directory.iterdir()} == {"config.dump", "spec.dump", "checkpoint", "container.log"}
    assert directory.stat().st_mode & 0o777 == 0o700
    # It is whole in itself from now on, also for another daemon.
    Path(image).unlink()
    cri.daemon.kill()
    cri.daemon.start()
    cri.reconnect()
    assert (cri.status(id).state, (directory / "checkpoint/inventory.img").read_bytes()) == (0, b"inventory")
    cri.remove(id)
    assert not directory.parent.exists()


def test_its_users_are_its_own_and_no_other_containers(cri, pod, archive):
    def create(name, image):
        config = cri.container_config(name, image=image)
        config.linux.security_context.run_as_username = "saved"
        return cri.create(pod, config)

    for name in ("before", "after"):
        with pytest.raises(grpc.RpcError, match="saved"):
            create(name, cri.image)
        assert cri.status(create(f"{name}-restored", archive())).user.linux.uid == 77


def test_one_that_criu_cannot_restore_has_ended_and_says_why(cri, pod, archive):
    id = cri.create(pod, of(cri, archive()))
    with pytest.raises(grpc.RpcError, match="criu"):
        cri.start(id)
    status = cri.status(id)
    assert (status.state, status.reason, status.exit_code) == (pb.CONTAINER_EXITED, "StartError", 128)
    assert Path(status.log_path).read_bytes().startswith(SAVED_LOG)  # and then why, by runc
    assert [path.name for path in Path(status.log_path).parent.iterdir()] == ["restored.log"]
    assert not (cri.daemon.root / "cri/containers" / id / "restore").exists()
    cri.remove(id)


def test_a_log_that_is_there_stays(cri, pod, archive, tmp_path):
    id = cri.create(pod, of(cri, archive()))
    log = Path(cri.status(id).log_path)
    log.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").write_text("of the host\n")
    log.unlink(missing_ok=True)
    log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(grpc.RpcError):
        cri.start(id)
    assert (tmp_path / "elsewhere").read_text() == "of the host\n"
    log.unlink()


def test_files_that_crio_names_as_deleted_are(cri, pod, archive):
    deleted = json.dumps(["/etc/motd", "data/numbers", "../../etc/group", "/", "nowhere/at/all"]).encode()
    id = cri.create(pod, of(cri, archive(deleted_files=deleted)))
    changed = upper(cri, id)
    for name in ("etc/motd", "etc/group", "data/numbers"):
        assert stat.S_ISCHR((changed / name).lstat().st_mode)
    assert not (changed / "nowhere").exists()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no image": ({"config": {"rootfsImageRef": "", "rootfsImage": "", "rootfsImageName": ""}}, {}, "of which image"),
    "absent image": (
        {"config": {"rootfsImageRef": "example.com/gone@sha256:" + "1" * 64, "rootfsImageName": "example.com/gone:1"}},
        {},
        r"it is of image example.com/gone@sha256:1+ \(example.com/gone:1\), which is not here: pull that first",
    ),
    "config": ({"config_dump": b"[" * 100_000}, {}, "checkpoint .*: config.dump: "),
    "no spec": ({"spec_dump": None}, {}, "has no spec.dump"),
    "lost mount": (
        {"spec": {"mounts": [{"destination": "/data/", "type": "bind"}, {"destination": "/x", "options": ["rbind"]}]}},
        {},
        "mounts that are not in the request: /data, /x; give",
    ),
    "new mount": (
        {},
        {"mounts": [pb.Mount(container_path="/new", host_path="/etc")]},
        "mounts that are in the request only: /new; give",
    ),
    "terminal": ({"spec": {"process": {"terminal": True}}}, {}, "it is of a container with a terminal; set tty so"),
    "layer": ({"rootfs-diff.tar": b"no layer" * 200}, {}, "checkpoint .*: .*rootfs-diff.tar.*tar:"),
    "escape": ({"rootfs-diff.tar": tar_of({"etc": "/", "etc/../../../x/.wh...": b""})}, {}, "whiteout"),
    "deleted": ({"deleted_files": b'["/etc/motd", 7]'}, {}, "deleted.files: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_of_one_that_cannot_be_made_nothing_stays(cri, pod, archive, case):
    replaced, options, said = REFUSED[case]
    before = kept(cri)
    with pytest.raises(grpc.RpcError, match=said):
        cri.create(pod, of(cri, archive(**replaced), **options))
    assert (kept(cri), cri.containers()) == (before, [])
    cri.create(pod, of(cri, archive()))  # its name is free


def test_an_archive_that_is_not_there_is_named(cri, pod):
    with pytest.raises(grpc.RpcError, match="checkpoint archive /nowhere/x.tar: No such file") as caught:
        cri.create(pod, of(cri, "/nowhere/x.tar"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture(params=["index", "manifest"])
def checkpoint_image(request, cri, tmp_path):
    """An image of a checkpoint, annotated where containerd looks (index) or CRI-O does (manifest)."""
    layout = Layout(tmp_path / "layout")
    layer = layout.layer(members(cri))
    if request.param == "index":
        layout.index("saved", [layout.manifest([layer], platform=PLATFORM)], annotations={MARK: "counts"})
    else:
        layout.image("saved", [layer], platform=PLATFORM, annotations={MARK: "counts"})
    with FakeRegistry() as registry:
        registry.add(layout.root, "checkpoint")
        name = f"{registry.host}/checkpoint:saved"
        cri.pull(name)
    yield name
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=TIMEOUT_S)


def test_an_image_is_a_checkpoint_by_its_annotation_and_what_it_was_of_is_pulled(cri, checkpoint_image):
    cri.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=cri.image)), timeout=TIMEOUT_S)
    pod = cri.run_pod("pod", network=pb.NODE)
    try:
        id = cri.create(pod, of(cri, checkpoint_image))
        assert (upper(cri, id) / "etc/mine").read_bytes() == b"mine"
        assert cri.status(id).image.image == cri.image
        assert (cri.daemon.root / "cri/containers" / id / "restore/checkpoint/pages-1.img").stat().st_size == 10_000
        assert f"{id}/checkpoint" not in ctr(cri, "snapshots", "ls")
    finally:
        cri.remove_pod(pod)
        cri.pull(cri.image)
