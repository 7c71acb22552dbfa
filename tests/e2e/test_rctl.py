"""What a person does with rctl, against a real registry, a real runc and real mounts."""

import itertools
import json
import select
import signal
import subprocess

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import containers_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from tests.terminals import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_pull_says_what_it_did_and_images_lists_it(daemon, busybox):
    first = daemon.rctl("pull", busybox)
    assert busybox in first.stdout
    listed = json.loads(daemon.rctl("-o", "json", "images").stdout)
    assert busybox in [image["name"] for image in listed]


@pytest.mark.parametrize(("script", "status"), [("true", 0), ("exit 7", 7), ("exit 137", 137)])
def test_the_exit_status_is_the_containers(daemon, pulled, script, status):
    assert daemon.run("--rm", pulled, "--", "sh", "-c", script, check=False).returncode == status


def test_a_container_that_is_killed_gives_128_and_the_signal(daemon, pulled):
    command = daemon.rctl_command("run", "--rm", "--cgroup-parent", daemon.cgroup_parent, pulled, "victim", "sh", "-c")
    with subprocess.Popen([*command, "echo up; sleep 600"], stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        daemon.rctl("kill", "-s", "KILL", "victim")
        assert running.wait(20) == 137
    assert "victim" not in daemon.rctl("ps", "-aq").stdout.split()


def test_the_image_is_what_its_layers_say(daemon, pulled):
    done = daemon.run(
        "--rm", pulled, "--", "sh", "-c", "cat /etc/motd; ls /etc/removed; wc -l < /data/numbers", check=False
    )
    assert done.stdout == "welcome\n100000\n"
    assert "/etc/removed: No such file" in done.stderr


def test_the_environment_is_the_images_and_what_is_given(daemon, pulled):
    out = daemon.run("--rm", "-e", "GIVEN=a b", pulled, "--", "env").stdout
    assert {"GIVEN=a b", "FROM_IMAGE=yes"} <= set(out.splitlines())


def test_standard_input_reaches_the_container(daemon, pulled):
    text = "line\n" * 50_000
    assert daemon.run("--rm", "-i", pulled, "--", "wc", "-c", input=text).stdout.strip() == str(len(text))


def test_output_and_errors_are_kept_apart(daemon, pulled):
    done = daemon.run("--rm", pulled, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_a_mount_of_the_host(daemon, pulled, tmp_path):
    (tmp_path / "from-host").write_text("hello")
    script = "cat /mnt/from-host; echo reply > /mnt/from-container"
    assert daemon.run("--rm", "-v", f"{tmp_path}:/mnt", pulled, "--", "sh", "-c", script).stdout == "hello"
    assert (tmp_path / "from-container").read_text() == "reply\n"
    done = daemon.run("--rm", "-v", f"{tmp_path}:/mnt:ro", pulled, "--", "touch", "/mnt/x", check=False)
    assert "Read-only file system" in done.stderr
    assert done.returncode == 1


def test_a_terminal(daemon, pulled):
    command = daemon.rctl_command("run", "--rm", "-t", "--cgroup-parent", daemon.cgroup_parent, pulled, "tty1", "sh")
    status, output = at_terminal(command, b"test -t 0 && test -t 1 && echo ter''minal; exit 3\n")
    assert (status, b"terminal" in output) == (3, True), output


def test_a_detached_container_can_be_looked_at_entered_and_ended(daemon, pulled):
    started = daemon.run(
        "-d", pulled, "box", "sh", "-c", "echo started; trap 'echo ended; exit 4' TERM; sleep 600 & wait"
    )
    assert started.stdout == "box\n"
    try:
        assert daemon.rctl("exec", "box", "cat", "/etc/motd").stdout == "welcome\n"
        assert daemon.rctl("exec", "box", "sh", "-c", "exit 9", check=False).returncode == 9
        assert daemon.rctl("exec", "-i", "box", "cat", input="typed").stdout == "typed"
        (row,) = json.loads(daemon.rctl("-o", "json", "ps").stdout)
        assert (row["id"], row["status"].lower()) == ("box", "running")

        refused = daemon.rctl("rm", "box", check=False)
        assert refused.returncode == 1
        assert "box" in refused.stderr
        assert "-f" in refused.stderr

        daemon.rctl("kill", "box")
        while json.loads(daemon.rctl("-o", "json", "ps", "-a").stdout)[0]["status"].lower() == "running":
            pass
        assert daemon.rctl("logs", "box").stdout == "started\nended\n"
    finally:
        daemon.rctl("rm", "-f", "box")
    assert daemon.rctl("ps", "-aq").stdout == ""


def test_a_log_in_kubernetes_format_is_read_and_followed_through_a_rotation(daemon, pulled, tmp_path):
    log = tmp_path / "0.log"
    script = "echo one; echo problem >&2; printf begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ' and ended'"
    daemon.run("-d", "--log-uri", f"cri://{log}", pulled, "kube", "sh", "-c", script)
    try:
        while daemon.rctl("logs", "kube").stderr != "problem\n":
            pass
        assert daemon.rctl("logs", "kube").stdout == "one\n"  # the line that has begun is not in the log yet
        command = daemon.rctl_command("logs", "-f", "kube")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as follower:
            assert follower.stdout
            assert follower.stdout.readline() == b"one\n"
            log.rename(tmp_path / "0.log.1")
            daemon.rctl("exec", "kube", "touch", "/tmp/go")
            assert follower.communicate(timeout=30)[0] == b"begun and ended\n"
        assert daemon.rctl("logs", "-n", "1", "kube").stdout == "begun and ended\n"
        assert log.read_text().split(" ", 1)[1] == "stdout F begun and ended\n"
    finally:
        daemon.rctl("rm", "-f", "kube")
    assert log.exists()  # a file that --log-uri names is the user's


def test_output_can_go_to_a_program(daemon, pulled, tmp_path):
    program = tmp_path / "logger"
    program.write_text('#!/bin/sh\nexec 5<&-\ncat <&3 >"$2"; echo "$CONTAINER_ID" >>"$2"\n')
    program.chmod(0o755)
    uri = f"binary://{program}?to={tmp_path}/out"
    daemon.run("-d", "--log-uri", uri, pulled, "talker", "sh", "-c", "echo hello")
    refused = daemon.rctl("logs", "talker", check=False)
    assert uri in refused.stderr
    daemon.rctl("rm", "-f", "talker")
    assert (tmp_path / "out").read_text() == "hello\ntalker\n"


@pytest.mark.parametrize("uri", ["syslog:///x", "cri://relative", "/plain/path", "binary:///no/such/program"])
def test_a_log_that_cannot_be_is_refused_and_leaves_nothing(daemon, pulled, uri):
    done = daemon.run("-d", "--log-uri", uri, pulled, "none", "true", check=False)
    assert done.returncode == 1
    assert uri in done.stderr
    assert daemon.rctl("ps", "-aq").stdout == ""


def test_control_c_ends_the_container(daemon, pulled):
    script = "trap 'exit 5' INT; echo up; while true; do sleep 0.1; done"
    command = daemon.rctl_command(
        "run", "--rm", "--cgroup-parent", daemon.cgroup_parent, pulled, "--", "sh", "-c", script
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 5


def test_images_with_the_native_snapshotter(daemon, busybox):
    daemon.rctl("pull", "--snapshotter", "native", busybox)
    done = daemon.run("--rm", "--snapshotter", "native", busybox, "--", "cat", "/etc/motd")
    assert done.stdout == "welcome\n"


def test_an_embedded_image_needs_no_registry(daemon):
    done = daemon.run("--rm", "runtimed.io/hello:latest", "greeting", "7", check=False)
    assert (done.stdout, done.returncode) == ("hello from a runtimed container\n", 7)


def test_pause_ends_when_it_is_told_to(daemon):
    daemon.run("-d", "runtimed.io/pause:latest", "pause")
    daemon.rctl("kill", "-s", "TERM", "pause")
    while json.loads(daemon.rctl("-o", "json", "ps", "-a").stdout)[0]["status"].lower() == "running":
        pass
    daemon.rctl("rm", "pause")


def test_rmi_forgets_the_image_and_a_pull_brings_it_back(daemon, busybox):
    daemon.rctl("pull", busybox)
    daemon.rctl("rmi", busybox)
    assert busybox not in daemon.rctl("images").stdout
    daemon.rctl("pull", busybox)
    assert busybox in daemon.rctl("images").stdout


def test_events_are_told_as_they_happen(daemon, pulled):
    with subprocess.Popen(daemon.rctl_command("-o", "json", "events"), stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout
            # Until the first line comes the subscription may not stand yet: a label changes until it does.
            number = itertools.count()
            while not select.select([following.stdout], [], [], 0.3)[0]:
                daemon.ctr("namespaces", "label", daemon.namespace, f"n={next(number)}")
            daemon.run("--rm", pulled, "watched", "true")
            topics = []
            for line in following.stdout:
                topics.append(json.loads(line)["topic"])
                if topics[-1] == "/containers/delete":
                    break
            wanted = ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
            assert [topic for topic in topics if topic in wanted] == wanted
        finally:
            following.terminate()


def test_what_is_on_its_way_out_is_told_once_it_was_used(daemon):
    record = containers_pb2.Container(id="old", spec=Any(type_url="t", value=b"{}"))
    record.runtime.name = "io.containerd.runc.v1"
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        metadata = (("containerd-namespace", daemon.namespace),)
        ContainersStub(channel).Create(containers_pb2.CreateContainerRequest(container=record), metadata=metadata)
    assert "io.containerd.deprecation/runtime-runc-v1" in daemon.rctl("deprecations").stdout
    seen = json.loads(daemon.rctl("-o", "json", "deprecations").stdout)
    assert {"id", "message", "last_occurrence"} == set(seen[0])
    daemon.rctl("rm", "old")


def test_version_and_info_name_the_daemon(daemon):
    assert "0.1.0" in daemon.rctl("version").stdout
    assert str(daemon.pid) in daemon.rctl("-o", "json", "info").stdout
