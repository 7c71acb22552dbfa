import pytest

from runtimed.images.naming import Rule, names
from runtimed.oci.descriptor import Descriptor

DIGEST = "sha256:" + "a" * 64
FULL, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"


@pytest.mark.parametrize(
    ("annotations", "rule", "expected"),
    [
        ({REF: "1"}, Rule(prefix="app"), ["app:1"]),
        ({REF: "app:1"}, Rule(prefix="app"), ["app:1"]),
        ({REF: "app/x:1"}, Rule(prefix="app"), ["app/x:1"]),
        ({REF: "apple:1"}, Rule(prefix="app"), []),
        ({REF: "other:1"}, Rule(prefix="app", is_overwritten=True), ["other:1"]),
        ({REF: "1", FULL: "other:1"}, Rule(prefix="app", is_overwritten=True), ["other:1"]),
        ({REF: "1", FULL: "other:1"}, Rule(prefix="app"), []),
        ({FULL: "1"}, Rule(prefix="app"), []),  # not a full name
        ({}, Rule(prefix="app"), []),
        ({}, Rule(prefix="app", add_digest=True), [f"app@{DIGEST}"]),
        ({REF: "1"}, Rule(prefix="app", add_digest=True), ["app:1", f"app@{DIGEST}"]),
        ({REF: "1"}, Rule(prefix="app", add_digest=True, only_if_unnamed=True), ["app:1"]),
        ({}, Rule(prefix="app", add_digest=True, only_if_unnamed=True), [f"app@{DIGEST}"]),
        ({REF: "1"}, Rule(prefix=""), []),
    ],
)
def test_names_follow_from_annotations_and_rules(annotations, rule, expected):
    assert names(Descriptor(digest=DIGEST, size=1, annotations=annotations), [rule]) == expected


def test_several_rules_name_an_image_once_each():
    entry = Descriptor(digest=DIGEST, size=1, annotations={REF: "b:1"})
    rules = [Rule(prefix="a", is_overwritten=True), Rule(prefix="b"), Rule(prefix="c", add_digest=True)]
    assert names(entry, rules) == ["b:1", f"c@{DIGEST}"]
