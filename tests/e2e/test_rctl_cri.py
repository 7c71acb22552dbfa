"""rctl cri: a node looked at and mended by the calls that a kubelet makes, one pod at a time."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import Cri, cri_daemon
from tests.terminals import at_terminal

BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.root, pytest.mark.e2e]


class Node:
    """A daemon with a pod whose container says something, and rctl towards it."""

    def __init__(self, cri: Cri, image: str, files: Path) -> None:
        self.cri = cri
        self.image = image
        self.files = files

    def command(self, *words: str) -> list[str]:
        return [str(one) for one in self.cri.daemon.rctl_command(*words)]

    def rctl(self, *words: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command("cri", *words), capture_output=True, text=True, timeout=60, check=False, input=input
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    def ask(self, *words: str) -> Any:
        return json.loads(self.rctl(*words, "-o", "json").stdout)

    def file(self, name: str, text: str) -> str:
        (self.files / name).write_text(text)
        return str(self.files / name)


@pytest.fixture(scope="module")
def node(busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with cri_daemon() as cri:
        cri.write_network()
        node = Node(cri, busybox, tmp_path_factory.mktemp("node"))
        pod = {
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1"},
            "log_directory": str(cri.logs / "web"),
            "labels": {"app": "web"},
            "linux": {"cgroupParent": cri.daemon.cgroup_parent},  # either way to write a name will do
        }
        node.file("pod.json", json.dumps(pod))
        assert node.rctl("pull", busybox).stdout.startswith("sha256:")
        yield node


@pytest.fixture(scope="module")
def pod(node: Node) -> str:
    return node.rctl("runp", f"{node.files}/pod.json").stdout.strip()


def made(node: Node, name: str, script: str, more: str = "") -> str:
    """Create and start a container in the pod that runs *script* in a shell; return its ID."""
    # YAML, as people write it.
    document = f"""
metadata:
  name: {name}
image:
  image: {node.image}
command: [/bin/sh, -c, {json.dumps(script)}]
log_path: {name}.log
{more}
"""
    path = node.file(f"{name}.yaml", document)
    id = node.rctl("create", "web", path, f"{node.files}/pod.json").stdout.strip()
    assert node.rctl("start", id[:20]).stdout == f"{id}\n"
    return id


@pytest.fixture(scope="module")
def container(node: Node, pod: str) -> str:
    script = "trap 'echo bye; exit 3' TERM; echo hello; echo problem >&2; while :; do sleep 0.1; done"
    return made(node, "main", script)


def test_a_pod_and_its_container_are_listed(node, pod, container):
    (listed,) = node.ask("pods")
    assert (listed["id"], listed["metadata"]["name"], listed["state"]) == (pod, "web", "SANDBOX_READY")
    assert listed["created_at"].startswith("20")
    assert node.ask("pods", "--in", "shop", "--name", "we", "--state", "ready", "-l", "app=web") == [listed]
    for other in (["--in", "x"], ["--name", "x"], ["--state", "notready"], ["-l", "app=x"]):
        assert node.ask("pods", *other) == []
    (row,) = subprocess.run(node.command("pods"), capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    assert row.split()[:4] == [pod[:13], "web", "shop", "ready"]
    assert node.rctl("pods", "-q").stdout == f"{pod}\n"
    assert pod in node.rctl("pods", "--no-trunc").stdout
    (row,) = node.rctl("ps").stdout.splitlines()[1:]
    assert row.split()[:5] == [container[:13], "main", "web", "shop", "running"]
    assert row.endswith(node.image)
    assert node.rctl("ps", "--pod", "shop/web", "-q").stdout == f"{container}\n"
    assert node.ask("ps", "--state", "exited") == []


def test_they_are_shown_in_full(node, pod, container):
    shown = node.ask("inspectp", "shop/web")
    assert shown["status"]["id"] == pod
    assert shown["status"]["network"]["ip"].startswith(node.cri.subnet)
    assert shown["info"]["info"]["pid"] > 0
    shown = node.ask("inspect", "shop/web/main")
    assert shown["status"]["id"] == container
    assert shown["status"]["state"] == "CONTAINER_RUNNING"
    assert shown["status"]["exit_code"] == 0
    assert shown["status"]["started_at"].startswith("20")
    assert shown["info"]["info"]["sandboxID"] == pod


def test_what_could_be_several_is_refused_and_what_is_not_there_is_said(node, pod, container):
    others = [made(node, f"twin{number}", "exit 0", "labels: {of: twins}") for number in range(2)]
    assert node.rctl("inspect", "twin1").returncode == 0
    ids = [container, *others]
    shared = next((text for length in range(3) for text in {id[:length] for id in ids}
                   if text and sum(id.startswith(text) for id in ids) > 1), None)  # fmt: skip
    if shared is not None:  # of random IDs
        assert "could be any of" in node.rctl("inspect", shared, check=False).stderr
    refused = node.rctl("rm", "nobody", "twin0", "twin1", check=False)
    assert refused.returncode == 1
    assert "no container has the name 'nobody'" in refused.stderr
    assert "rctl cri ps -a" in refused.stderr
    assert refused.stdout.split() == others
    assert "no pod has the name 'nobody'" in node.rctl("inspectp", "nobody", check=False).stderr
    unknown = "0" * 64
    assert unknown in node.rctl("inspect", unknown, check=False).stderr
    assert "runs; stop it with 'rctl cri stop main'" in node.rctl("rm", "main", check=False).stderr
    assert "runs; stop it with 'rctl cri stopp web'" in node.rctl("rmp", "web", check=False).stderr


def test_logs(node, container):
    done = node.rctl("logs", "main")
    assert (done.stdout, done.stderr) == ("hello\n", "problem\n")
    stamped = node.rctl("logs", "-t", "--tail", "2", "main").stdout
    assert re.fullmatch(r"20\S+Z hello\n", stamped)
    assert node.rctl("logs", "--since", "1h30m", "main").stdout == "hello\n"
    at = stamped.split()[0]
    assert node.rctl("logs", "--since", at, "main").stdout == "hello\n"
    assert node.rctl("logs", "--since", "2999-01-01T00:00:00Z", "main").stdout == ""
    refused = node.rctl("logs", "--since", "soon", "main", check=False)
    assert (refused.returncode, "'soon' is neither" in refused.stderr) == (2, True)


def test_logs_are_followed_over_a_rotation_to_the_end(node, pod):
    script = "mkfifo /tmp/go; echo one; read l < /tmp/go; echo two; read l < /tmp/go; echo three >&2; exit 4"
    id = made(node, "chatty", script)
    path = Path(node.ask("inspect", id)["status"]["log_path"])

    def go() -> None:
        node.rctl("exec", "chatty", "sh", "-c", "echo > /tmp/go")

    following = subprocess.Popen(
        node.command("cri", "logs", "-f", "chatty"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert following.stdout.readline() == "one\n"
    go()
    assert following.stdout.readline() == "two\n"
    path.rename(f"{path}.1")
    node.cri.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id), timeout=30)
    go()
    assert following.communicate(timeout=30) == ("", "three\n")
    assert following.returncode == 0
    assert node.ask("inspect", id)["status"]["exit_code"] == 4
    node.rctl("rm", id)


def test_exec(node, container):
    done = node.rctl("exec", "main", "sh", "-c", "echo out; echo err >&2; exit 5", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    data = os.urandom(1 << 20).hex()
    assert node.rctl("exec", "-i", "shop/web/main", "cat", input=data).stdout == data
    done = node.rctl("exec", "--sync", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 6", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (6, "out\n", "err\n")
    slow = node.rctl("exec", "--sync", "--timeout", "1", "main", "sleep", "60", check=False)
    assert (slow.returncode, "timeout" in slow.stderr or "1 s" in slow.stderr) == (1, True), slow.stderr
    missing = node.rctl("exec", "main", "/no/such", check=False)
    assert missing.returncode in {1, 126, 127}
    assert "no such file" in missing.stderr
    assert "not a terminal" in node.rctl("exec", "-t", "main", "sh", check=False).stderr


def test_exec_with_a_terminal_of_a_size(node, container):
    command = shlex.join(node.command("cri", "exec", "-it", "main", "sh"))
    # Until the size is told: nobody promises that it is when the shell begins.
    typed = b"until test \"$(stty size)\" = '37 111'; do sleep 0.05; done; echo it is $((36 + 1)); exit 9\n"
    status, seen = at_terminal(["sh", "-c", f"stty rows 37 cols 111; exec {command}"], typed)
    assert status == 9
    assert b"it is 37" in seen


def test_attach(node, pod):
    script = "while read line; do echo got $line; echo so >&2; done; echo end; exit 3"
    made(node, "reader", script, "stdin: true\nstdin_once: true")
    done = node.rctl("attach", "-i", "shop/web/reader", input="one\ntwo\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "got one\ngot two\nend\n", "so\nso\n")
    assert node.ask("inspect", "reader")["status"]["exit_code"] == 3
    assert node.rctl("logs", "reader").stdout == done.stdout
    assert "is not running" in node.rctl("attach", "reader", check=False).stderr
    node.rctl("rm", "reader")


def test_attach_to_a_terminal(node, pod):
    made(node, "shell", "exec sh", "stdin: true\ntty: true")
    status, seen = at_terminal(node.command("cri", "attach", "-it", "shell"), b"echo it is $((36 + 1)); exit\n")
    assert (status, b"it is 37" in seen) == (0, True)
    node.rctl("rm", "-f", "shell")


def test_a_reader_that_leaves_ends_it(node, container):
    script = shlex.join(node.command("cri", "exec", "main", "yes")) + " | head -n 1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "y\n"


def test_port_forward(node, pod):
    made(node, "echo", "nc -ll -p 7 -e cat")
    node.rctl("exec", "echo", "sh", "-c", "until grep -q :0007 /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done")
    command = node.command("cri", "port-forward", "web", "0:7", "0:8")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as forwarding:
        try:
            assert forwarding.stdout is not None
            assert forwarding.stderr is not None
            ports = [int(forwarding.stdout.readline().split()[0].rpartition(":")[2]) for _ in range(2)]
            data = os.urandom(300_000)
            for _ in range(2):  # more than one connection
                with socket.create_connection(("127.0.0.1", ports[0]), timeout=30) as connection:
                    threading.Thread(target=connection.sendall, args=(data,)).start()
                    with connection.makefile("rb") as answers:
                        assert answers.read(len(data)) == data
            with socket.create_connection(("127.0.0.1", ports[1]), timeout=30) as connection:
                assert connection.recv(1) == b""
            assert "port 8:" in forwarding.stderr.readline()
        finally:
            forwarding.terminate()
        assert forwarding.wait(timeout=30) == 128 + 15
    assert "[LOCAL:]REMOTE" in node.rctl("port-forward", "web", "x:1", check=False).stderr
    node.rctl("rm", "-f", "echo")


def test_what_is_used(node, pod, container):
    (used,) = node.ask("stats", "--no-stream", "main")
    assert used["attributes"]["id"] == container
    assert used["memory"]["working_set_bytes"] > 0
    assert used["cpu_percent"] >= 0
    assert node.rctl("stats", "--no-stream").stdout.splitlines()[1].split()[:2] == [container[:13], "main"]
    (used,) = node.ask("statsp", "--no-stream", "shop/web")
    assert used["attributes"]["id"] == pod
    assert used["linux"]["network"]["default_interface"]["name"] == "eth0"
    assert node.rctl("statsp", "--no-stream").stdout.splitlines()[1].split()[:3] == [pod[:13], "web", "shop"]
    lines = node.rctl("metrics", "web").stdout.splitlines()
    assert any(re.fullmatch(r'container_cpu_usage_seconds_total\{.*container="main".*\} \d+', line) for line in lines)
    names = {one["name"] for one in node.ask("metrics", "--describe")}
    assert {re.split(r"\{", line)[0] for line in lines} <= names


def test_update(node, container):
    assert node.rctl("update", "--memory", "64m", "--cpus", "0.5", "main").stdout == f"{container}\n"
    linux = node.ask("inspect", "main")["status"]["resources"]["linux"]
    assert (linux["memory_limit_in_bytes"], linux["cpu_quota"], linux["cpu_period"]) == (64 << 20, 50000, 100000)
    assert "give a limit" in node.rctl("update", "main", check=False).stderr


def test_images(node, container):
    (image,) = [one for one in node.ask("images") if node.image in one["repo_tags"]]
    assert not image["pinned"]
    assert node.ask("images", node.image) == [image]
    row = next(line for line in node.rctl("images").stdout.splitlines() if line.startswith(node.image))
    assert row.split()[1] == image["id"].removeprefix("sha256:")[:13]
    assert node.ask("inspecti", node.image)["image"] == image
    assert "is not here" in node.rctl("inspecti", "none", check=False).stderr
    assert "is not here" in node.rctl("rmi", "none", check=False).stderr
    assert node.rctl("rmi", "--prune").stdout == ""  # in use, or pinned
    usages = node.ask("imagefsinfo")
    assert usages["image_filesystems"][0]["used_bytes"] > 0
    assert node.rctl("imagefsinfo").stdout.splitlines()[1].startswith("images")


def test_the_node(node):
    conditions = {one["type"]: one["status"] for one in node.ask("info")["status"]["conditions"]}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}
    assert re.search(r"NetworkReady +true", node.rctl("info").stdout)
    assert node.ask("version")["runtime_name"] == "runtimed"
    assert node.rctl("version").stdout.startswith("runtime: runtimed ")
    assert node.rctl("runtime-config").stdout == "cgroup driver: cgroupfs\n"
    assert node.ask("runtime-config", "--pod-cidr", "10.1.0.0/16") == {"linux": {"cgroup_driver": "CGROUPFS"}}


def test_events(node, container):
    command = node.command("cri", "events")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            # Whether the subscription stands is told by the first event: containers are made until it comes.
            seen = threading.Event()
            lines: list[str] = []

            def read(output: IO[str] = watching.stdout) -> None:
                for line in output:
                    lines.append(line)
                    seen.set()

            reading = threading.Thread(target=read)
            reading.start()
            while not seen.wait(0.05):
                node.rctl("rm", made(node, "short", "exit 0"), "-f")
            assert any(re.fullmatch(r"20\S+Z (created|started|stopped|deleted) +shop/web container.*\n", line)
                       for line in lines)  # fmt: skip
        finally:
            watching.terminate()
        reading.join(30)


def test_names_are_completed(node, pod, container):
    def completed(*words: str, begun: str = "") -> list[str]:
        environment = {
            "_RCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": shlex.join(["rctl", "-a", str(node.cri.daemon.address), "cri", *words, begun]),
            "COMP_CWORD": str(len(words) + 4),
            "PATH": "/bin",
        }
        done = subprocess.run([BIN / "rctl"], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert completed("stopp") == ["web", "shop/web"]
    assert completed("stopp", begun="none") == []
    assert completed("logs", begun="shop/web/m") == ["shop/web/main"]
    assert completed("exec", begun=container[:4])[-1] == container
    assert node.image in completed("rmi")


def test_a_configuration_that_cannot_be_is_refused_by_its_field(node, pod):
    wrong = node.file("wrong.yaml", "metadata: {name: x}\nimages: none\n")
    refused = node.rctl("create", "web", wrong, f"{node.files}/pod.json", check=False)
    assert refused.returncode == 1
    assert 'has no field named "images"' in refused.stderr
    assert "wrong.yaml" in refused.stderr
    for name, text in (("list", "[1]"), ("torn", '{"metadata":'), ("neither", "a: b: c")):
        refused = node.rctl("runp", node.file(name, text), check=False)
        assert (refused.returncode, name in refused.stderr) == (1, True)
    assert "no/such" in node.rctl("runp", "no/such", check=False).stderr


def test_run_makes_pod_and_container_or_neither(node, pod, container):
    document = json.loads((node.files / "pod.json").read_text())
    document["metadata"] = {"name": "one", "namespace": "shop", "uid": "u2"}
    config = node.file("one.json", json.dumps(document))
    failing = node.file("failing.json", json.dumps({"metadata": {"name": "x"}, "image": {"image": "none"}}))
    assert node.rctl("run", failing, config, check=False).returncode == 1
    assert node.ask("pods", "--name", "one") == []
    good = {"metadata": {"name": "x"}, "image": {"image": node.image}, "command": ["sleep", "1000"]}
    ids = node.ask("run", "--pull", node.file("good.json", json.dumps(good)), config)
    assert node.ask("ps", "--name", "x")[0]["id"] == ids["container"]
    assert node.rctl("rmp", "-f", "one").stdout == f"{ids['pod']}\n"


def test_stop_and_remove(node, pod, container):
    assert node.rctl("stop", "main").stdout == f"{container}\n"
    (ended,) = node.ask("ps", "--state", "exited")
    assert ended["id"] == container
    assert node.ask("inspect", "main")["status"]["exit_code"] == 3
    assert node.rctl("logs", "--tail", "1", "main").stdout == "bye\n"
    assert "is not running" in node.rctl("exec", "main", "true", check=False).stderr
    assert node.rctl("rm", "main").stdout == f"{container}\n"
    assert node.rctl("stopp", "web").stdout == f"{pod}\n"
    assert node.ask("pods", "--state", "notready")[0]["id"] == pod
    assert node.rctl("rmp", "web").stdout == f"{pod}\n"
    assert node.ask("pods") == []
