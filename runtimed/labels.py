"""Label keys that mean something to the daemon or to its clients, and how labels are updated.

All keys are containerd's, but for those of runtimed.io.
"""

from collections.abc import Mapping, Sequence

from runtimed import identifiers
from runtimed.errors import InvalidArgument

# Garbage collection: what a record holds, what holds a record.
GC_ROOT = "containerd.io/gc.root"
GC_EXPIRE = "containerd.io/gc.expire"  # RFC 3339 time
GC_FLAT = "containerd.io/gc.flat"  # on a lease: it holds what it names, not what that refers to
GC_REF_CONTENT = "containerd.io/gc.ref.content"  # + "", ".<n>", "/<name>": a digest
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot."  # + <snapshotter>[/<name>]: a key
GC_BREF = "containerd.io/gc.bref."  # + container, content, image, snapshot.<snapshotter>: is held by what it names

UNCOMPRESSED = "containerd.io/uncompressed"  # on a layer blob: its diff ID
DISTRIBUTION_SOURCE = "containerd.io/distribution.source."  # + <host>: comma-separated repositories
SNAPSHOT_REF = "containerd.io/snapshot.ref"  # on Prepare: the chain ID that is about to be made
# On Prepare and View, for a container in a user namespace: which ID of the layers shows as which, "0:100000:65536".
SNAPSHOT_UID_MAPPING = "containerd.io/snapshot/uidmapping"
SNAPSHOT_GID_MAPPING = "containerd.io/snapshot/gidmapping"

# On a namespace: what its clients get when they ask for nothing particular.
DEFAULT_RUNTIME = "containerd.io/defaults/runtime"
DEFAULT_SNAPSHOTTER = "containerd.io/defaults/snapshotter"
DISCARD_LAYERS = "runtimed.io/discard-unpacked-layers"  # on a namespace, "true"; see images/dropping.py

IMAGE_VERIFICATION = "runtimed.io/image-verification"  # on an image's root blob; see images/verifying.py
# On a container: whether the restart monitor is to keep it running or stopped, and how.
RESTART_STATUS = "containerd.io/restart.status"
RESTART_POLICY = "containerd.io/restart.policy"
RESTART_COUNT = "containerd.io/restart.count"
RESTART_EXPLICITLY_STOPPED = "containerd.io/restart.explicitly-stopped"
RESTART_LOG_URI = "containerd.io/restart.loguri"

PULL = "runtimed.io/pull"  # on a lease: a pull, push, import or export of this daemon holds it; see images/holding.py
LOG_URI = "runtimed.io/log"  # on a container: where `rctl run -d` sends its output, file:///...


def updated(
    current: Mapping[str, str], given: Mapping[str, str], paths: Sequence[str], field: str = "labels"
) -> dict[str, str]:
    """Return *current* after an update with *given* that means *paths*, which name nothing but *field*.

    ``labels`` (or no path at all) replaces all, ``labels.<key>`` sets one. A label set to "" is a label removed, as in
    containerd.

    Raises:
        InvalidArgument: a path that names something else, or a label that is not valid.
    """
    result = dict(current)
    if not paths or field in paths:
        result = dict(given)
    for path in paths:
        name, _, key = path.partition(".")
        if name != field or (path != field and not key):
            raise InvalidArgument(f"cannot update {path!r}: only {field} and {field}.<key> can be changed")
        if key:
            result[key] = given.get(key, "")
    return checked(result)


def checked(labels: Mapping[str, str]) -> dict[str, str]:
    """Return *labels* as they are stored: valid, and without empty ones. Raises InvalidArgument."""
    identifiers.validate_labels(labels)
    return {key: value for key, value in labels.items() if value}
