from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimed.errors import InvalidArgument
from runtimed.filters import parse

RECORD = {
    "name": "docker.io/library/busybox:latest",
    "namespace": "moby",
    "topic": "/tasks/exit",
    "type": "io.containerd.snapshotter.v1",
    "id": "overlayfs",
    "target.digest": "sha256:aa",
}
LABELS = {
    "org.mobyproject.image.parent": "sha256:bb",
    "containerd.io/uncompressed": "sha256:cc",
    "containerd.io/snapshot/cri.image-layers": "sha256:1,sha256:2",
    "plain": 'with "quotes"',
    "moby/prune.images": "yes",
}


def field(path):
    if path[0] == "labels":
        return LABELS.get(".".join(path[1:]))
    return RECORD.get(".".join(path))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "name",
        "id==overlayfs",
        "id!=native",
        "nothing!=x",
        "namespace==moby,topic~=|^/tasks/|",
        "topic~=/^.tasks/",
        'topic=="/tasks/exit"',
        "topic==/tasks/exit",
        'type=="io.containerd.snapshotter.v1"',
        "type==io.containerd.snapshotter.v1, id==overlayfs",
        "  type == io.containerd.snapshotter.v1 ,id==overlayfs  ",
        "target.digest==sha256:aa,labels.org.mobyproject.image.parent",
        "labels.org.mobyproject.image.parent==sha256:bb",
        'labels."containerd.io/uncompressed"==sha256:cc',
        'labels."moby/prune.images"',
        'labels."containerd.io/snapshot/cri.image-layers"=="sha256:1,sha256:2"',
        r'labels.plain=="with \"quotes\""',
        r'labels.plain=="with \x22quotes\u0022"',
        "name~=busybox",
        r"name~=^docker\.io/",
        'name~="^docker.io/"',
        "nothing~=^$",
        'namespace==moby,topic~=|^/tasks/|,id',
    ],
)  # fmt: skip
def test_a_filter_that_matches(expression):
    assert parse([expression]).match(field)


@pytest.mark.parametrize(
    "expression",
    [
        "nothing",
        "labels.nothing",
        "id==native",
        "id!=overlayfs",
        "topic~=|^tasks|",
        "id==overlayfs,name==other",
        "labels.containerd==x",
        "nothing==x",
        'name=="docker.io"',
    ],
)
def test_a_filter_that_does_not_match(expression):
    assert not parse([expression]).match(field)


def test_no_filter_matches_everything():
    assert parse([]).match(lambda path: None)


def test_of_several_filters_one_must_match():
    several = parse(["type==io.containerd.runtime.v1", "type==io.containerd.snapshotter.v1"])
    assert several.match(field)
    assert not several.match(lambda path: "other")


def test_select_keeps_the_records_that_match():
    records = [{"id": "a"}, {"id": "b"}]
    assert parse(["id==b"]).select(records, lambda record, path: record.get(path[0])) == [{"id": "b"}]
    assert parse([]).select(records, lambda record, path: None) == records


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("==x", "expected a field name"),
        ("name=x", "unknown operator"),
        ("name===x", "unknown operator"),
        ("name<x", "unknown operator"),
        ("name==", "expected a value"),
        ("name==a b", "expected a comma"),
        ("name==a,", "after the comma"),
        (",", "expected a field name"),
        ("name.", "expected a field name"),
        ('name=="x', 'no closing "'),
        ('labels."x', 'no closing "'),
        ("name~=|x", "no closing |"),
        (r'name=="\q"', "unknown escape"),
        (r'name=="\ud800"', "is no character"),
        ("name~=(", "regular expression"),
        ("name" + "," * 3, "expected a field name"),
        ("a,a" * 60_000, "longer than"),
        ("a," * 2_000 + "a", "more than 1000"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_place(expression, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        parse([expression])


@given(st.text(alphabet='ab."\\|/~=!,() \t*+[]{}^$', max_size=30))
def test_any_text_is_a_filter_or_refused(text):
    with suppress(InvalidArgument):
        parse([text]).match(field)


def test_a_value_with_any_character_can_be_quoted():
    value = 'a,b "c" \\ |d| \n é'
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert parse([f'name=="{quoted}"']).match(lambda path: value)
