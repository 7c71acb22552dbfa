"""Every label that garbage collection knows, and the references without one."""

import time

import pytest

from runtimed.gcgraph import Graph, Node

NOW = 1_800_000_000 * 10**9
PAST, FUTURE = "2026-11-24T05:00:00Z", "2100-01-01T00:00:00.5+01:00"
OVERLAY = "snapshots/overlayfs"


@pytest.fixture
def graph():
    """Roots of each kind, and a record of each kind that nothing refers to."""
    graph = Graph(NOW)
    graph.image("ns", "image", "target", {})
    graph.image("ns", "expired", "expired's", {"containerd.io/gc.expire": PAST})
    graph.container("ns", "container", "overlayfs", "container's", {})
    for digest in ("target", "expired's", "blob", "flat's"):
        graph.blob("ns", digest, {})
    for key, parent in (("base", ""), ("container's", "base"), ("snapshot", ""), ("child", "snapshot")):
        graph.snapshot("ns", "overlayfs", key, parent, {})
    graph.ingest("ns", "ingest", "", NOW - 1)
    return graph


def dead(graph):
    graph.mark()
    return {node.id for node in graph.dead()}


DEAD = {"expired", "expired's", "blob", "flat's", "snapshot", "child", "ingest"}


def test_what_nothing_refers_to_is_dead(graph):
    assert dead(graph) == DEAD


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("containerd.io/gc.ref.content", "blob", {"blob"}),
        ("containerd.io/gc.ref.content.config", "blob", {"blob"}),
        ("containerd.io/gc.ref.content/x", "blob", {"blob"}),
        ("containerd.io/gc.ref.contents", "blob", set()),
        ("containerd.io/gc.ref.snapshot.overlayfs", "child", {"child", "snapshot"}),
        ("containerd.io/gc.ref.snapshot.overlayfs/x", "child", {"child", "snapshot"}),
        ("containerd.io/gc.ref.snapshot.native", "child", set()),
        ("containerd.io/gc.ref.image", "expired", {"expired", "expired's"}),
        ("containerd.io/gc.ref.content", "not there", set()),
        ("example.org/gc.ref.content", "blob", set()),
    ],
)
@pytest.mark.parametrize("holder", ["image", "container", "blob", "snapshot"])
def test_a_label_on_what_is_live_holds_what_it_names(graph, key, value, kept, holder):
    match holder:
        case "image":
            graph.image("ns", "image", "target", {key: value})
        case "container":
            graph.container("ns", "container", "overlayfs", "container's", {key: value})
        case "blob":
            graph.blob("ns", "target", {key: value})
        case "snapshot":
            graph.snapshot("ns", "overlayfs", "base", "", {key: value})
    assert dead(graph) == DEAD - kept


@pytest.mark.parametrize(
    ("key", "value", "is_held"),
    [
        ("containerd.io/gc.bref.content", "target", True),
        ("containerd.io/gc.bref.content.x", "blob", False),
        ("containerd.io/gc.bref.image", "image", True),
        ("containerd.io/gc.bref.image/x", "expired", False),
        ("containerd.io/gc.bref.container", "container", True),
        ("containerd.io/gc.bref.snapshot.overlayfs", "base", True),
        ("containerd.io/gc.bref.snapshot.overlayfs/x", "child", False),
        ("containerd.io/gc.root", "any value", True),
        ("containerd.io/gc.expire", FUTURE, True),
        ("containerd.io/gc.expire", PAST, False),
        ("containerd.io/gc.expire", "tomorrow", False),
    ],
)
def test_a_label_by_which_a_blob_or_a_snapshot_is_held_itself(graph, key, value, is_held):
    graph.blob("ns", "labelled", {key: value})
    graph.snapshot("ns", "native", "labelled too", "", {key: value})
    assert dead(graph) == DEAD | (set() if is_held else {"labelled", "labelled too"})


@pytest.mark.parametrize(
    ("marks", "held"),
    [
        ({}, {"blob", "flat's", "child", "snapshot", "expired", "expired's", "ingest"}),
        ({"containerd.io/gc.flat": "1"}, {"blob", "child", "snapshot", "expired", "expired's", "ingest"}),
        (
            {"containerd.io/gc.expire": FUTURE},
            {"blob", "flat's", "child", "snapshot", "expired", "expired's", "ingest"},
        ),
        (
            {"containerd.io/gc.expire": "never"},
            {"blob", "flat's", "child", "snapshot", "expired", "expired's", "ingest"},
        ),
        ({"containerd.io/gc.expire": PAST}, set()),
    ],
)
def test_a_lease_holds_its_resources_until_it_expires(graph, marks, held):
    graph.blob("ns", "blob", {"containerd.io/gc.ref.content": "flat's"})
    resources = [("content", "blob"), (OVERLAY, "child"), ("images", "expired"), ("ingests", "ingest")]
    graph.lease("ns", "lease", marks, resources)
    assert dead(graph) == (DEAD - held) | (set() if held else {"lease"})


def test_an_ingest_holds_the_blob_that_it_is_about_to_become(graph):
    graph.ingest("ns", "young", "blob", NOW + 1)
    assert dead(graph) == DEAD - {"blob"}
    assert graph.next_expiry == NOW + 1


def test_another_namespace_holds_nothing(graph):
    graph.image("other", "image", "blob", {"containerd.io/gc.ref.snapshot.overlayfs": "child"})
    assert dead(graph) == DEAD


def test_what_refers_comes_before_what_it_refers_to(graph):
    graph.mark()
    order = [node.id for node in graph.dead()]
    assert order.index("child") < order.index("snapshot")
    assert order.index("expired") < order.index("expired's")


def test_circles_end_and_die_together():
    graph = Graph(NOW)
    graph.blob("ns", "a", {"containerd.io/gc.ref.content": "b"})
    graph.blob("ns", "b", {"containerd.io/gc.ref.content": "a"})
    assert dead(graph) == {"a", "b"}
    graph.spare([Node("ns", "content", "a")])
    assert graph.dead() == []


def test_what_is_spared_takes_along_what_it_has_come_to_refer_to(graph):
    assert "blob" in dead(graph)
    graph.image("ns", "image", "blob", {})
    graph.spare([Node("ns", "images", "image")])
    assert graph.is_live(Node("ns", "content", "blob"))


def test_the_chain_leads_from_a_root_with_the_reason_of_each_step(graph):
    graph.blob("ns", "target", {"containerd.io/gc.ref.snapshot.overlayfs": "child"})
    graph.mark()
    chain = graph.chain(Node("ns", OVERLAY, "snapshot"))
    assert [(node.id, reason) for node, reason in chain] == [
        ("image", ""),
        ("target", "target"),
        ("child", "containerd.io/gc.ref.snapshot.overlayfs"),
        ("snapshot", "parent"),
    ]
    assert graph.chain(Node("ns", "content", "blob")) == []


def test_a_hundred_thousand_blobs_take_seconds():
    began = time.monotonic()
    graph = Graph(NOW)
    for image in range(10_000):
        graph.image("ns", f"image {image}", f"{image}.0", {"containerd.io/gc.expire": PAST} if image % 2 else {})
        for blob in range(10):
            graph.blob("ns", f"{image}.{blob}", {"containerd.io/gc.ref.content.l.0": f"{image}.{blob + 1}"})
    graph.mark()
    assert len(graph.dead()) == 55_000
    assert time.monotonic() - began < 10


USED_AT = "containerd.io/gc.cond.value-usedat"  # at 08:00 on 15 January 2027 it is NOW


@pytest.mark.parametrize(
    ("condition", "used_at", "is_held"),
    [
        ("usedat<24h|child", "2027-01-14T09:00:00Z", True),
        ("usedat<24h|child", "2027-01-14T07:00:00Z", False),
        ("usedat<1h30m|child", "2027-01-15T07:00:00Z", True),
        ("usedat>24h|child", "2027-01-14T07:00:00Z", True),
        ("usedat>24h|child", "2027-01-14T09:00:00Z", False),
        ("usedat<1s,usedat<24h|child", "2027-01-14T09:00:00Z", True),
        ("usedat=24h|child", "2027-01-14T09:00:00Z", False),
        ("size<24h|child", "2027-01-14T09:00:00Z", False),
        ("usedat<long|child", "2027-01-14T09:00:00Z", False),
        ("usedat<24h|other", "2027-01-14T09:00:00Z", False),
        ("usedat<24h", "2027-01-14T09:00:00Z", False),
        ("usedat<24h|child", "yesterday", False),
    ],
)
@pytest.mark.parametrize("label", [f"containerd.io/gc.cond.snapshot{rest}" for rest in (".overlayfs", "/overlayfs/x")])
@pytest.mark.parametrize("holder", ["image", "blob"])
def test_a_snapshot_is_held_on_a_condition(graph, condition, used_at, is_held, label, holder):
    if holder == "image":
        graph.image("ns", "image", "target", {label: condition})
    else:
        graph.blob("ns", "target", {label: condition})
    graph.snapshot("ns", "overlayfs", "child", "snapshot", {USED_AT: used_at})
    assert dead(graph) == DEAD - ({"child", "snapshot"} if is_held else set())


def test_a_condition_counts_whichever_comes_first_and_only_from_what_is_live(graph):
    label, recent = "containerd.io/gc.cond.snapshot.overlayfs", "2027-01-15T07:00:00Z"
    graph.blob("ns", "blob", {label: "usedat<24h|child"})
    graph.snapshot("ns", "overlayfs", "child", "snapshot", {USED_AT: recent})
    assert dead(graph) == DEAD
    graph.image("ns", "image", "target", {label: "usedat<24h|child"})
    graph.spare([Node("ns", "images", "image")])
    assert {node.id for node in graph.dead()} == DEAD - {"child", "snapshot"}


def test_a_condition_that_time_will_undo_is_looked_at_again_then(graph):
    graph.image("ns", "image", "target", {"containerd.io/gc.cond.snapshot.overlayfs": "usedat<24h|child"})
    graph.snapshot("ns", "overlayfs", "child", "snapshot", {USED_AT: "2027-01-14T09:00:00Z"})
    graph.mark()
    assert graph.next_expiry == NOW + 3600 * 10**9
