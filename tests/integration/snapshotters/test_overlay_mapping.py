"""Layers whose owners are shown as others, for containers in user namespaces; of both kinds of layer."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument
from runtimed.labels import SNAPSHOT_GID_MAPPING, SNAPSHOT_UID_MAPPING
from runtimed.mounts import Mount, mounted_temporarily
from runtimed.snapshots.conformance import commit_layer
from runtimed.snapshots.snapshotter import Snapshotter
from snapshotters.overlay import OverlaySnapshotter
from tests.integration.snapshotters.packing import PackingOverlaySnapshotter

pytestmark = pytest.mark.root

MAPPED = {SNAPSHOT_UID_MAPPING: "0:100000:65536", SNAPSHOT_GID_MAPPING: "0:200000:65536"}


@pytest.fixture(params=["directories", "files"])
def overlay(request, tmp_path: Path) -> Iterator[Snapshotter]:
    root = tmp_path / "root"
    if request.param == "files":
        made: OverlaySnapshotter = PackingOverlaySnapshotter(root)
    else:
        made = OverlaySnapshotter(root, OverlaySnapshotter.Config(layers="directories"))
    with closing(made):
        assert made.capabilities == ("remap-ids",)
        yield made


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def commit_owned(overlay: Snapshotter, name: str, parent: str, files: dict[str, int]) -> None:
    with mounted_temporarily(overlay.prepare(f"active {name}", parent, {})) as root:
        for path, id in files.items():
            (root / path).write_text(path)
            os.chown(root / path, id, id)
    overlay.commit(name, f"active {name}", {})


@pytest.mark.parametrize("layers", [1, 3])
def test_owners_of_the_layers_are_shown_as_the_labels_say(overlay, layers):
    parent = ""
    for number in range(layers):
        commit_owned(overlay, f"layer {number}", parent, {f"root-{number}": 0, f"user-{number}": 1000})
        parent = f"layer {number}"
    mounts = overlay.prepare("container", parent, MAPPED)
    assert overlay.mounts("container") == mounts
    with mounted_temporarily(mounts) as root:
        assert owner(root) == (100000, 200000)
        for number in range(layers):
            assert owner(root / f"root-{number}") == (100000, 200000)
            assert owner(root / f"user-{number}") == (101000, 201000)
        # What is copied up keeps its owner, and so does what a container's root makes.
        with (root / "user-0").open("a") as file:
            file.write("changed")
        assert owner(root / "user-0") == (101000, 201000)
        (root / "new").write_text("x")
        os.chown(root / "new", 100000, 200000)
    with mounted_temporarily(overlay.mounts("container")) as root:
        assert owner(root / "new") == (100000, 200000)
        assert (root / "user-0").read_text() == "user-0changed"
    with mounted_temporarily(overlay.view("mapped view", parent, MAPPED)) as root:
        assert owner(root / "user-0") == (101000, 201000)
    with mounted_temporarily(overlay.prepare("other", parent, {})) as root:
        assert owner(root / "user-0") == (1000, 1000)


def test_an_empty_snapshot_belongs_to_the_containers_root(overlay):
    with mounted_temporarily(overlay.prepare("container", "", MAPPED)) as root:
        assert owner(root) == (100000, 200000)


def test_several_ranges_and_ids_outside_of_them(overlay):
    commit_owned(overlay, "base", "", {"root": 0, "user": 1000, "far": 70000})
    maps = "0:100000:1000,1000:5000:1"
    with mounted_temporarily(
        overlay.prepare("container", "base", {SNAPSHOT_UID_MAPPING: maps, SNAPSHOT_GID_MAPPING: maps})
    ) as root:
        assert owner(root / "root") == (100000, 100000)
        assert owner(root / "user") == (5000, 5000)
        assert owner(root / "far") == (65534, 65534)


@pytest.mark.parametrize("map", ["", "0", "0:1", "0:1:0", "a:b:c", "0:-1:5", "0:1:99999999999", "0:1:1;0:2:2"])
def test_a_map_that_is_none_is_refused_and_nothing_is_left(overlay, map):
    commit_layer(overlay, "base", "", {})
    with pytest.raises(InvalidArgument, match="is not an ID map such as 0:100000:65536"):
        overlay.prepare("container", "base", {SNAPSHOT_UID_MAPPING: map, SNAPSHOT_GID_MAPPING: "0:1:1"})
    assert [info.name for info in overlay.list()] == ["base"]


def test_only_what_has_owners_of_its_own_is_mapped(tmp_path):
    mount = Mount("tmpfs", "tmpfs", options=("uidmap=0:1:1", "gidmap=0:1:1"))
    with pytest.raises(InvalidArgument, match="only an overlay or a bind mount maps IDs"), mounted_temporarily([mount]):
        pass
