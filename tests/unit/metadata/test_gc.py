"""Garbage collection over the tables, with writes between its steps."""

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimed.metadata import gc, images, leases, sandboxes
from runtimed.metadata.db import Database
from runtimed.metadata.images import Image
from runtimed.oci import digest
from runtimed.oci.descriptor import Descriptor

BLOBS = [digest.of(str(number).encode()) for number in range(6)]
REF = "containerd.io/gc.ref.content"


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    with closing(Database(tmp_path_factory.mktemp("gc") / "metadata.db")) as opened:
        yield opened


def submit(db, func, *args):
    return db.submit(func, *args).result()


def add_blob(tx, number, refers_to):
    marks = f'{{"{REF}": "{BLOBS[refers_to]}"}}' if refers_to is not None else "{}"
    tx.execute("INSERT INTO namespaces (name) VALUES ('ns') ON CONFLICT DO NOTHING")
    tx.execute("INSERT INTO blobs VALUES ('ns', ?, 1, ?, 1, 1)", (BLOBS[number], marks))


def point(tx, name, number):
    target = Descriptor(media_type="x", digest=BLOBS[number], size=1)
    tx.execute("DELETE FROM images WHERE name = ?", (name,))
    images.create(tx, "ns", Image(name=name, target=target))


def hold(tx, number):
    lease = leases.create(tx, "ns", leases.Lease(id=""))
    leases.add_resource(tx, "ns", lease.id, leases.Resource("content", BLOBS[number]))


def clear(tx):
    for table in ("images", "leases", "blobs"):
        tx.execute(f"DELETE FROM {table}")


def there(tx):
    return {row[0] for row in tx.execute("SELECT digest FROM blobs")}


def reached(edges, starts):
    found = set()
    for number in starts:
        while number is not None and number not in found:
            found.add(number)
            number = edges[number]
    return {BLOBS[number] for number in found}


numbers = st.integers(0, len(BLOBS) - 1)
late = st.lists(st.tuples(st.sampled_from(["image", "lease"]), numbers), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.none() | numbers, min_size=len(BLOBS), max_size=len(BLOBS)),
    roots=st.sets(numbers, max_size=2),
    writes=st.lists(late, min_size=len(BLOBS), max_size=len(BLOBS)),
)
def test_what_is_referred_to_in_time_is_never_lost_and_the_rest_goes(db, edges, roots, writes):
    """Before each slice somebody refers to what is still there: that, and all below it, stays."""
    submit(db, clear)
    for number, refers_to in enumerate(edges):
        submit(db, add_blob, number, refers_to)
    for number in roots:
        submit(db, point, f"image {number}", number)
    submit(db, gc.watch)
    with db.reading() as tx:
        graph = gc.load(tx, 2)
    dead = graph.dead()
    kept = set(roots)
    for step in range(len(BLOBS)):
        for how, number in writes[step]:
            with db.reading() as tx:
                is_there = BLOBS[number] in there(tx)
            if is_there:
                kept.add(number)
                submit(db, point, f"late {number}", number) if how == "image" else submit(db, hold, number)
        submit(db, gc.sweep, graph, dead[step : step + 1], lambda *_: False)
    submit(db, gc.unwatch)
    with db.reading() as tx:
        left = there(tx)
    acyclic_loss = reached(edges, kept) - left
    if not _has_circle(edges):
        assert not acyclic_loss
    assert {BLOBS[number] for number in kept} <= left
    assert left <= reached(edges, kept)


def _has_circle(edges):
    return any(_walk(edges, number) is None for number in range(len(edges)))


def _walk(edges, number):
    for _ in range(len(edges) + 1):
        if number is None:
            return True
        number = edges[number]
    return None


def test_a_clock_that_jumps_ahead_is_not_believed_at_once():
    at = {"wall": 10**18, "boot": 0}
    clock = gc.Clock(lambda: at["wall"], lambda: at["boot"])
    year = 365 * 86400 * 10**9
    at["wall"] += year
    assert clock.now() == 10**18
    at["boot"] += 700 * 10**9
    assert clock.now() == 10**18 + year
    at["wall"] -= 2 * year
    assert clock.now() == 10**18 - year


def test_a_sandbox_holds_what_its_labels_name_also_when_it_comes_late(db):
    submit(db, clear)
    for number in range(2):
        submit(db, add_blob, number, None)
    submit(db, sandboxes.create, "ns", sandboxes.Sandbox(id="pod", labels={REF: BLOBS[0]}))
    try:
        submit(db, gc.watch)
        with db.reading() as tx:
            graph = gc.load(tx, 0)
        late = sandboxes.Sandbox(id="late", labels={REF: BLOBS[1]})
        dead = graph.dead()
        assert [node.id for node in dead] == [BLOBS[1]]
        submit(db, sandboxes.create, "ns", late)
        assert submit(db, gc.sweep, graph, dead, lambda name, key: False) == []
    finally:
        submit(db, gc.unwatch)
        submit(db, clear)
        for id in ("pod", "late"):
            submit(db, sandboxes.delete, "ns", id)
