"""What holds what: the graph that garbage collection walks. Pure: made of tables in the daemon, of lists in rctl.

Nodes are records of a namespace. Roots are containers, sandboxes, leases and images that have not expired, content and
snapshots that a label says are roots, and ingests that are young enough. From there references lead to what is held:

=================================================  ======================================================
``containerd.io/gc.root``                          on content, snapshots: a root
``containerd.io/gc.expire`` (RFC 3339)             leases and images go then; content, snapshots stay till then
``containerd.io/gc.flat``                          on a lease: what its resources refer to is not held
``containerd.io/gc.ref.content[.x|/x]``            holds a blob
``containerd.io/gc.ref.image[.x|/x]``              holds an image that may have expired
``containerd.io/gc.ref.mount[.x|/x]``              holds an activated mount
``containerd.io/gc.ref.snapshot.<snapshotter>[/x]``  holds a snapshot
``containerd.io/gc.bref.{content,image,container}``  the other way round: is held by what the label names
``containerd.io/gc.bref.snapshot.<snapshotter>``   likewise
``containerd.io/gc.cond.snapshot.<snapshotter>``   on content and images, ``usedat<24h|<key>``: holds the snapshot
                                                   if it was used less (``>``: more) than so long ago, as its own
                                                   ``containerd.io/gc.cond.value-usedat`` says (RFC 3339)
=================================================  ======================================================

Without a label: an image holds its target, a container its snapshot, a snapshot its parent, an ingest the blob it is
about to become, a lease its resources and
mounts. Names, and what the labels mean, are containerd's.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from runtimed import labels

CONTENT, IMAGES, INGESTS, LEASES = "content", "images", "ingests", "leases"
CONTAINERS, SANDBOXES, MOUNTS = "containers", "sandboxes", "mounts"
SNAPSHOTS = "snapshots/"  # + the snapshotter's name

_PREFIX = "containerd.io/gc."
_REF, _BREF = "containerd.io/gc.ref.", labels.GC_BREF
_COND, _USED_AT = "containerd.io/gc.cond.snapshot", "containerd.io/gc.cond.value-usedat"
_DURATION = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)")  # a part of one, as Go writes them
_UNITS_NS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "µs": 1000, "ns": 1}
_KINDS = {"content": CONTENT, "image": IMAGES, "container": CONTAINERS, "mount": MOUNTS}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Node(NamedTuple):
    """A record: ``type`` is that of a lease's resources, or ``leases``, ``mounts``,
    ``containers`` or ``sandboxes``."""

    namespace: str
    type: str
    id: str


class _Edge(NamedTuple):
    to: Node
    reason: str  # a label, or what the reference is
    is_label: bool  # a flat reference does not follow those


class _Condition(NamedTuple):
    """*holder* refers to *to* if that was used less than *age* ns ago; more, if *is_older*."""

    holder: Node
    to: Node
    is_older: bool
    age: int
    reason: str


_State = tuple[Node, bool]  # whether the node was reached through a flat lease


class Graph:
    """Records as of one moment, and which of them are reached from the roots."""

    def __init__(self, now: int) -> None:
        """*now* is nanoseconds since the epoch: what expires before is no root."""
        self.now = now
        self.next_expiry: int | None = None  # when the next of those that are there expires
        self._records: dict[
            Node, None
        ] = {}  # in the order they came, without those that are never collected: containers, sandboxes
        self._edges: dict[Node, list[_Edge]] = {}
        self._roots: dict[Node, bool] = {}
        self._conditions: list[_Condition] = []
        self._used_at: dict[Node, int] = {}
        self._reached: dict[_State, tuple[_State, str] | None] = {}

    # -- building

    def image(self, namespace: str, name: str, target: str, marks: Mapping[str, str]) -> Node:
        node = self._add(Node(namespace, IMAGES, name))
        self._refer(node, Node(namespace, CONTENT, target), "target")
        if not self._has_expired(marks):
            self._roots[node] = False
        self._take_labels(node, marks)
        return node

    def container(self, namespace: str, id: str, snapshotter: str, key: str, marks: Mapping[str, str]) -> Node:
        node = Node(namespace, CONTAINERS, id)
        if snapshotter:
            self._refer(node, Node(namespace, SNAPSHOTS + snapshotter, key), "snapshot")
        self._roots[node] = False
        self._take_labels(node, marks)
        return node

    def sandbox(self, namespace: str, id: str, marks: Mapping[str, str]) -> Node:
        node = Node(namespace, SANDBOXES, id)
        self._roots[node] = False
        self._take_labels(node, marks)
        return node

    def lease(self, namespace: str, id: str, marks: Mapping[str, str], resources: Iterable[tuple[str, str]]) -> Node:
        """Add a lease; *resources* are type and ID."""
        node = self._add(Node(namespace, LEASES, id))
        for type, resource in resources:
            self._refer(node, Node(namespace, type, resource), "resource")
        if not self._has_expired(marks):
            self._roots[node] = labels.GC_FLAT in marks
        return node

    def blob(self, namespace: str, digest: str, marks: Mapping[str, str]) -> Node:
        node = self._add(Node(namespace, CONTENT, digest))
        self._take_labels(node, marks, may_be_root=True)
        return node

    def snapshot(self, namespace: str, snapshotter: str, key: str, parent: str, marks: Mapping[str, str]) -> Node:
        node = self._add(Node(namespace, SNAPSHOTS + snapshotter, key))
        if parent:
            self._refer(node, node._replace(id=parent), "parent")
        self._take_labels(node, marks, may_be_root=True)
        return node

    def mount(self, namespace: str, name: str, lease: str, marks: Mapping[str, str]) -> Node:
        node = self._add(Node(namespace, MOUNTS, name))
        if lease:
            self._refer(Node(namespace, LEASES, lease), node, "lease")
        self._take_labels(node, marks)
        return node

    def ingest(self, namespace: str, ref: str, expected: str, expires_at: int) -> Node:
        node = self._add(Node(namespace, INGESTS, ref))
        if expected:
            self._refer(node, Node(namespace, CONTENT, expected), "expected")
        if expires_at >= self.now:
            self._roots[node] = False
            self._expires(expires_at)
        return node

    # -- asking

    def mark(self) -> None:
        """Find out what is reached from the roots."""
        self._decide()
        self._spread(self._roots.items())

    def spare(self, nodes: Iterable[Node]) -> None:
        """Take *nodes* for roots from now on: something has happened to them since the graph was built."""
        self._decide()
        again = [(node, False) for node in nodes]
        for state in again:  # also those that were reached before: they may refer to something new
            self._reached.setdefault(state, None)
        self._follow(deque(again))

    def is_live(self, node: Node) -> bool:
        """Say whether *node* was reached."""
        return (node, False) in self._reached or (node, True) in self._reached

    def dead(self) -> list[Node]:
        """Return what was not reached, each before what it refers to (but for circles).

        Removed in this order, whatever is still there has all that it refers to.
        """
        left = {node: 0 for node in self._records if not self.is_live(node)}
        for node in left:
            for edge in self._edges.get(node, ()):
                if edge.to in left:
                    left[edge.to] += 1
        ordered = [node for node, referrers in left.items() if not referrers]
        for node in ordered:  # grows while it is gone through
            for edge in self._edges.get(node, ()):
                if edge.to in left:
                    left[edge.to] -= 1
                    if not left[edge.to]:
                        ordered.append(edge.to)
        placed = set(ordered)
        return ordered + [node for node in left if node not in placed]

    def chain(self, node: Node) -> list[tuple[Node, str]]:
        """Return the shortest way from a root to *node*: each step with how it is referred to, "" for the root.

        Empty if *node* was not reached.
        """
        state: _State = (node, (node, False) not in self._reached)
        if state not in self._reached:
            return []
        steps: list[tuple[Node, str]] = []
        while (before := self._reached[state]) is not None:
            steps.append((state[0], before[1]))
            state = before[0]
        steps.append((state[0], ""))
        return steps[::-1]

    def below(self, node: Node) -> set[Node]:
        """Return *node* and all that it refers to, directly or not."""
        found, pending = {node}, [node]
        while pending:
            for edge in self._edges.get(pending.pop(), ()):
                if edge.to not in found:
                    found.add(edge.to)
                    pending.append(edge.to)
        return found

    def nodes(self) -> Iterator[Node]:
        """Yield every record that can be collected."""
        return iter(self._records)

    # -- inside

    def _add(self, node: Node) -> Node:
        self._records[node] = None
        return node

    def _refer(self, node: Node, to: Node, reason: str, *, is_label: bool = False) -> None:
        self._edges.setdefault(node, []).append(_Edge(to, reason, is_label))

    def _take_labels(self, node: Node, marks: Mapping[str, str], *, may_be_root: bool = False) -> None:
        for key, value in marks.items():
            if not key.startswith(_PREFIX):
                continue
            if key.startswith(_REF):
                if to := _named(node.namespace, key[len(_REF) :], value):
                    self._refer(node, to, key, is_label=True)
            elif key.startswith(_BREF):
                if holder := _named(node.namespace, key[len(_BREF) :], value):
                    self._refer(holder, node, key, is_label=True)
            elif key.startswith(_COND) and node.type in {CONTENT, IMAGES}:
                self._conditions += _conditions(node, key, value)
            elif key == _USED_AT:
                if (at := _time(value)) is not None:
                    self._used_at[node] = at
            elif may_be_root and (
                key.startswith(labels.GC_ROOT)
                or (key == labels.GC_EXPIRE and expiry(marks) is not None and not self._has_expired(marks))
            ):
                self._roots[node] = False

    def _decide(self) -> None:
        """Make references of the conditions that are met, and forget those that are decided."""
        left = []
        for condition in self._conditions:
            at = self._used_at.get(condition.to)
            if at is None:
                left.append(condition)  # the snapshot may be added yet
            elif (self.now - at > condition.age) is condition.is_older and self.now - at != condition.age:
                self._refer(condition.holder, condition.to, condition.reason, is_label=True)
                if not condition.is_older:
                    self._expires(at + condition.age)
        self._conditions = left

    def _has_expired(self, marks: Mapping[str, str]) -> bool:
        at = expiry(marks)
        if at is None:
            return False
        self._expires(at)
        return at < self.now

    def _expires(self, at: int) -> None:
        if at >= self.now and (self.next_expiry is None or at < self.next_expiry):
            self.next_expiry = at

    def _spread(self, states: Iterable[_State]) -> None:
        reached = self._reached
        queue: deque[_State] = deque()
        for state in states:
            if state not in reached:
                reached[state] = None
                queue.append(state)
        self._follow(queue)

    def _follow(self, queue: deque[_State]) -> None:
        reached = self._reached
        while queue:
            state = queue.popleft()
            node, is_flat = state
            for edge in self._edges.get(node, ()):
                if is_flat and edge.is_label:
                    continue
                below = (edge.to, is_flat and edge.to.type != INGESTS)
                if below not in reached:
                    reached[below] = (state, edge.reason)
                    queue.append(below)


def expiry(marks: Mapping[str, str]) -> int | None:
    """Return when the record with these labels expires, in ns since the epoch; None: never, or no time is said."""
    return _time(marks.get(labels.GC_EXPIRE, ""))


def _time(text: str) -> int | None:
    """Return an RFC 3339 time in ns since the epoch; None for anything else."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1_000_000) * 1_000
    except (ValueError, OverflowError):
        return None


def _conditions(node: Node, key: str, value: str) -> Iterator[_Condition]:
    """Yield what the label says; of what it says in words that are not known, nothing."""
    snapshotter = key.removeprefix(_COND).lstrip("./").partition("/")[0]
    conditions, bar, name = value.partition("|")
    for condition in conditions.split(",") if bar else ():
        what = re.fullmatch(r"usedat([<>])(.+)", condition)
        if what and re.fullmatch(f"(?:{_DURATION.pattern})+", what[2]):
            age = sum(int(float(number) * _UNITS_NS[unit]) for number, unit in _DURATION.findall(what[2]))
            yield _Condition(node, Node(node.namespace, SNAPSHOTS + snapshotter, name), what[1] == ">", age, key)


def _named(namespace: str, name: str, value: str) -> Node | None:
    """Return what a reference label names; *name* is the label without its prefix."""
    if name.startswith("snapshot."):
        snapshotter = name.removeprefix("snapshot.").partition("/")[0]
        return Node(namespace, SNAPSHOTS + snapshotter, value)
    for kind, type in _KINDS.items():
        if name.startswith(kind) and (len(name) == len(kind) or name[len(kind)] in "./"):
            return Node(namespace, type, value)
    return None
