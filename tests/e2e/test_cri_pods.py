"""Pods over the daemon's socket: real runc, real CNI plugins on a bridge of the test's own."""

import ipaddress
import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.linux.namespaces import setns
from runtimed.linux.netns import CLONE_NEWNET
from tests.cri import TIMEOUT_S, cri_daemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def cri():
    with cri_daemon() as running:
        running.write_network()
        yield running


def in_netns(pod_status, *command):
    path = json.loads(pod_status.info["info"])["networkNamespace"]
    entered = ["nsenter", f"--net={path}", *command]
    return subprocess.run(entered, capture_output=True, text=True, timeout=20, check=True)


def test_a_pod_has_an_address_a_loopback_and_files_of_its_own(cri):
    pod = cri.run_pod("one", hostname="first", dns_config=pb.DNSConfig(servers=["10.9.9.9"], searches=["a.b"]))
    status = cri.pod_status(pod, verbose=True)
    assert len(pod) == 64
    assert status.status.state == pb.SANDBOX_READY
    address = status.status.network.ip
    assert address.startswith(cri.subnet)
    links = in_netns(status, "ip", "-o", "link").stdout
    assert "lo: <LOOPBACK,UP" in links
    assert "eth0@" in links
    assert address in in_netns(status, "ip", "-o", "-4", "addr").stdout
    files = cri.daemon.state / "cri/sandboxes" / pod
    assert (files / "resolv.conf").read_text() == "search a.b\nnameserver 10.9.9.9\n"
    assert f"{address}\tfirst\n" in (files / "hosts").read_text()
    assert (files / "hostname").read_text() == "first\n"
    assert os.path.ismount(files / "shm")
    pid = json.loads(status.info["info"])["pid"]
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/pause\0"

    cri.stop_pod(pod)
    status = cri.pod_status(pod)
    assert status.status.state == pb.SANDBOX_NOTREADY
    assert not os.path.ismount(files / "shm")
    assert not Path(f"/proc/{pid}").exists()
    assert address not in cri.addresses()
    cri.remove_pod(pod)
    assert not files.exists()
    with pytest.raises(grpc.RpcError) as failed:
        cri.pod_status(pod)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_stop_and_remove_of_what_is_not_there_succeed(cri):
    for id in ("0" * 64, "nothing"):
        cri.stop_pod(id)
        cri.remove_pod(id)
    pod = cri.run_pod("twice")
    for _ in range(2):
        cri.stop_pod(pod)
    for _ in range(2):
        cri.remove_pod(pod)


def test_removing_a_running_pod_ends_it(cri):
    pod = cri.run_pod("removed")
    cri.remove_pod(pod)
    assert pod not in [one.id for one in cri.pods()]


def test_pods_are_listed_by_state_label_and_id(cri):
    ready = cri.run_pod("ready", labels={"app": "x", "n": "1"})
    stopped = cri.run_pod("stopped", labels={"app": "x", "n": "2"})
    cri.stop_pod(stopped)
    state = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)

    def ids(**fields):
        return {one.id for one in cri.pods(**fields)}

    assert {ready, stopped} <= ids()
    assert ids(label_selector={"app": "x"}) == {ready, stopped}
    assert ids(label_selector={"app": "x"}, state=state) == {ready}
    assert ids(label_selector={"app": "x", "n": "2"}) == {stopped}
    assert ids(id=ready) == ids(id=ready[:13]) == {ready}
    assert ids(id="f" * 64) == set()
    [found] = cri.pods(id=ready)
    assert found.metadata.name == "ready"
    assert found.labels == {"app": "x", "n": "1"}
    stream = cri.runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest(), timeout=TIMEOUT_S)
    assert {one.id for some in stream for one in some.pod_sandboxes} == ids()
    for id in (ready, stopped):
        cri.remove_pod(id)


def test_the_same_request_once_more_gets_the_same_pod(cri):
    config = cri.pod_config("again", uid="fixed")
    first = cri.run(config)
    assert cri.run(config) == first
    config.labels["other"] = "x"
    with pytest.raises(grpc.RpcError) as failed:
        cri.run(config)
    assert failed.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert first in str(failed.value)
    cri.remove_pod(first)
    second = cri.run(config)
    assert second != first
    cri.remove_pod(second)


def test_requests_at_once_for_one_pod_make_one(cri):
    config = cri.pod_config("joined", uid="joined")
    with ThreadPoolExecutor(3) as threads:
        ids = {one.result() for one in [threads.submit(cri.run, config) for _ in range(3)]}
    assert len(ids) == 1
    cri.remove_pod(ids.pop())


def test_a_caller_that_gives_up_gets_the_pod_when_it_asks_again(cri):
    config = cri.pod_config("late", uid="late")
    with pytest.raises(grpc.RpcError) as failed:
        cri.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config), timeout=0.02)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    pod = cri.run(config)
    assert [one.id for one in cri.pods() if one.metadata.name == "late"] == [pod]
    cri.remove_pod(pod)


def test_a_pod_on_the_hosts_network_needs_no_cni(cri):
    pod = cri.run_pod("host", network=pb.NODE)
    status = cri.pod_status(pod, verbose=True)
    assert status.status.network.ip == ""
    assert status.status.linux.namespaces.options.network == pb.NODE
    pid = json.loads(status.info["info"])["pid"]
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path(f"/proc/{cri.daemon.pid}/ns/net").readlink()
    cri.remove_pod(pod)


@pytest.mark.parametrize("mode", [pb.POD, pb.NODE])
def test_pid_and_ipc_namespaces_are_the_pods_or_the_hosts(cri, mode):
    pod = cri.run_pod("modes", pid=mode, ipc=mode)
    pid = json.loads(cri.pod_status(pod, verbose=True).info["info"])["pid"]
    for name in ("pid", "ipc"):
        is_hosts = Path(f"/proc/{pid}/ns/{name}").readlink() == Path(f"/proc/{cri.daemon.pid}/ns/{name}").readlink()
        assert is_hosts == (mode == pb.NODE), name
    assert os.path.ismount(cri.daemon.state / "cri/sandboxes" / pod / "shm") == (mode == pb.POD)
    cri.remove_pod(pod)


def test_sysctls_of_the_pods_own_are_set(cri):
    pod = cri.run_pod("sysctl", sysctls={"net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1"})
    status = cri.pod_status(pod, verbose=True)
    assert in_netns(status, "cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout.split() == ["2000", "3000"]
    cri.remove_pod(pod)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sysctls": {"net.ipv4.ip_forward": "1"}, "network": pb.NODE}, "would change the host"),
        ({"sysctls": {"kernel.shmmax": "1"}, "ipc": pb.NODE}, "would change the host"),
        ({"sysctls": {"kernel.panic": "1"}}, "does not belong to a namespace of the pod"),
        ({"sysctls": {"net.ipv4.ip_forward=1,x": "1"}}, "is not a name"),
        ({"hostname": "a\nb"}, "hostname"),
        ({"dns_config": pb.DNSConfig(servers=["1.2.3.4\nnameserver 6.6.6.6"])}, "DNS server"),
        ({"dns_config": pb.DNSConfig(searches=["a b"])}, "blanks"),
        ({"cgroup_parent": "/../../x"}, "cgroup parent"),
        ({"handler": "missing"}, "runtime handler 'missing'"),
        ({"network": pb.CONTAINER}, "must be POD or NODE"),
        ({"port_mappings": [pb.PortMapping(host_port=99999, container_port=80)]}, "port"),
        ({"annotations": {"kubernetes.io/ingress-bandwidth": "1"}}, "bandwidth"),
        ({"name": "a;b=c"}, "CNI_ARGS"),
        ({"name": ""}, "must have a name"),
        ({"userns": pb.UserNamespace(mode=pb.CONTAINER)}, "CONTAINER"),
        ({"userns": pb.UserNamespace(mode=pb.TARGET)}, "TARGET"),
        (
            {
                "userns": pb.UserNamespace(
                    mode=pb.POD,
                    uids=[pb.IDMapping(host_id=1, container_id=1, length=1)],
                    gids=[pb.IDMapping(host_id=1, container_id=0, length=1)],
                )
            },
            "",
        ),
        (
            {
                "userns": pb.UserNamespace(
                    mode=pb.POD,
                    uids=[pb.IDMapping(host_id=1, length=1), pb.IDMapping(host_id=3, container_id=1, length=1)],
                    gids=[pb.IDMapping(host_id=1, length=1)],
                )
            },
            "",
        ),
    ],
)
def test_what_a_pod_cannot_be_is_refused_and_leaves_nothing(cri, options, message):
    before = cri.addresses(), cri.pods()
    with pytest.raises(grpc.RpcError) as failed:
        cri.run_pod(options.pop("name", "bad"), **options)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in str(failed.value)
    assert (cri.addresses(), cri.pods()) == before
    assert not [path for path in (cri.daemon.state / "netns").iterdir() if path.name not in {p.id for p in cri.pods()}]


def test_pods_reach_each_other(cri):
    one, two = cri.run_pod("here"), cri.run_pod("there")
    address = cri.pod_status(two).status.network.ip
    in_netns(cri.pod_status(one, verbose=True), "busybox", "ping", "-c1", "-W5", address)
    for id in (one, two):
        cri.remove_pod(id)


def listening_in(path, port):
    """Return a socket that listens in a network namespace."""

    def listen():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
            return socket.create_server(("0.0.0.0", port))
        finally:
            os.close(fd)

    with ThreadPoolExecutor(1) as thread:  # a thread of its own, which ends
        return thread.submit(listen).result()


def test_a_host_port_answers_on_the_loopback_address(cri):
    port = 20000 + os.getpid() % 10000
    pod = cri.run_pod("ports", port_mappings=[pb.PortMapping(host_port=port, container_port=80)])
    path = json.loads(cri.pod_status(pod, verbose=True).info["info"])["networkNamespace"]
    with listening_in(path, 80) as server, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        inside, _ = server.accept()
        with inside:
            inside.sendall(b"from the pod")
        assert client.recv(100) == b"from the pod"
    cri.remove_pod(pod)
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True, timeout=20)
    assert f"--dport {port}" not in saved.stdout


def test_the_address_range_of_the_node_reaches_the_plugins_that_ask_for_it(cri):
    def update(text):
        network = pb.NetworkConfig(pod_cidr=text)
        request = pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network))
        cri.runtime.UpdateRuntimeConfig(request, timeout=TIMEOUT_S)

    own = f"{cri.bridge}r"  # without an address: the others' must have one
    bridge = cri.bridge_plugin() | {"capabilities": {"ipRanges": True}, "isGateway": False, "bridge": own}
    bridge["ipam"] = {"type": "host-local", "dataDir": bridge["ipam"]["dataDir"]}  # nothing but what it is told
    ranges = [f"{cri.subnet}.64/28", f"{cri.subnet}.128/28"]
    update(", ".join(ranges))
    cri.write_network(bridge)
    try:
        pod = cri.run_pod("ranged")
        network = cri.pod_status(pod).status.network
        found = [network.ip, *(one.ip for one in network.additional_ips)]
        for address, text in zip(found, ranges, strict=True):
            assert ipaddress.ip_address(address) in ipaddress.ip_network(text)
        cri.remove_pod(pod)
    finally:
        cri.write_network()
        update("")
        subprocess.run(["ip", "link", "del", own], capture_output=True, check=True)


def test_a_verbose_status_says_whether_a_pods_network_is_as_it_was_made(cri):
    pod = cri.run_pod("checked")
    assert cri.info(pod)["networkProblem"] == ""
    in_netns(cri.pod_status(pod, verbose=True), "ip", "link", "del", "eth0")
    assert "CNI plugin bridge CHECK: " in cri.info(pod)["networkProblem"]
    cri.stop_pod(pod)
    assert cri.info(pod)["networkProblem"] == ""  # there is none any more
    cri.remove_pod(pod)


def test_what_a_pod_may_use_as_a_whole_is_changed_and_remembered(cri):
    pod = cri.run_pod("resized", network=pb.NODE)

    def told():
        linux = json.loads(cri.pod_status(pod, verbose=True).info["info"])["config"]["linux"]
        return {name: linux[name] for name in ("overhead", "resources") if name in linux}

    assert told() == {}
    resources = pb.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 << 20)
    overhead = pb.LinuxContainerResources(memory_limit_in_bytes=1 << 20)
    request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources, overhead=overhead)
    cri.runtime.UpdatePodSandboxResources(request, timeout=TIMEOUT_S)
    expected = {
        "overhead": {"memoryLimitInBytes": str(1 << 20)},
        "resources": {"cpuShares": "512", "memoryLimitInBytes": str(64 << 20)},
    }
    assert told() == expected
    # What the request leaves out stays, also in the next daemon.
    changed = pb.LinuxContainerResources(cpu_shares=256)
    request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=changed)
    cri.runtime.UpdatePodSandboxResources(request, timeout=TIMEOUT_S)
    expected["resources"] = {"cpuShares": "256"}
    cri.daemon.stop()
    cri.daemon.start()
    cri.reconnect()
    assert told() == expected
    cri.stop_pod(pod)
    for id in (pod, "f" * 64):
        with pytest.raises(grpc.RpcError) as failed:
            cri.runtime.UpdatePodSandboxResources(
                pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=id, resources=resources), timeout=TIMEOUT_S
            )
        expected_code = grpc.StatusCode.FAILED_PRECONDITION if id == pod else grpc.StatusCode.NOT_FOUND
        assert failed.value.code() is expected_code
    cri.remove_pod(pod)
