import pytest

from runtimed import labels
from runtimed.errors import InvalidArgument


def test_no_mask_replaces_all_labels():
    assert labels.updated({"a": "1"}, {"b": "2"}, []) == {"b": "2"}


def test_a_mask_of_labels_replaces_all_labels():
    assert labels.updated({"a": "1"}, {"b": "2"}, ["labels"]) == {"b": "2"}


def test_a_mask_sets_one_label_whose_key_has_dots_and_slashes():
    given = {"containerd.io/gc.ref.content.l.0": "sha256:x", "other": "not meant"}
    result = labels.updated({"a": "1"}, given, ["labels.containerd.io/gc.ref.content.l.0"])
    assert result == {"a": "1", "containerd.io/gc.ref.content.l.0": "sha256:x"}


def test_a_label_set_to_nothing_is_removed():
    assert labels.updated({"a": "1", "b": "2"}, {"a": ""}, ["labels.a"]) == {"b": "2"}
    assert labels.updated({"a": "1", "b": "2"}, {}, ["labels.a"]) == {"b": "2"}


@pytest.mark.parametrize("path", ["size", "labels.", "label.x", "digest"])
def test_another_path_is_refused(path):
    with pytest.raises(InvalidArgument, match="cannot update"):
        labels.updated({}, {}, [path])


def test_a_label_that_is_too_long_is_refused():
    with pytest.raises(InvalidArgument, match="4096"):
        labels.updated({}, {"k": "v" * 4096}, [])
