from pathlib import Path

import pytest

from runtimed.diff.stacks import read_only, top_layer
from runtimed.mounts import Mount


def bind(source, *options):
    return Mount("bind", source, options=options or ("rbind", "ro"))


def overlay(*lower, upper=""):
    options = [f"lowerdir={':'.join(lower)}", "index=off"]
    if upper:
        options += [f"upperdir={upper}", "workdir=/work"]
    return Mount("overlay", "overlay", options=tuple(options))


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ([bind("/1")], [overlay("/1", upper="/2")], "/2"),  # a container on an image of one layer
        ([overlay("/2", "/1")], [overlay("/2", "/1", upper="/3")], "/3"),
        ([overlay("/2", "/1")], [overlay("/3", "/2", "/1")], "/3"),  # committed
        ([bind("/1")], [overlay("/2", "/1")], "/2"),
        ([bind("/1")], [overlay("/3", "/2", "/1")], None),  # two layers
        ([bind("/other")], [overlay("/1", upper="/2")], None),
        ([], [overlay("/1", upper="/2")], None),
        ([bind("/1")], [bind("/2", "rbind", "rw")], None),
        ([bind("/1")], [Mount("overlay", "overlay", options=("lowerdir=/1", "upperdir=/2", "index=on"))], None),
        ([bind("/1"), bind("/x")], [overlay("/1", upper="/2")], None),
        ([bind("/1")], [Mount("overlay", "overlay", "below", options=("lowerdir=/1", "upperdir=/2"))], None),
        ([Mount("erofs", "/image")], [overlay("/1", upper="/2")], None),
    ],
)
def test_a_tree_that_is_another_and_one_layer(lower, upper, expected):
    assert top_layer(lower, upper) == (Path(expected) if expected else None)


def test_an_upperdir_becomes_a_lowerdir_and_nothing_is_written():
    [mount] = read_only([overlay(r"/a\:b", "/1", upper="/2:x")])
    assert set(mount.options) == {r"lowerdir=/2\:x:/a\:b:/1", "index=off", "ro"}
    [mount] = read_only([bind("/1", "rbind", "rw")])
    assert mount.options == ("rbind", "ro")
