"""What pods and containers use: statistics and metrics over the daemon's socket."""

import os

import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("measured", labels={"app": "m"})


@pytest.fixture(scope="module")
def busy(cri, pod, busybox, tmp_path_factory):
    """A container that has used a little of everything, and goes on with the processor."""
    fifo = tmp_path_factory.mktemp("busy") / "ready"
    os.mkfifo(fifo)
    config = cri.container_config(
        "busy",
        "head -c 1000000 /dev/zero > /written; sleep 1000 & echo > /ready; while :; do :; done",
        image=busybox,
        labels={"k": "v"},
        mounts=[pb.Mount(container_path="/ready", host_path=str(fifo))],
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=100 << 20, cpu_shares=100),
    )
    id = cri.create(pod, config)
    cri.start(id)
    assert fifo.read_text() == "\n"
    return id


def test_a_containers_statistics(cri, busy):
    request = pb.ContainerStatsRequest(container_id=busy)
    first = cri.runtime.ContainerStats(request, timeout=TIMEOUT_S).stats
    assert first.attributes.id == busy
    assert first.attributes.labels == {"k": "v"}
    assert first.cpu.usage_core_nano_seconds.value > 0
    assert 0 < first.cpu.usage_nano_cores.value < 64 * 10**9  # the first time since its start
    assert 0 < first.memory.working_set_bytes.value <= first.memory.usage_bytes.value < 100 << 20
    assert first.memory.available_bytes.value == (100 << 20) - first.memory.working_set_bytes.value
    assert first.memory.page_faults.value > 0
    assert first.writable_layer.used_bytes.value >= 1_000_000
    assert first.writable_layer.inodes_used.value > 0
    assert first.writable_layer.fs_id.mountpoint == str(cri.daemon.root / "snapshotters/overlayfs")
    second = cri.runtime.ContainerStats(request, timeout=TIMEOUT_S).stats
    assert second.cpu.timestamp > first.cpu.timestamp
    assert second.cpu.usage_core_nano_seconds.value >= first.cpu.usage_core_nano_seconds.value


def test_lists_and_streams_are_filtered_alike(cri, pod, busy, busybox):
    still = cri.create(pod, cri.container_config("still", "true", image=busybox))  # has not run: no statistics

    def ids(**fields):
        wanted = pb.ContainerStatsFilter(**fields)
        listed = cri.runtime.ListContainerStats(pb.ListContainerStatsRequest(filter=wanted), timeout=TIMEOUT_S).stats
        stream = cri.runtime.StreamContainerStats(pb.StreamContainerStatsRequest(filter=wanted), timeout=TIMEOUT_S)
        streamed = [one.attributes.id for some in stream for one in some.container_stats]
        assert streamed == [one.attributes.id for one in listed]
        return streamed

    assert ids() == ids(id=busy) == ids(pod_sandbox_id=pod) == ids(label_selector={"k": "v"}) == [busy]
    assert ids(id=still) == ids(label_selector={"k": "other"}) == []
    cri.remove(still)


def test_a_pods_statistics_are_of_its_cgroup_and_network(cri, pod, busy):
    stats = cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S).stats
    assert stats.attributes.metadata.name == "measured"
    [container] = stats.linux.containers
    assert container.attributes.id == busy
    assert stats.linux.cpu.usage_core_nano_seconds.value > 0
    assert stats.linux.memory.usage_bytes.value >= container.memory.working_set_bytes.value // 2
    assert stats.linux.process.process_count.value == 3  # the pause process, the shell and its sleep
    assert stats.linux.network.default_interface.name == "eth0"
    listed = cri.runtime.ListPodSandboxStats(
        pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(label_selector={"app": "m"})), timeout=TIMEOUT_S
    ).stats
    assert [one.attributes.id for one in listed] == [pod]
    stream = cri.runtime.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest(), timeout=TIMEOUT_S)
    assert [one.attributes.id for some in stream for one in some.pod_sandbox_stats] == [pod]


def test_every_metric_that_is_described_has_a_value_with_its_labels(cri, pod, busy):
    request = pb.ListMetricDescriptorsRequest()
    described = cri.runtime.ListMetricDescriptors(request, timeout=TIMEOUT_S).descriptors
    keys = {one.name: list(one.label_keys) for one in described}
    assert len(keys) == len(described) > 60
    assert all(one.help for one in described)
    [metrics] = cri.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest(), timeout=TIMEOUT_S).pod_metrics
    assert metrics.pod_sandbox_id == pod
    [container] = metrics.container_metrics
    assert container.container_id == busy
    found = [*metrics.metrics, *container.metrics]
    assert {one.name for one in found} == keys.keys()
    for one in found:
        assert len(one.label_values) == len(keys[one.name]), one.name
        assert one.timestamp > 0
    assert len({(one.name, *one.label_values) for one in found}) == len(found)

    values = {one.name: one.value.value for one in found}
    labels = dict(zip(keys["container_processes"], container.metrics[0].label_values, strict=False))
    assert (labels["container"], labels["pod"], labels["namespace"]) == ("busy", "measured", "test")
    assert values["container_processes"] == values["container_threads"] == 2
    assert values["container_file_descriptors"] > 4
    assert values["container_ulimits_soft"] > 0
    assert values["container_spec_memory_limit_bytes"] == 100 << 20
    assert values["container_spec_cpu_shares"] in {100, 80}  # cgroup v2 knows it as a weight of 4
    assert values["container_memory_working_set_bytes"] > 0
    assert values["container_network_receive_packets_total"] >= 0
    stream = cri.runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest(), timeout=TIMEOUT_S)
    assert [one.pod_sandbox_id for some in stream for one in some.pod_sandbox_metrics] == [pod]


def test_what_does_not_run_has_no_statistics(cri, busybox):
    pod = cri.run_pod("ended", network=pb.NODE)
    cri.stop_pod(pod)
    with pytest.raises(Exception, match="FAILED_PRECONDITION"):
        cri.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S)
    with pytest.raises(Exception, match="NOT_FOUND"):
        cri.runtime.ContainerStats(pb.ContainerStatsRequest(container_id="f" * 64), timeout=TIMEOUT_S)
    cri.remove_pod(pod)
