"""NRI with plugins in Go, on the library that NRI's own plugins are written with, launched and connecting."""

import json
import os
import select
import subprocess
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon

LIFE = [
    *("RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"),
    *("UpdateContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer"),
    *("StopPodSandbox", "RemovePodSandbox"),
]


class Node:
    """A daemon with a plugin that it launches, and any that connect."""

    def __init__(self, cri, directory, image, program):
        self.cri, self.directory, self.image, self.program = cri, directory, image, program

    def events(self, plugin, name=None):
        log = self.directory / f"{plugin}.log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if name in (None, line["event"])]

    def wait_for(self, plugin, name):
        """Return the first *name* that *plugin* has heard of: nothing tells of a file that is not there yet."""
        for _ in range(600):
            if found := self.events(plugin, name):
                return found[0]
            select.select([], [], [], 0.05)
        raise AssertionError(f"{plugin} has not heard of {name}, only of {self.events(plugin)}")

    @contextmanager
    def connected(self, plugin):
        """A plugin that connects itself, synchronized already."""
        process = subprocess.Popen([self.program, plugin, self.directory, self.directory / "nri.sock"])
        try:
            self.wait_for(plugin, "Synchronize")
            yield
        finally:
            process.kill()
            process.wait()

    def create(self, pod, name, **annotations):
        config = self.cri.container_config(name, "sleep 1000", image=self.image, annotations=annotations)
        config.envs.append(pb.KeyValue(key="TAKEN", value=b"away"))
        return self.cri.create(pod, config)

    def shares(self, id):
        for line in self.cri.shell(id, "cat /proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpu" in controllers.split(","):
                return Path(f"/sys/fs/cgroup/cpu{path}/cpu.shares").read_text().strip()
        raise AssertionError("no cpu controller")


@pytest.fixture(scope="module")
def node(busybox, program, tmp_path_factory):
    directory = tmp_path_factory.mktemp("nri")
    plugins, configs = directory / "plugins", directory / "conf.d"
    plugins.mkdir()
    configs.mkdir()
    launched = plugins / "20-launched"
    launched.write_text(f"#!/bin/sh\nexec {program} 20-launched {directory}\n")
    launched.chmod(0o755)
    (configs / "launched.conf").write_text("some: configuration")
    settings = (
        f'[nri]\nenabled = true\nsocket = "{directory}/nri.sock"\nplugin_path = "{plugins}"\n'
        f'config_path = "{configs}"\n'
        "registration_timeout_ms = 20000\nrequest_timeout_ms = 10000\n"
    )
    with cri_daemon(settings) as cri:
        cri.pull(busybox)
        yield Node(cri, directory, busybox, program)


@pytest.fixture(scope="module")
def pod(node):
    return node.cri.run_pod("pod", network=pb.NODE)


def test_every_event_arrives_in_order(node):
    with node.connected("30-other"):
        pod = node.cri.run_pod("life", network=pb.NODE)
        id = node.create(pod, "c")
        node.cri.start(id)
        request = pb.UpdateContainerResourcesRequest(container_id=id, linux=pb.LinuxContainerResources(cpu_shares=300))
        node.cri.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)
        node.cri.stop(id)
        node.cri.remove(id)
        node.cri.stop_pod(pod)
        node.cri.remove_pod(pod)
        for plugin in ("20-launched", "30-other"):
            of_this = [one for one in node.events(plugin) if one.get("pod") == pod]
            assert [one["event"] for one in of_this] == LIFE
    (update,) = [one for one in of_this if one["event"] == "UpdateContainer"]
    assert update["shares"] == 300
    states = {one["event"]: one["state"] for one in of_this if one.get("state")}
    assert states["StartContainer"] == "CONTAINER_CREATED"
    assert states["StopContainer"] == "CONTAINER_RUNNING"
    assert states["RemoveContainer"] == "CONTAINER_STOPPED"


def test_a_launched_plugin_is_configured_and_synchronized(node):
    configured = node.wait_for("20-launched", "Configure")
    assert configured["config"] == "some: configuration"
    assert configured["runtime"].startswith("runtimed ")
    assert node.wait_for("20-launched", "Synchronize")


def test_a_container_is_as_the_plugin_wants_it(node, pod):
    id = node.create(pod, "adjusted", do="adjust")
    node.cri.start(id)
    environment = node.cri.shell(id, "tr '\\0' '\\n' < /proc/1/environ").splitlines()
    assert "FROM_PLUGIN=yes" in environment
    assert "TAKEN=away" not in environment
    assert " /given tmpfs " in node.cri.shell(id, "cat /proc/mounts")
    limits = node.cri.shell(id, "grep 'open files' /proc/1/limits").split()
    assert limits[3:5] == ["123", "456"]
    assert node.cri.shell(id, "stat -c '%F %t %T' /dev/nri").strip() == "character special file 1 3"
    assert node.shares(id) == "512"
    linux = node.cri.status(id).resources.linux
    assert (linux.memory_limit_in_bytes, linux.cpu_shares) == (64 << 20, 512)
    (config,) = node.cri.daemon.state.glob(f"*/k8s.io/{id}/config.json")
    assert json.loads(config.read_text())["annotations"]["plugin"] == "was here"


def test_what_a_plugin_refuses_is_not_made(node, pod):
    before = len(node.cri.containers())
    with pytest.raises(grpc.RpcError, match="NRI plugin 20-launched: CreateContainer: .*not today"):
        node.create(pod, "refused", do="refuse")
    assert len(node.cri.containers()) == before


def test_two_plugins_that_want_the_same_are_refused(node, pod):
    with node.connected("31-same"), pytest.raises(grpc.RpcError, match="20-launched and 31-same both set"):
        node.create(pod, "conflict", do="adjust")


def test_other_containers_are_updated_at_each_occasion(node, pod):
    first = node.create(pod, "first", do="synchronize")
    node.cri.start(first)
    with node.connected("32-synchronized"):
        assert first in node.events("32-synchronized", "Synchronize")[0]["containers"]
        assert pod in node.events("32-synchronized", "Synchronize")[0]["pods"]
        assert node.shares(first) == "301"
    node.create(pod, "second", do="update", whom=first)
    assert node.shares(first) == "302"
    asking = node.create(pod, "asking", do="ask")
    node.cri.start(asking)
    assert node.wait_for("20-launched", "UpdateContainers") == {"event": "UpdateContainers", "failed": ["none"]}
    assert node.shares(asking) == "303"


def test_a_plugin_that_is_killed_is_launched_again_and_knows_what_runs(node, pod):
    id = node.create(pod, "stays")
    node.cri.start(id)
    (pid,) = _processes(f"20-launched\0{node.directory}\0")
    (node.directory / "20-launched.log").unlink()
    os.kill(pid, 9)
    assert id in node.wait_for("20-launched", "Synchronize")["containers"]
    assert node.shares(id)


def _processes(arguments):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if arguments in path.read_text():
                yield int(path.parent.name)
        except OSError:
            continue
