"""NRI on a real node: plugins in processes of their own, launched or connecting, see and change real containers."""

import json
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]

PROGRAM = Path(__file__).parents[1] / "fakes/nri_plugin.py"
TIMEOUT_MS = 2500
LIFE = [
    *("run_pod_sandbox", "create_container", "validate_container_adjustment", "post_create_container"),
    *("start_container", "post_start_container", "update_container", "post_update_container", "update_pod_sandbox"),
    *("post_update_pod_sandbox", "stop_container", "remove_container", "stop_pod_sandbox", "remove_pod_sandbox"),
]


class Node:
    """A daemon with NRI, one plugin that it launches, and any that connect."""

    def __init__(self, cri, directory, image):
        self.cri, self.directory, self.image = cri, directory, image
        self.socket = directory / "nri.sock"

    def events(self, plugin="20-launched", name=None):
        log = self.directory / f"{plugin}.log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if name in (None, line["event"])]

    @contextmanager
    def told(self, plugin="20-launched", **orders):
        """Have a plugin do something at events while the block runs; it has forgotten what was before."""
        file = self.directory / f"{plugin}.json"
        file.write_text(json.dumps(orders))
        (self.directory / f"{plugin}.log").unlink(missing_ok=True)
        try:
            yield
        finally:
            file.unlink()

    @contextmanager
    def connected(self, plugin):
        """A plugin that connects itself, synchronized already."""
        command = [sys.executable, str(PROGRAM), str(self.directory), plugin, str(self.socket)]
        (self.directory / f"{plugin}.log").unlink(missing_ok=True)
        environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=environment)
        assert process.stdout is not None
        try:
            hears(process, "synchronized")
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def pod(self, name):
        return self.cri.run_pod(name, network=pb.NODE)

    def create(self, pod, name, command="sleep 1000", **options):
        return self.cri.create(pod, self.cri.container_config(name, command, image=self.image, **options))

    def sh(self, id, command):
        request = pb.ExecSyncRequest(container_id=id, cmd=["/bin/sh", "-c", command], timeout=20)
        done = self.cri.runtime.ExecSync(request, timeout=TIMEOUT_S)
        return (done.stdout + done.stderr).decode()

    def update(self, id, **limits):
        linux = pb.LinuxContainerResources(**limits)
        request = pb.UpdateContainerResourcesRequest(container_id=id, linux=linux)
        self.cri.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)

    def cgroup(self, id, controller, file):
        """Return what is in a file of a container's cgroup."""
        for line in self.sh(id, "cat /proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return Path(f"/sys/fs/cgroup/{controller}{path}/{file}").read_text().strip()
        raise AssertionError(f"no {controller}")


def hears(process, event, limit_s=20):
    """Wait until a plugin has heard of an event."""
    line = b""
    while line.strip() != event.encode():
        readable, _, _ = select.select([process.stdout], [], [], limit_s)
        assert readable, f"the plugin has not heard of {event}"
        line = process.stdout.readline()
        assert line, "the plugin has ended"


@contextmanager
def node(directory, image, **settings):
    plugins, configs = directory / "plugins", directory / "conf.d"
    plugins.mkdir()
    configs.mkdir()
    launched = plugins / "20-launched"
    launched.write_text(
        f"#!/bin/sh\nPYTHONPATH={PROGRAM.parents[2]} exec {sys.executable} {PROGRAM} {directory} 20-launched\n"
    )
    launched.chmod(0o755)
    (configs / "launched.conf").write_text("some: configuration")
    values = {
        "registration_timeout_ms": 20000,
        "request_timeout_ms": TIMEOUT_MS,
        "plugin_path": str(plugins),
        "config_path": str(configs),
        "socket": str(directory / "nri.sock"),
        **settings,
    }
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    with cri_daemon(f"[nri]\nenabled = true\n{lines}") as cri:
        cri.pull(image)
        yield Node(cri, directory, image)


@pytest.fixture(scope="module")
def nri(busybox, tmp_path_factory):
    with node(tmp_path_factory.mktemp("nri"), busybox) as running:
        yield running


@pytest.fixture(scope="module")
def pod(nri):
    return nri.pod("pod")


def test_every_event_of_a_pod_and_a_container_arrives_in_order(nri):
    with nri.told(), nri.connected("30-other"):
        pod = nri.pod("life")
        id = nri.create(pod, "c", labels={"what": "test"})
        nri.cri.start(id)
        nri.update(id, cpu_shares=300)
        resources = pb.LinuxContainerResources(cpu_shares=300)
        nri.cri.runtime.UpdatePodSandboxResources(
            pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources), timeout=TIMEOUT_S
        )
        nri.cri.stop(id)
        nri.cri.remove(id)
        nri.cri.stop_pod(pod)
        nri.cri.remove_pod(pod)
        for plugin in ("20-launched", "30-other"):
            heard = nri.events(plugin)
            names = [one["event"] for one in heard if one["event"] not in ("configure", "synchronize", "synchronized")]
            assert names == LIFE
    made = next(one for one in heard if one["event"] == "create_container")
    assert (made["pod"]["id"], made["pod"]["name"], made["pod"]["namespace"]) == (pod, "life", "test")
    container = made["container"]
    assert (container["id"], container["pod_sandbox_id"], container["name"]) == (id, pod, "c")
    assert container["labels"] == {"what": "test"}
    assert container["args"] == ["/bin/sh", "-c", "sleep 1000"]
    assert any(entry.startswith("PATH=") for entry in container["env"])
    assert {"destination": "/proc", "type": "proc", "source": "proc"}.items() <= next(
        mount for mount in container["mounts"] if mount["destination"] == "/proc").items()  # fmt: skip
    states = {one["event"]: one["container"].get("state") for one in heard if "container" in one}
    assert states["start_container"] == "CONTAINER_CREATED"
    assert states["post_start_container"] == states["stop_container"] == "CONTAINER_RUNNING"
    assert states["remove_container"] == "CONTAINER_STOPPED"
    update = next(one for one in heard if one["event"] == "update_container")
    assert update["resources"]["cpu"] == {"shares": {"value": "300"}}


def test_a_launched_plugin_gets_its_configuration(nri):
    with nri.told():
        os.kill(plugin_pid(nri), 9)  # it is launched again
        with nri.connected("31-waits"):
            pass
        wait_for(nri, "20-launched", "synchronized")
        (configured,) = nri.events(name="configure")
        assert configured == {"event": "configure", "config": "some: configuration", "runtime": "runtimed"}


def plugin_pid(nri):
    needle = f"{nri.directory}\0" + "20-launched"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in path.read_text():
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError("the launched plugin does not run")


def test_an_end_that_nobody_asked_for_is_told_once(nri, pod):
    with nri.connected("30-other") as other:
        id = nri.create(pod, "ends", "exit 3")
        nri.cri.start(id)
        hears(other, "stop_container")
        (stopped,) = nri.events("30-other", "stop_container")
        assert (stopped["container"]["state"], stopped["container"]["exit_code"]) == ("CONTAINER_STOPPED", 3)
        nri.cri.remove(id)
        assert len(nri.events("30-other", "stop_container")) == 1
        hears(other, "remove_container")


ADJUST: dict[str, Any] = {
    "annotations": {"plugin": "was here"},
    "args": ["/bin/sh", "-c", "echo $FROM_PLUGIN; sleep 1000; :"],
    "env": [{"key": "FROM_PLUGIN", "value": "yes"}, {"key": "-TAKEN"}],
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 456, "soft": 123}],
    "linux": {
        "devices": [{"path": "/dev/nri", "type": "c", "major": 1, "minor": 3, "file_mode": {"value": 0o600}}],
        "namespaces": [{"type": "uts"}],
        "oom_score_adj": {"value": 321},
        "sysctl": {"kernel.msgmax": "4096"},
        "io_priority": {"class": "IOPRIO_CLASS_BE", "priority": 5},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        "memory_policy": {"mode": "MPOL_LOCAL"},
        "resources": {
            "memory": {"limit": {"value": 64 << 20}, "reservation": {"value": 32 << 20}},
            "cpu": {"shares": {"value": 512}, "quota": {"value": 50000}, "period": {"value": 100000}, "cpus": "0"},
            "pids": {"limit": 77},
        },
        "seccomp_policy": {
            "default_action": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno_ret": {"value": 38}}],
        },
    },
}


def test_a_container_is_as_the_plugin_wants_it(nri, pod, tmp_path):
    told = tmp_path / "told"
    (tmp_path / "file").write_text("of the host")
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"], "timeout": {"value": 10}}
    mount = {"destination": "/given", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro"]}
    moved = f"{nri.cri.daemon.cgroup_parent}/nri-moved"
    adjust = {**ADJUST, "mounts": [mount], "hooks": {"create_runtime": [hook]}}
    adjust["linux"] = {**ADJUST["linux"], "cgroups_path": moved}
    with nri.told(create_container={"answer": {"adjust": adjust}}):
        variable = pb.KeyValue(key="TAKEN", value=b"away")
        id = nri.create(pod, "adjusted", envs=[variable])
        nri.cri.start(id)
        after = nri.events(name="post_create_container")[0]["container"]
    assert "FROM_PLUGIN=yes" in after["env"]
    environment = nri.sh(id, "tr '\\0' '\\n' < /proc/1/environ")
    assert "FROM_PLUGIN=yes" in environment
    assert "TAKEN" not in environment
    assert nri.sh(id, "tr '\\0' ' ' < /proc/1/cmdline").startswith("/bin/sh -c echo $FROM_PLUGIN")
    assert nri.sh(id, "cat /given/file") == "of the host"
    assert "Read-only" in nri.sh(id, "touch /given/x")
    assert json.loads(told.read_text())["id"] == id
    assert nri.sh(id, "echo lost > /dev/nri; stat -c '%F %t %T' /dev/nri").strip() == "character special file 1 3"
    assert nri.sh(id, "cat /proc/1/oom_score_adj").strip() == "321"
    limits = nri.sh(id, "grep 'open files' /proc/1/limits").split()
    assert limits[3:5] == ["123", "456"]
    assert "not implemented" in nri.sh(id, "mkdir /made")
    assert nri.sh(id, "cat /proc/sys/kernel/msgmax").strip() == "4096"
    plain = nri.create(pod, "plain")
    nri.cri.start(plain)
    assert nri.sh(plain, "readlink /proc/1/ns/uts") != nri.sh(id, "readlink /proc/1/ns/uts")
    assert nri.cgroup(id, "memory", "memory.limit_in_bytes") == str(64 << 20)
    assert nri.cgroup(id, "memory", "memory.soft_limit_in_bytes") == str(32 << 20)
    assert nri.cgroup(id, "cpu", "cpu.shares") == "512"
    assert nri.cgroup(id, "cpu", "cpu.cfs_quota_us") == "50000"
    assert nri.cgroup(id, "cpuset", "cpuset.cpus") == "0"
    assert nri.cgroup(id, "pids", "pids.max") == "77"
    assert moved in nri.sh(id, "cat /proc/self/cgroup")
    (config,) = nri.cri.daemon.state.glob(f"*/k8s.io/{id}/config.json")
    spec = json.loads(config.read_text())
    assert spec["annotations"]["plugin"] == "was here"
    assert spec["process"]["ioPriority"] == {"class": "IOPRIO_CLASS_BE", "priority": 5}
    assert spec["process"]["scheduler"] == {"policy": "SCHED_BATCH", "nice": 3}
    assert spec["linux"]["memoryPolicy"] == {"mode": "MPOL_LOCAL"}
    status = nri.cri.status(id).resources.linux
    assert (status.memory_limit_in_bytes, status.cpu_shares, status.cpuset_cpus) == (64 << 20, 512, "0")
    # What CRI knows nothing of stays through its updates.
    nri.update(id, cpu_shares=600)
    assert nri.cgroup(id, "cpu", "cpu.shares") == "600"
    assert nri.cgroup(id, "pids", "pids.max") == "77"
    nri.cri.remove(plain)
    nri.cri.remove(id)


def shares(id, value, **options):
    return {"container_id": id, "linux": {"resources": {"cpu": {"shares": {"value": value}}}}, **options}


def test_other_containers_are_updated_at_each_occasion(nri, pod):
    other = nri.create(pod, "updated")
    nri.cri.start(other)
    with nri.told(create_container={"answer": {"update": [shares(other, 201)]}}):
        id = nri.create(pod, "occasion")
        assert nri.cgroup(other, "cpu", "cpu.shares") == "201"
    nri.cri.start(id)
    updates = [shares(other, 202), shares(id, 203)]
    with nri.told(update_container={"answer": {"update": updates}}):
        nri.update(id, cpu_shares=999, memory_limit_in_bytes=40 << 20)
        assert nri.cgroup(other, "cpu", "cpu.shares") == "202"
        assert nri.cgroup(id, "cpu", "cpu.shares") == "203"  # the plugin's word goes over the kubelet's
        assert nri.cgroup(id, "memory", "memory.limit_in_bytes") == str(40 << 20)
    with nri.told(stop_container={"answer": {"update": [shares(other, 204)]}}):
        nri.cri.stop(id)
        assert nri.cgroup(other, "cpu", "cpu.shares") == "204"
    nri.cri.remove(id)
    (nri.directory / "30-asks.json").write_text(
        json.dumps(
            {
                "synchronized": {
                    "answer": {"update": [shares(other, 205)]},
                    "ask": [shares("none", 5), shares(other, 206)],
                }
            }
        )
    )
    with nri.connected("30-asks"):
        wait_for(nri, "30-asks", "update_containers")
        assert nri.events("30-asks", "update_containers")[0]["failed"] == ["none"]
        assert nri.cgroup(other, "cpu", "cpu.shares") in ("205", "206")  # in whichever order they came
    assert nri.cri.status(other).resources.linux.cpu_shares in (205, 206)
    nri.cri.remove(other)


def test_a_container_is_evicted_for_another_one(nri, pod):
    other = nri.create(pod, "evicted", "trap 'exit 7' TERM; touch /ready; sleep 1000 & wait")
    nri.cri.start(other)
    nri.sh(other, "until [ -e /ready ]; do sleep 0.1; done")
    evicted = [{"container_id": other, "reason": "its place is needed"}, {"container_id": "none", "reason": "none"}]
    with nri.told(create_container={"answer": {"evict": evicted}}):
        id = nri.create(pod, "takes-its-place")
        status = nri.cri.status(other)  # it has ended when the call has, as by StopContainer
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 7)
        stopped = nri.events(name="stop_container")
        assert [one["container"]["id"] for one in stopped] == [other]
    nri.cri.start(id)
    assert nri.sh(id, "echo runs").strip() == "runs"
    for one in (other, id):
        nri.cri.remove(one)


def wait_for(nri, plugin, event):
    """Wait until a plugin has written of an event: nothing else tells of a file that is not there yet."""
    for _ in range(400):
        if nri.events(plugin, event):
            return
        select.select([], [], [], 0.05)
    raise AssertionError(f"{plugin} has not heard of {event}")


def test_two_plugins_that_want_the_same_are_refused_with_both_names(nri, pod):
    adjust = {"answer": {"adjust": {"env": [{"key": "ONE", "value": "x"}]}}}
    with nri.connected("30-other"), nri.told("30-other", create_container=adjust), nri.told(create_container=adjust):
        with pytest.raises(
            grpc.RpcError, match="20-launched and 30-other both set environment variable 'ONE'"
        ) as failed:
            nri.create(pod, "conflict")
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(nri.events("30-other", "remove_container")) == 1
        assert not nri.events("30-other", "stop_container")
    id = nri.create(pod, "conflict")  # nothing stayed reserved
    nri.cri.remove(id)


@pytest.mark.parametrize(
    ("orders", "problem"),
    [
        ({"create_container": {"raise": "no such luck"}}, "NRI plugin 20-launched: CreateContainer: .*no such luck"),
        ({"create_container": {"answer": {"adjust": {"mounts": [{"destination": "relative"}]}}}},
         "NRI plugin 20-launched, adjustment: mounts.destination: 'relative' is not an absolute path"),
        ({"create_container": {"answer": {"update": [shares("no-such-container", 5)]}}}, "no-such-container"),
        ({"validate_container_adjustment": {"answer": {"reject": True, "reason": "not here"}}},
         "NRI plugin 20-launched rejects the adjustment: not here"),
    ],
)  # fmt: skip
def test_what_a_plugin_refuses_or_gets_wrong_is_not_made(nri, pod, orders, problem):
    before = len(nri.cri.containers())
    with nri.told(**orders), pytest.raises(grpc.RpcError, match=problem):
        nri.create(pod, "refused")
    assert len(nri.cri.containers()) == before
    nri.cri.remove(nri.create(pod, "refused"))


def test_a_pod_that_a_plugin_refuses_leaves_nothing(nri):
    config = nri.cri.pod_config("refused", network=pb.NODE)
    with nri.told(run_pod_sandbox={"raise": "not today"}):
        with pytest.raises(grpc.RpcError, match="not today"):
            nri.cri.run(config)
        assert [one["event"] for one in nri.events()] == ["run_pod_sandbox", "stop_pod_sandbox", "remove_pod_sandbox"]
    nri.cri.remove_pod(nri.cri.run(config))


def test_a_plugin_that_dies_when_asked_is_gone_and_things_go_on(nri, pod):
    with nri.connected("30-other") as other, nri.told("30-other", create_container={"die": True}):
        id = nri.create(pod, "survives")
        other.wait()
    nri.cri.start(id)
    nri.cri.remove(id)


def test_no_container_is_missed_while_plugins_come(nri, pod):
    """Each one is either among those that a plugin is told of when it comes, or it is asked about it."""
    with ThreadPoolExecutor(3) as pool:
        making = [pool.submit(nri.create, pod, f"race-{number}") for number in range(24)]
        with nri.connected("40-comes"), nri.connected("41-comes"):
            ids = {one.result() for one in making}
            for plugin in ("40-comes", "41-comes"):
                (there,) = nri.events(plugin, "synchronize")
                asked = [one["container"]["id"] for one in nri.events(plugin, "create_container")]
                assert not set(there["containers"]) & set(asked)
                assert ids <= {*there["containers"], *asked}
    for id in ids:
        nri.cri.remove(id)


def test_plugins_synchronize_again_with_a_new_daemon(nri, pod):
    id = nri.create(pod, "stays")
    nri.cri.start(id)
    with nri.told():
        nri.cri.daemon.stop()
        assert [one["event"] for one in nri.events()] == ["shutdown"]
        nri.cri.daemon.start()
        nri.cri.reconnect()
        # Before the daemon is ready: nothing is made without the plugins that it launches.
        (there,) = nri.events(name="synchronize")
        assert pod in there["pods"]
        assert id in there["containers"]
    with nri.connected("30-other"):
        (there,) = nri.events("30-other", "synchronize")[-1:]
        assert id in there["containers"]
    nri.cri.remove(id)


@pytest.mark.parametrize("policy", ["closed", "retry"])
def test_without_an_answer_nothing_goes_on_where_that_is_the_policy(busybox, tmp_path, policy):
    with node(tmp_path, busybox, on_timeout=policy, request_timeout_ms=700) as nri:
        pod = nri.pod("pod")
        with (
            nri.told(create_container={"hang": 1.0}),
            pytest.raises(grpc.RpcError, match="20-launched: Create.*within 0.7 s"),
        ):
            nri.create(pod, "late")
        with nri.told(create_container={"die": True}), pytest.raises(grpc.RpcError, match="20-launched"):
            nri.create(pod, "late")
        with nri.told():
            with pytest.raises(
                grpc.RpcError, match="20-launched is not running, and nri.on_timeout does not allow that"
            ):
                nri.create(pod, "late")
            wait_for(nri, "20-launched", "synchronized")
            nri.create(pod, "late")  # it has been launched again
        nri.cri.remove_pod(pod)


def test_a_plugin_that_hangs_is_left_out_where_that_is_the_policy(nri, pod):
    with nri.connected("30-slow") as slow, nri.told("30-slow", create_container={"hang": 60}):
        id = nri.create(pod, "patient")
        assert slow.wait(timeout=20) is not None  # its connection has ended
    nri.cri.remove(id)
