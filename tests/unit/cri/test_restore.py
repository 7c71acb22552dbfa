"""Who may restore what, and which image a checkpoint is of; what comes of it stands in e2e/test_cri_restore.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import restore
from runtimed.errors import FailedPrecondition, NotFound, PermissionDenied

REF = "example.com/base@sha256:" + "1" * 64


def core(*, is_runc: bool = True, allowed: bool = True, images: Any = None) -> Any:
    return SimpleNamespace(
        settings=SimpleNamespace(checkpoint_images=allowed),
        handlers=SimpleNamespace(get=lambda name: SimpleNamespace(is_runc=is_runc)),
        images=images,
    )


def sandbox(**options: Any) -> Any:
    return SimpleNamespace(handler="h", snapshotter="overlayfs", namespace_options=pb.NamespaceOption(**options))


@pytest.fixture
def criu(tmp_path, monkeypatch):
    (tmp_path / "criu").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "criu"


MAPPED = pb.UserNamespace(
    mode=pb.POD,
    uids=[pb.IDMapping(host_id=65536, container_id=0, length=65536)],
    gids=[pb.IDMapping(host_id=65536, container_id=0, length=65536)],
)


@pytest.mark.usefixtures("criu")
def test_what_cannot_be_restored_is_refused_with_the_remedy():
    restore._require(core(allowed=False), sandbox(), "/archive")
    restore._require(core(), sandbox(), "image", is_image=True)
    with pytest.raises(
        PermissionDenied, match="image saved is the checkpoint .* cri.checkpoint_images = true to allow"
    ):
        restore._require(core(allowed=False), sandbox(), "saved", is_image=True)
    with pytest.raises(FailedPrecondition, match="runtime handler 'h' cannot restore; runc can"):
        restore._require(core(is_runc=False), sandbox(), "/archive")
    with pytest.raises(FailedPrecondition, match="no pod with a user namespace can have it; set hostUsers: true"):
        restore._require(core(), sandbox(userns_options=MAPPED), "/archive")


def test_without_criu_none_is_created(criu):
    criu.unlink()
    with pytest.raises(FailedPrecondition, match="checkpoint /archive: needs criu; install it"):
        restore._require(core(), sandbox(), "/archive")


class Images:
    """Knows what is here, and notes what is pulled."""

    def __init__(self, *here):
        self.here = here
        self.pulled = []

    async def find(self, name):
        return name if name in self.here else None

    async def pull(self, name, auth, snapshotter):
        self.pulled.append(name)
        return name


def config(ref="", image="", name=""):
    return restore._Config(rootfs_image_ref=ref, rootfs_image=image, rootfs_image_name=name)


async def test_it_is_the_very_image_that_the_checkpoint_names():
    images = Images(REF, "base:1", "f" * 64)

    async def find(config: Any) -> Any:
        return await restore._base(core(images=images), sandbox(), config, is_pulled=False)

    assert await find(config(ref=REF, image="base:1")) == REF
    assert await find(config(image="f" * 64, name="base:1")) == "f" * 64
    assert await find(config(name="base:1")) == "base:1"
    with pytest.raises(NotFound, match=r"it is of image other@sha256:2 \(base:1\), which is not here"):
        await find(config(ref="other@sha256:2", name="base:1"))  # the name may be another image's by now


@pytest.mark.parametrize(
    ("ref", "is_pulled", "pulled"),
    [(REF, True, [REF]), (REF, False, []), ("example.com/base:1", True, []), ("2" * 64, True, []), ("\n", True, [])],
)
async def test_only_by_its_digest_and_for_an_image_it_is_pulled(ref, is_pulled, pulled):
    images = Images()
    found = restore._base(core(images=images), sandbox(), config(ref=ref), is_pulled=is_pulled)
    if pulled:
        assert await found == ref
    else:
        with pytest.raises(NotFound, match="pull that first"):
            await found
    assert images.pulled == pulled
