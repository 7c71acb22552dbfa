"""A model of the daemon's records: what there may be, what must be there, and what garbage collection leaves.

Written from containerd's rules (docs: garbage collection), apart from runtimed's own code: that is compared with it. A
thing is (kind, ID): ``content``, ``images``, ``leases``, ``containers``, ``snapshots``.
"""

import copy
from dataclasses import dataclass, field

Thing = tuple[str, str]

SNAPSHOTTER = "overlayfs"
GC_EXPIRE = "containerd.io/gc.expire"
GC_FLAT = "containerd.io/gc.flat"
PAST, FUTURE = "2001-01-01T00:00:00Z", "2101-01-01T00:00:00Z"


@dataclass
class Record:
    """``holds`` is what it refers to by its nature: a target, a snapshot, a parent, a lease's resources."""

    labels: dict[str, str] = field(default_factory=dict)
    holds: set[Thing] = field(default_factory=set)


class Records(dict[Thing, Record]):
    """What one namespace has."""

    def copied(self) -> "Records":
        return copy.deepcopy(self)

    def live(self) -> set[Thing]:
        """Return what is reached from the roots, also by way of what is not there: it may be held by that backwards."""
        roots = {(thing, thing[0] == "leases" and GC_FLAT in record.labels) for thing, record in self.items()
                 if self.is_root(thing)}  # fmt: skip
        reached: set[tuple[Thing, bool]] = set()
        while roots - reached:
            thing, is_flat = (roots - reached).pop()
            reached.add((thing, is_flat))
            roots |= {(to, is_flat) for to in self._held_by(thing, with_labels=not is_flat)}
        return {thing for thing, _ in reached if thing in self}

    def collected(self) -> "Records":
        """Return what a whole collection leaves; containers are never collected."""
        live = self.live()
        return Records({thing: record for thing, record in self.items() if thing in live})

    def is_root(self, thing: Thing) -> bool:
        labels = self[thing].labels
        match thing[0]:
            case "containers":
                return True
            case "images" | "leases":
                return labels.get(GC_EXPIRE) != PAST
            case _:
                return "containerd.io/gc.root" in labels or labels.get(GC_EXPIRE) == FUTURE

    def _held_by(self, thing: Thing, *, with_labels: bool) -> set[Thing]:
        own = self.get(thing, Record())
        held = set(own.holds)
        if with_labels:
            held |= {(_kind(key), value) for key, value in own.labels.items() if _tail(key).startswith("gc.ref.")}
            held |= {
                other
                for other, record in self.items()
                for key, value in record.labels.items()
                if _tail(key).startswith("gc.bref.") and (_kind(key), value) == thing
            }
        return held


def _tail(key: str) -> str:
    return key.removeprefix("containerd.io/")


def _kind(key: str) -> str:
    """Return what kind a reference label names: ``containerd.io/gc.ref.<kind>[.x]``."""
    return {"content": "content", "snapshot": "snapshots", "image": "images", "container": "containers"}[
        _tail(key).split(".")[2].partition("/")[0]
    ]
