"""From a task's metrics to what rctl shows."""

import pytest

from runtimed.api import cgroups_v1_pb2, cgroups_v2_pb2, types_pb2
from runtimed.cli.stats import Usage, cpu_percent, usage

V1 = cgroups_v1_pb2.Metrics(
    cpu={"usage": {"total": 5_000_000}},
    memory={"usage": {"usage": 9000, "limit": 64 << 20}, "total_inactive_file": 1000},
    pids={"current": 3, "limit": 0},
    blkio={
        "io_service_bytes_recursive": [
            {"op": "Read", "value": 10},
            {"op": "read", "value": 1},
            {"op": "Write", "value": 7},
            {"op": "Total", "value": 17},
        ]
    },
)
V2 = cgroups_v2_pb2.Metrics(
    cpu={"usage_usec": 5000},
    memory={"usage": 9000, "usage_limit": 2**64 - 1, "inactive_file": 1000},
    pids={"current": 3, "limit": 2**64 - 1},
    io={"usage": [{"rbytes": 10, "wbytes": 3}, {"rbytes": 1, "wbytes": 4}]},
)


def metric(message=None, value=b"", kind="none.known"):
    found = types_pb2.Metric(id="a")
    found.timestamp.FromNanoseconds(1_000_000_000)
    found.data.type_url = kind if message is None else message.DESCRIPTOR.full_name
    found.data.value = value if message is None else message.SerializeToString()
    return found


@pytest.mark.parametrize(("message", "limit"), [(V1, 64 << 20), (V2, 0)])
def test_both_versions_say_the_same_of_a_container(message, limit):
    assert usage(metric(message)) == Usage(
        id="a",
        at=1_000_000_000,
        cpu_ns=5_000_000,
        memory=8000,
        memory_limit=limit,
        pids=3,
        pids_limit=0,
        read=11,
        written=7,
    )


@pytest.mark.parametrize("kind", ["none.known", "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"])
def test_of_what_cannot_be_read_there_is_nothing_but_the_name(kind):
    assert usage(metric(value=b"\xff", kind=kind)) == Usage(id="a", at=1_000_000_000)


def test_cpu_is_the_share_of_a_core_between_two_moments():
    before, now = Usage(id="a", at=10, cpu_ns=100), Usage(id="a", at=20, cpu_ns=115)
    assert cpu_percent(before, now) == 150.0
    assert cpu_percent(None, now) == 0.0
    assert cpu_percent(now, now) == 0.0
    assert cpu_percent(Usage(id="a", at=0, cpu_ns=200), now) == 0.0  # started anew
