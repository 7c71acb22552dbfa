"""Joining a cgroup, in a tree that looks like the kernel's."""

import json
import os
import time

import pytest

from runtimed.errors import FailedPrecondition, InvalidArgument
from shim import cgroup


def test_in_the_unified_hierarchy_there_is_one_file_to_write(tmp_path):
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cgroup.procs").touch()
    cgroup.join("/a/b", 1234, tmp_path)
    assert (tmp_path / "a" / "b" / "cgroup.procs").read_text() == "1234"


def test_else_one_in_each_hierarchy_that_has_it(tmp_path):
    for controller in ("cpu", "memory", "pids"):
        (tmp_path / controller / "a").mkdir(parents=True)
    for controller in ("cpu", "memory"):
        (tmp_path / controller / "a" / "cgroup.procs").touch()
    (tmp_path / "link").symlink_to("cpu")
    cgroup.join("/a", 1234, tmp_path)
    assert (tmp_path / "memory" / "a" / "cgroup.procs").read_text() == "1234"
    assert not (tmp_path / "pids" / "a" / "cgroup.procs").exists()


def test_one_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FailedPrecondition, match="'/a': create it before the task"):
        cgroup.join("/a", 1234, tmp_path)


@pytest.mark.parametrize("path", ["a", "/a/../..", "../a"])
def test_a_path_that_leaves_the_tree_is_refused(tmp_path, path):
    with pytest.raises(InvalidArgument):
        cgroup.join(path, 1234, tmp_path)


def bundle_of(path, cgroup):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": cgroup}}))
    return str(path)


def test_the_cgroup_of_a_container_that_was_not_made_is_removed(tmp_path):
    root = tmp_path / "cgroups"
    (root / "cpu").mkdir(parents=True)
    bundle = bundle_of(tmp_path / "b", "/pods/c1")
    cgroup.note_others(bundle, str(root))
    (root / "memory" / "pods" / "c1").mkdir(parents=True)
    cgroup.remove_left(bundle, root)
    assert sorted(path.name for path in root.rglob("*")) == ["cpu", "memory", "pods"]


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_cgroup_that_was_there_before_stays_whatever_the_time_of_day(tmp_path, hours):
    """A clock that is set leaves cgroups from the past and from the future."""
    root = tmp_path / "cgroups"
    before = root / "memory" / "pods" / "c1"
    before.mkdir(parents=True)
    bundle = bundle_of(tmp_path / "b", "/pods/c1")
    cgroup.note_others(bundle, str(root))
    os.utime(before, (time.time() + hours * 3600,) * 2)
    (root / "cpu" / "pods" / "c1").mkdir(parents=True)
    os.utime(root / "cpu" / "pods" / "c1", (time.time() - hours * 3600,) * 2)
    cgroup.remove_left(bundle, root)
    assert before.exists()
    assert not (root / "cpu" / "pods" / "c1").exists()


def test_a_note_of_an_earlier_attempt_does_not_count(tmp_path):
    root = tmp_path / "cgroups"
    (root / "memory" / "pods" / "c1").mkdir(parents=True)
    bundle = bundle_of(tmp_path / "b", "/pods/c1")
    cgroup.note_others(bundle, str(root))
    (root / "memory" / "pods" / "c1").rmdir()
    cgroup.note_others(bundle, str(root))
    (root / "memory" / "pods" / "c1").mkdir()
    cgroup.remove_left(bundle, root)
    assert not (root / "memory" / "pods" / "c1").exists()


def test_a_path_may_be_written_in_any_way_that_json_has(tmp_path):
    root = tmp_path / "cgroups"
    (root / "memory" / 'a"b').mkdir(parents=True)
    bundle = bundle_of(tmp_path / "b", "")
    text = '{"process": {"env": ["\\"cgroupsPath\\": \\"/x\\""]}, "linux": {"cgroupsPath" :\t"\\/a\\"\\u0062"}}'
    (tmp_path / "b" / "config.json").write_text(text)
    cgroup.note_others(bundle, str(root))
    cgroup.remove_left(bundle, root)
    assert (root / "memory" / 'a"b').exists()


@pytest.mark.parametrize("path", ["", "system.slice:runc:c1", "relative", "/a/../..", 5])
def test_a_cgroup_that_is_named_otherwise_is_left_alone(tmp_path, path):
    root = tmp_path / "cgroups"
    bundle = bundle_of(tmp_path / "b", path)
    root.mkdir()
    cgroup.note_others(bundle, str(root))
    (root / "memory").mkdir()
    cgroup.remove_left(bundle, root)
    assert (root / "memory").exists()
