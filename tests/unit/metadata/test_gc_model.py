"""What the graph reaches against the model of containerd's rules, over many small worlds.

tests/integration/metadata/test_model.py walks a real daemon through some hundreds of steps; which label holds what is
looked at here, where a thousand worlds take a second.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from runtimed import gcgraph
from runtimed.gcgraph import Graph, Node
from tests.fakes.records import FUTURE, GC_EXPIRE, GC_FLAT, PAST, SNAPSHOTTER, Record, Records

NOW = 1_700_000_000 * 10**9
IDS = ["x", "y", "z"]
ids = st.sampled_from(IDS)
kinds_of_reference = st.sampled_from(["content", f"snapshot.{SNAPSHOTTER}", "image"])
kinds_of_holder = st.sampled_from(["content", f"snapshot.{SNAPSHOTTER}", "image", "container"])
tails = st.sampled_from(["", "/n", "/0"])
references = st.builds(
    lambda kind, tail, id: (f"containerd.io/gc.ref.{kind}{tail}", id), kinds_of_reference, tails, ids
)
holders = st.builds(lambda kind, tail, id: (f"containerd.io/gc.bref.{kind}{tail}", id), kinds_of_holder, tails, ids)
lives = st.sampled_from([("containerd.io/gc.root", "1"), (GC_EXPIRE, PAST), (GC_EXPIRE, FUTURE), ("another", "x")])
labels = st.lists(references | holders | lives, max_size=2).map(dict)
things = st.tuples(st.sampled_from(["content", "images", "snapshots"]), ids)


@st.composite
def worlds(draw):
    records = Records()
    for kind, holds in (
        ("content", st.just(set())),
        ("images", ids.map(lambda id: {("content", id)})),
        ("containers", ids.map(lambda id: {("snapshots", id)})),
        ("snapshots", st.just(set()) | ids.map(lambda id: {("snapshots", id)})),
    ):
        for id in draw(st.sets(ids)):
            records[kind, id] = Record(draw(labels), draw(holds))
    for id in draw(st.sets(ids)):
        marks = draw(st.sampled_from([{}, {GC_FLAT: "1"}, {GC_EXPIRE: PAST}, {GC_EXPIRE: FUTURE, GC_FLAT: "1"}]))
        records["leases", id] = Record(marks, draw(st.sets(things, max_size=2)))
    return records


def node(thing):
    kind, id = thing
    return Node("ns", f"{gcgraph.SNAPSHOTS}{SNAPSHOTTER}" if kind == "snapshots" else kind, id)


def graph_of(records):
    graph = Graph(NOW)
    for (kind, id), record in records.items():
        held = sorted(record.holds)
        match kind:
            case "content":
                graph.blob("ns", id, record.labels)
            case "images":
                graph.image("ns", id, held[0][1], record.labels)
            case "containers":
                graph.container("ns", id, SNAPSHOTTER, held[0][1], record.labels)
            case "snapshots":
                graph.snapshot("ns", SNAPSHOTTER, id, held[0][1] if held else "", record.labels)
            case "leases":
                graph.lease("ns", id, record.labels, [node(thing)[1:] for thing in held])
    graph.mark()
    return graph


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(worlds())
def test_what_is_live_is_what_the_model_says(records):
    graph = graph_of(records)
    live = records.live() | {thing for thing in records if thing[0] == "containers"}
    assert {thing for thing in records if graph.is_live(node(thing))} == live
    dead = graph.dead()
    assert set(dead) == {node(thing) for thing in set(records) - live}
    assert len(dead) == len(set(dead))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(worlds())
def test_what_is_told_to_hold_something_does(records):
    """Each step of a chain is a reference of the model's; it begins at a root and ends at what was asked for."""
    graph = graph_of(records)
    for thing in records.live():
        steps = graph.chain(node(thing))
        assert steps[-1][0] == node(thing)
        begins = next(one for one in records if node(one) == steps[0][0])
        assert records.is_root(begins)
        assert steps[0][1] == ""
        assert all(reason for _, reason in steps[1:])
