"""What a container uses, in the message for the version of cgroups that measures it."""

from shim import messages as pb
from shim import stats_v1, stats_v2
from shim.hierarchies import Cgroups


def stats(cgroups: Cgroups) -> pb.Any:
    """Return io.containerd.cgroups.v1.Metrics or io.containerd.cgroups.v2.Metrics.

    Raises:
        NotFound: there is no cgroup any more.
    """
    return pb.Any.of((stats_v2 if cgroups.is_unified else stats_v1).collect(cgroups))
