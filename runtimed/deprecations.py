"""What clients use that is on its way out: told by ``Introspection.Server`` and ``rctl deprecations``.

IDs that containerd has, too, are containerd's, for who looks for them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from runtimed import labels

_PREFIX = "io.containerd.deprecation/"
_OWN_PREFIX = "runtimed.io/deprecation/"

RUNTIME_V1 = f"{_PREFIX}runtime-v1"
RUNC_V1 = f"{_PREFIX}runtime-runc-v1"
LOG_PATH = f"{_PREFIX}restart-logpath"
OCI_RUNTIME = f"{_OWN_PREFIX}old-oci-runtime"
CGROUP_V1 = f"{_OWN_PREFIX}cgroup-v1"

MESSAGES = {
    RUNTIME_V1: "the runtime io.containerd.runtime.v1.linux is gone since containerd 2.0: use io.containerd.runc.v2",
    RUNC_V1: "the runtime io.containerd.runc.v1 is gone since containerd 2.0: use io.containerd.runc.v2",
    LOG_PATH: (
        f"the label containerd.io/restart.logpath has no effect since containerd 2.0: use {labels.RESTART_LOG_URI}"
    ),
    OCI_RUNTIME: "an OCI runtime is older than the fixes of known holes; `rctl info` says which",
    CGROUP_V1: "this machine has version 1 of cgroups, which runtimes are giving up: boot it with version 2",
}

_RUNTIMES = {"io.containerd.runtime.v1.linux": RUNTIME_V1, "io.containerd.runc.v1": RUNC_V1}


@dataclass(frozen=True, slots=True)
class Deprecation:
    """`last_at` is nanoseconds since the epoch, UTC."""

    id: str
    message: str
    last_at: int


class Deprecations:
    """What has been used since the daemon started, as in containerd."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def emit(self, id: str) -> None:
        """Note that *id*, one of MESSAGES, has been used just now."""
        self._last[id] = time.time_ns()

    def container(self, runtime: str, marks: Mapping[str, str]) -> None:
        """Note what a container that is being made uses."""
        if runtime in _RUNTIMES:
            self.emit(_RUNTIMES[runtime])
        if marks.get("containerd.io/restart.logpath"):
            self.emit(LOG_PATH)

    def seen(self) -> list[Deprecation]:
        """Return what has been used, by ID."""
        return [Deprecation(id, MESSAGES[id], at) for id, at in sorted(self._last.items())]
