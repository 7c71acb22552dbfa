"""Garbage collection over the tables: the graph of one moment, and the removal of what it does not reach.

Nobody waits while the graph is built: it is read in a read transaction, and what requests write meanwhile is noted by
temporary triggers of the writer's connection (:func:`watch`). Each slice of the removal first takes those notes over:
whatever was written since is live, with all that it refers to. So a reference that comes too late for the graph is
still in time for its target, or the target was gone before the request could see it.

Rows go first, referrers before what they refer to; files and directories follow, and a crash in between leaves what
``reconcile`` of the stores finds at the next start.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from runtimed import gcgraph
from runtimed.gcgraph import Graph, Node
from runtimed.metadata import blobs
from runtimed.metadata.db import Tx, frees, unnoticed

INGEST_LIFETIME_NS = 24 * 3600 * 10**9  # how long an ingest that nobody holds can be resumed, as in containerd

_MARK = "containerd.io/gc."  # labels without it need not be looked into

_TRIGGERS = {
    "images": ("(NEW.namespace, 'images', NEW.name)",),
    "containers": ("(NEW.namespace, 'containers', NEW.id)",),
    "sandboxes": ("(NEW.namespace, 'sandboxes', NEW.id)",),
    "leases": ("(NEW.namespace, 'leases', NEW.id)",),
    "lease_resources": ("(NEW.namespace, NEW.type, NEW.id)", "(NEW.namespace, 'leases', NEW.lease)"),
    "blobs": ("(NEW.namespace, 'content', NEW.digest)",),
    "ingests": ("(NEW.namespace, 'ingests', NEW.ref)",),
    "mounts": ("(NEW.namespace, 'mounts', NEW.name)",),
    "snapshots": ("(NEW.namespace, 'snapshots/' || NEW.snapshotter, NEW.key)",),
}


class Removed(NamedTuple):
    """A row that went."""

    node: Node
    place: str = ""  # the directory of an ingest or of mounts, or a snapshotter's own key
    expected: str = ""  # the digest that an ingest was to have


@unnoticed
def watch(tx: Tx) -> None:
    """Note from now on what is written, in memory; before :func:`load`."""
    tx.execute("CREATE TEMP TABLE IF NOT EXISTS gc_touched (namespace, type, id)")
    tx.execute("DELETE FROM gc_touched")
    for table, notes in _TRIGGERS.items():
        for event in ("INSERT", "UPDATE"):
            body = "".join(f"INSERT INTO gc_touched VALUES {note}; " for note in notes)
            tx.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS gc_{table}_{event} AFTER {event} ON main.{table} BEGIN {body}END"
            )


@unnoticed
def unwatch(tx: Tx) -> None:
    """Note nothing any more."""
    for table in _TRIGGERS:
        for event in ("INSERT", "UPDATE"):
            tx.execute(f"DROP TRIGGER IF EXISTS temp.gc_{table}_{event}")
    tx.execute("DROP TABLE IF EXISTS temp.gc_touched")


def load(tx: Tx, now: int, held: Collection[tuple[str, str]] = ()) -> Graph:
    """Return the graph of all namespaces; *held* are namespace and ref of ingests that have a writer.

    A query for each table, none for a record.
    """
    graph = Graph(now)
    resources: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for namespace, lease, type, id in tx.execute("SELECT namespace, lease, type, id FROM lease_resources"):
        resources.setdefault((namespace, lease), []).append((type, id))
    for namespace, id, text in tx.execute("SELECT namespace, id, labels FROM leases"):
        graph.lease(namespace, id, _marks(text), resources.get((namespace, id), ()))
    for row in tx.execute(_IMAGES):
        _image(graph, row)
    for row in tx.execute(_CONTAINERS):
        _container(graph, row)
    for row in tx.execute(_SANDBOXES):
        _sandbox(graph, row)
    for row in tx.execute(_BLOBS):
        _blob(graph, row)
    for row in tx.execute(_SNAPSHOTS):
        _snapshot(graph, row)
    for row in tx.execute(_INGESTS):
        _ingest(graph, row)
    for row in tx.execute(_MOUNTS):
        _mount(graph, row)
    graph.mark()
    graph.spare(Node(namespace, gcgraph.INGESTS, ref) for namespace, ref in held)
    return graph


def next_expiry(tx: Tx, now: int) -> int | None:
    """Return when the next record expires (ns UTC) of those that do; None: none does."""
    graph = Graph(now)
    has_expiry = " WHERE labels LIKE '%containerd.io/gc.expire%'"
    for namespace, id, text in tx.execute(f"SELECT namespace, id, labels FROM leases{has_expiry}"):
        graph.lease(namespace, id, _marks(text), ())
    for row in tx.execute(_IMAGES + has_expiry):
        _image(graph, row)
    for row in tx.execute(_BLOBS + has_expiry):
        _blob(graph, row)
    for row in tx.execute(_SNAPSHOTS + has_expiry):
        _snapshot(graph, row)
    for row in tx.execute(_INGESTS):
        _ingest(graph, row)
    return graph.next_expiry


@unnoticed
@frees
def sweep(tx: Tx, graph: Graph, dead: Sequence[Node], is_busy: Callable[[str, str], bool]) -> list[Removed]:
    """Remove the rows of those *dead* that nothing has been written about since; return which went.

    *is_busy* says of a snapshotter and its key whether an operation has hold of it: such a one stays, with its parents.
    """
    _take_over(tx, graph)
    removed = []
    for node in dead:
        if not graph.is_live(node) and (one := _remove(tx, graph, node, is_busy)):
            removed.append(one)
    return removed


def _take_over(tx: Tx, graph: Graph) -> None:
    touched = [Node(*row) for row in tx.execute("SELECT DISTINCT namespace, type, id FROM gc_touched")]
    tx.execute("DELETE FROM gc_touched")
    for node in touched:
        at = (node.namespace, node.id)
        match node.type.split("/", 1):
            case ["images"]:
                for row in tx.execute(f"{_IMAGES} WHERE namespace = ? AND name = ?", at):
                    _image(graph, row)
            case ["containers"]:
                for row in tx.execute(f"{_CONTAINERS} WHERE namespace = ? AND id = ?", at):
                    _container(graph, row)
            case ["sandboxes"]:
                for row in tx.execute(f"{_SANDBOXES} WHERE namespace = ? AND id = ?", at):
                    _sandbox(graph, row)
            case ["content"]:
                for row in tx.execute(f"{_BLOBS} WHERE namespace = ? AND digest = ?", at):
                    _blob(graph, row)
            case ["ingests"]:
                for row in tx.execute(f"{_INGESTS} WHERE namespace = ? AND ref = ?", at):
                    _ingest(graph, row)
            case ["mounts"]:
                for row in tx.execute(f"{_MOUNTS} WHERE namespace = ? AND name = ?", at):
                    _mount(graph, row)
            case ["snapshots", name]:
                for row in tx.execute(f"{_SNAPSHOTS} WHERE namespace = ? AND key = ? AND snapshotter = ?", (*at, name)):
                    _snapshot(graph, row)
            # Of a lease nothing but its resources is new, and those are noted themselves.
    graph.spare(touched)


def _remove(tx: Tx, graph: Graph, node: Node, is_busy: Callable[[str, str], bool]) -> Removed | None:
    at = (node.namespace, node.id)
    match node.type.split("/", 1):
        case ["images"]:
            row = tx.execute("DELETE FROM images WHERE namespace = ? AND name = ? RETURNING ''", at).fetchone()
        case ["leases"]:
            row = tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ? RETURNING ''", at).fetchone()
        case ["content"]:
            row = tx.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ? RETURNING ''", at).fetchone()
        case ["ingests"]:
            row = blobs.delete_ingest(tx, *at)
        case ["mounts"]:
            row = tx.execute("DELETE FROM mounts WHERE namespace = ? AND name = ? RETURNING directory", at).fetchone()
        case ["snapshots", name]:
            where = "FROM snapshots WHERE namespace = ? AND key = ? AND snapshotter = ?"
            row = tx.execute(f"SELECT backend_key {where}", (*at, name)).fetchone()
            if row and is_busy(name, row[0]):
                graph.spare([node])
                return None
            tx.execute(f"DELETE {where}", (*at, name))
        case _:
            return None
    return Removed(node, *row) if row else None


_IMAGES = "SELECT namespace, name, digest, labels FROM images"
_CONTAINERS = "SELECT namespace, id, snapshotter, snapshot_key, labels FROM containers"
_SANDBOXES = "SELECT namespace, id, labels FROM sandboxes"
_BLOBS = "SELECT namespace, digest, labels FROM blobs"
_SNAPSHOTS = "SELECT namespace, snapshotter, key, parent, labels FROM snapshots"
_INGESTS = "SELECT namespace, ref, expected, started_at FROM ingests"
_MOUNTS = "SELECT namespace, name, lease, labels FROM mounts"


def _image(graph: Graph, row: tuple[str, str, str, str]) -> None:
    namespace, name, digest, text = row
    graph.image(namespace, name, digest, _marks(text))


def _container(graph: Graph, row: tuple[str, str, str, str, str]) -> None:
    namespace, id, snapshotter, key, text = row
    graph.container(namespace, id, snapshotter, key, _marks(text))


def _sandbox(graph: Graph, row: tuple[str, str, str]) -> None:
    namespace, id, text = row
    graph.sandbox(namespace, id, _marks(text))


def _blob(graph: Graph, row: tuple[str, str, str]) -> None:
    namespace, digest, text = row
    graph.blob(namespace, digest, _marks(text))


def _snapshot(graph: Graph, row: tuple[str, str, str, str, str]) -> None:
    namespace, snapshotter, key, parent, text = row
    graph.snapshot(namespace, snapshotter, key, parent, _marks(text))


def _ingest(graph: Graph, row: tuple[str, str, str, int]) -> None:
    namespace, ref, expected, started_at = row
    graph.ingest(namespace, ref, expected, started_at + INGEST_LIFETIME_NS)


def _mount(graph: Graph, row: tuple[str, str, str, str]) -> None:
    namespace, name, lease, text = row
    graph.mount(namespace, name, lease, _marks(text))


def _marks(text: str) -> dict[str, str]:
    marks: dict[str, str] = json.loads(text) if _MARK in text else {}
    return marks


class Clock:
    """The time by which records expire: the wall's, but a jump forward is believed only when it has lasted.

    Were the clock set a year ahead and back, everything that expires would be lost (and nothing is, if it is set back).
    """

    _JUMP_NS = 60 * 10**9
    _BELIEVED_AFTER_NS = 600 * 10**9

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        boot: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall = wall
        self._boot = boot
        self._offset = wall() - boot()
        self._ahead_since: int | None = None

    def now(self) -> int:
        """Return nanoseconds since the epoch, UTC."""
        boot = self._boot()
        offset = self._wall() - boot
        if offset - self._offset <= self._JUMP_NS:
            self._offset, self._ahead_since = offset, None
        elif self._ahead_since is None:
            self._ahead_since = boot
        elif boot - self._ahead_since > self._BELIEVED_AFTER_NS:
            self._offset, self._ahead_since = offset, None
        return boot + self._offset
