"""Debian's dockerd with runtimed as its containerd: what people do with Docker, and what it asks of a daemon for it."""

import json
import os
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtimed.api import (
    containers_pb2,
    content_pb2,
    leases_pb2,
    namespaces_pb2,
    runc_options_pb2,
    tasks_pb2,
)
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.content_pb2_grpc import ContentStub
from runtimed.api.leases_pb2_grpc import LeasesStub
from runtimed.api.namespaces_pb2_grpc import NamespacesStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from tests.daemon import BIN, PrivateDaemon, private_daemon
from tests.dockerd import IMAGE, Dockerd, private_dockerd
from tests.e2e.test_cri_pods import listening_in
from tests.images.layouts import Layout
from tests.processes import is_alive
from tests.registry import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RECOVERS_WITHIN_S = 40.0  # how long Docker may need to be of use again after a restart of the daemon, at worst


@pytest.fixture(scope="module")
def docker(daemon: PrivateDaemon) -> Iterator[Dockerd]:
    with private_dockerd(daemon, daemon.base / "docker") as running:
        yield running


@pytest.fixture
def alone() -> Iterator[Dockerd]:
    """A dockerd and a runtimed of the test's own, to be stopped, killed and started again."""
    with private_daemon() as fresh, private_dockerd(fresh, fresh.base / "docker", "--live-restore") as running:
        yield running


def eventually(condition: Callable[[], object], limit_s: float = RECOVERS_WITHIN_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def state(docker: Dockerd, container: str) -> dict[str, Any]:
    [found] = json.loads(docker.out("inspect", container))
    assert isinstance(found["State"], dict)
    return {**found["State"], "RestartCount": found["RestartCount"]}


@contextmanager
def calls(docker: Dockerd) -> Iterator[grpc.Channel]:
    """A client of the daemon beside dockerd."""
    with grpc.insecure_channel(f"unix:{docker.daemon.address}") as channel:
        yield channel


MOBY = (("containerd-namespace", "moby"),)


def running(docker: Dockerd, *arguments: object) -> str:
    """Start a container in the background and return its ID."""
    return docker.out("run", "--detach", *arguments)


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 7"], 7, ""),
        (["nosuch"], 127, "executable file not found"),
        (["/no/such"], 127, "no such file or directory"),
        (["/etc"], 126, "permission denied"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_exit_status_of_run_is_the_programs_or_says_why_there_was_none(docker, command, status, text):
    done = docker("run", "--rm", IMAGE, *command, check=False)
    assert done.returncode == status
    assert text in done.stderr
    assert docker.out("ps", "--all", "--quiet") == ""


def test_a_runtime_that_is_not_installed_is_named(docker):
    done = docker("run", "--rm", "--runtime", "io.containerd.nosuch.v9", IMAGE, "true", check=False)
    assert done.returncode == 125
    assert "nosuch" in done.stderr


def test_streams_are_kept_apart_and_stdin_reaches_its_end(docker):
    done = docker("run", "--rm", "--interactive", IMAGE, "sh", "-c", "cat; echo problem >&2", input="given\n" * 50_000)
    assert done.stdout == "given\n" * 50_000
    assert done.stderr == "problem\n"


def test_a_terminal_is_one(docker):
    assert docker.out("run", "--rm", "--tty", IMAGE, "sh", "-c", "test -t 0 && test -t 1 && echo yes") == "yes"


def test_a_terminal_takes_input_and_sizes_from_a_terminal(docker):
    # A pseudoterminal for the client: it resizes the container's to the same.
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (31, 97))
    script = "read line; for i in $(seq 100); do stty size | grep '31 97' && break; sleep 0.1; done; echo $line"
    argv = docker.argv("run", "--rm", "--interactive", "--tty", IMAGE, "sh", "-c", script)
    with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as client:
        os.close(slave)
        os.write(master, b"word\n")
        output = b""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # EIO: nobody has the other end any more
                break
            output += data
    os.close(master)
    assert client.returncode == 0
    assert b"31 97" in output
    assert output.rstrip().endswith(b"word")


def test_exec_runs_in_the_container_and_tells_its_status(docker):
    id = running(docker, "--hostname", "inside", IMAGE, "sleep", "300")
    assert docker.out("exec", id, "hostname") == "inside"
    script = "id -u; echo $A; pwd"
    told = ("--user", "alice", "--env", "A=b", "--workdir", "/tmp")
    assert docker.out("exec", *told, id, "sh", "-c", script) == "1000\nb\n/tmp"
    assert docker("exec", "--interactive", id, "cat", input="through\n").stdout == "through\n"
    assert docker("exec", id, "sh", "-c", "exit 9", check=False).returncode == 9
    missing = docker("exec", id, "nosuch", check=False)
    assert missing.returncode in {126, 127}
    assert "executable file not found" in missing.stdout + missing.stderr
    assert docker.out("exec", "--tty", id, "sh", "-c", "test -t 1 && echo terminal") == "terminal"
    docker("rm", "--force", id)


def test_logs_are_kept_and_followed(docker):
    id = running(docker, IMAGE, "sh", "-c", "echo one; echo two >&2; read x < /dev/zero; sleep 300")
    eventually(lambda: docker("logs", id).stdout == "one\n")
    assert docker("logs", id).stderr == "two\n"
    command = docker.argv("logs", "--follow", id)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as follow:
        docker("kill", id)
        assert follow.communicate(timeout=30)[0] == b"one\n"
    docker("rm", id)


def test_stop_asks_first_and_kills_later(docker):
    polite = running(docker, IMAGE, "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
    docker("stop", polite)
    assert state(docker, polite)["ExitCode"] == 5
    deaf = running(docker, IMAGE, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    docker("stop", "--time", "1", deaf)
    assert state(docker, deaf)["ExitCode"] == 137
    docker("rm", polite, deaf)


def test_wait_tells_the_status_and_kill_sends_the_signal(docker):
    id = running(docker, IMAGE, "sh", "-c", "trap 'exit 3' USR1; while :; do sleep 0.1; done")
    with subprocess.Popen(docker.argv("wait", id), stdout=subprocess.PIPE) as wait:
        docker("kill", "--signal", "USR1", id)
        assert wait.communicate(timeout=30)[0] == b"3\n"
    docker("rm", id)


def test_pause_stops_all_processes_and_unpause_lets_them_go_on(docker):
    id = running(docker, IMAGE, "sleep", "300")
    docker("pause", id)
    assert state(docker, id)["Paused"] is True
    assert "paused" in docker("pause", id, check=False).stderr
    docker("unpause", id)
    assert state(docker, id)["Status"] == "running"
    assert "not paused" in docker("unpause", id, check=False).stderr
    docker("rm", "--force", id)


def test_top_lists_the_processes(docker):
    id = running(docker, IMAGE, "sh", "-c", "sleep 299 & sleep 300")
    eventually(lambda: docker.out("top", id, "-o", "pid,comm").split()[3::2] == ["sleep", "sleep"])
    docker("rm", "--force", id)


def test_a_container_that_fails_is_started_again_as_its_policy_says(docker):
    id = running(docker, "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo again; exit 4")
    eventually(lambda: state(docker, id)["Status"] == "exited")
    assert state(docker, id)["RestartCount"] == 2
    assert state(docker, id)["ExitCode"] == 4
    assert docker.out("logs", id) == "again\nagain\nagain"
    docker("rm", id)


def test_restart_and_start_again_under_the_same_id(docker):
    id = running(docker, IMAGE, "sh", "-c", "echo up; exec sleep 300")
    docker("restart", "--time", "0", id)
    docker("stop", "--time", "0", id)
    docker("start", id)
    assert state(docker, id)["Status"] == "running"
    assert docker.out("logs", id) == "up\nup\nup"
    docker("rm", "--force", id)


def test_a_health_check_runs_by_exec(docker):
    id = running(docker, "--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", IMAGE, "sleep", "300")
    docker("exec", id, "touch", "/tmp/well")
    eventually(lambda: state(docker, id)["Health"]["Status"] == "healthy")
    docker("rm", "--force", id)


def test_containers_reach_each_other_over_the_bridge(docker):
    server = running(docker, IMAGE, "sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    address = docker.out("inspect", "--format", "{{.NetworkSettings.IPAddress}}", server)
    eventually(lambda: docker("run", "--rm", IMAGE, "nc", "-w", "2", address, "80", check=False).stdout == "hello\n")
    docker("rm", "--force", server)


def test_what_run_is_told_of_mounts_users_and_limits_holds(docker, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the host\n")
    script = "cat /mnt/file; id -u; touch /x 2>&1; touch /scratch/y && echo scratch; cat /proc/1/comm"
    done = docker(
        "run", "--rm", "--init", "--read-only", "--tmpfs", "/scratch:mode=1777", "--user", "alice",
        "--pids-limit", "50", "--volume", f"{tmp_path}:/mnt:ro", "--memory", "64m", "--cpus", "0.5",
        IMAGE, "sh", "-c", script,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "from the host", "1000", "touch: /x: Read-only file system", "scratch", "docker-init"
    ]  # fmt: skip


def test_stats_and_update_are_of_the_container(docker):
    id = running(docker, "--memory", "64m", IMAGE, "sh", "-c", "while :; do :; done")
    told = json.loads(docker.out("stats", "--no-stream", "--format", "{{json .}}", id))
    assert told["MemUsage"].endswith("/ 64MiB")
    assert told["PIDs"] == "1"
    assert float(told["CPUPerc"].rstrip("%")) > 0
    docker("update", "--memory", "96m", "--memory-swap", "96m", "--pids-limit", "40", id)
    told = json.loads(docker.out("stats", "--no-stream", "--format", "{{json .}}", id))
    assert told["MemUsage"].endswith("/ 96MiB")
    docker("rm", "--force", id)


EAT = ("sh", "-c", "x=0123456789; while :; do x=$x$x; done")


def test_a_container_that_runs_out_of_memory_says_so(docker):
    id = running(docker, "--memory", "16m", "--memory-swap", "16m", IMAGE, *EAT)
    assert docker.out("wait", id) == "137"
    assert state(docker, id)["OOMKilled"] is True
    docker("rm", "--force", id)


def test_an_exec_that_runs_out_of_memory_is_told_before_its_end(docker):
    since = f"{time.time():.6f}"
    id = running(docker, "--memory", "16m", "--memory-swap", "16m", IMAGE, "sleep", "300")
    assert docker("exec", id, *EAT, check=False).returncode == 137
    until = f"{time.time():.6f}"
    window = ("--since", since, "--until", until, "--filter", f"container={id}")
    told = docker.out("events", *window, "--format", "{{.Action}}")
    assert [line for line in told.splitlines() if line in {"oom", "exec_die"}] == ["oom", "exec_die"]
    assert state(docker, id)["Status"] == "running"
    docker("rm", "--force", id)


def test_an_image_is_built_by_containers(docker, tmp_path):
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo made > /made\nCMD cat /made\n")
    docker("build", "--tag", "built", tmp_path, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    assert docker.out("run", "--rm", "built") == "made"
    docker("rmi", "built")


def test_events_tell_a_life_in_order(docker):
    since = f"{time.time():.6f}"
    docker("run", "--name", "life", IMAGE, "true")
    docker("rm", "life")
    lines = docker.out("events", "--since", since, "--until", f"{time.time():.6f}", "--format", "{{.Action}}")
    seen = [line for line in lines.splitlines() if line in {"create", "start", "die", "destroy"}]
    assert seen == ["create", "start", "die", "destroy"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_of_the_daemon_disturbs_no_container(alone, end):
    id = running(alone, IMAGE, "sh", "-c", "while :; do date +%s.%N; sleep 0.1; done")
    pid = state(alone, id)["Pid"]
    getattr(alone.daemon, end)()
    away = len(alone.out("logs", id).splitlines())
    eventually(lambda: len(alone.out("logs", id).splitlines()) > away)  # with no daemon there
    alone.daemon.start()
    eventually(lambda: alone("exec", id, "true", check=False).returncode == 0)
    assert state(alone, id)["Pid"] == pid
    assert alone.out("run", "--rm", IMAGE, "echo", "new") == "new"
    alone("kill", id)
    eventually(lambda: state(alone, id)["ExitCode"] == 137)


def test_an_exit_while_the_daemon_is_away_reaches_docker_when_it_is_back(alone):
    id = running(alone, IMAGE, "sh", "-c", "trap 'exit 8' USR1; while :; do sleep 0.1; done")
    eventually(lambda: "sleep" in alone.out("top", id))
    pid = state(alone, id)["Pid"]
    alone.daemon.kill()
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: not is_alive(pid))
    alone.daemon.start()
    eventually(lambda: state(alone, id)["Status"] == "exited")
    assert state(alone, id)["ExitCode"] == 8
    alone("start", id)
    assert state(alone, id)["Status"] == "running"


def test_a_shim_that_is_killed_takes_its_container_along(alone):
    id = running(alone, IMAGE, "sleep", "300")
    pid = state(alone, id)["Pid"]
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: state(alone, id)["Status"] == "exited")
    assert state(alone, id)["ExitCode"] == 137
    eventually(lambda: not is_alive(pid))
    alone("start", id)
    assert state(alone, id)["Status"] == "running"


def test_dockerd_finds_its_containers_again_and_how_they_ended_without_it(alone):
    stays = running(alone, IMAGE, "sleep", "300")
    goes = running(alone, "--interactive", IMAGE, "sh", "-c", "read line; exit 6")
    pid = state(alone, stays)["Pid"]
    ends = state(alone, goes)["Pid"]
    assert isinstance(ends, int)
    alone.stop(signal.SIGKILL)
    os.kill(ends, signal.SIGKILL)
    eventually(lambda: not is_alive(ends))
    alone.start()
    assert state(alone, stays)["Pid"] == pid
    assert alone.out("exec", stays, "echo", "here") == "here"
    eventually(lambda: state(alone, goes)["Status"] == "exited")
    assert state(alone, goes)["ExitCode"] == 137


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_container_that_ends_while_the_daemon_is_away_is_seen_to_have_ended(alone, end):
    id = running(alone, IMAGE, "sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done")
    lost = running(alone, IMAGE, "sleep", "300")
    pid = state(alone, id)["Pid"]
    shim = int(Path(f"/proc/{state(alone, lost)['Pid']}/stat").read_text().rpartition(")")[2].split()[1])
    getattr(alone.daemon, end)()
    os.kill(pid, signal.SIGTERM)
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    alone.daemon.start()
    eventually(lambda: state(alone, id)["Status"] == state(alone, lost)["Status"] == "exited")
    assert (state(alone, id)["ExitCode"], state(alone, lost)["ExitCode"]) == (6, 137)
    for container in (id, lost):
        alone("start", container)
        assert state(alone, container)["Status"] == "running"


def test_docker_names_its_daemon_and_what_version_it_has(docker):
    version = subprocess.run(
        [BIN / "runtimed", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    told = json.loads(docker.out("version", "--format", "{{json .Server.Components}}"))
    [found] = [one["Version"] for one in told if one["Name"] == "containerd"]
    assert version in found
    assert "io.containerd.runc.v2" in docker.out("info", "--format", "{{json .Runtimes}}")


def test_what_dockerd_records_of_a_container_is_kept_and_its_lease_is_gone(docker):
    id = running(docker, IMAGE, "sleep", "300")
    with calls(docker) as channel:
        found = ContainersStub(channel).Get(containers_pb2.GetContainerRequest(id=id), metadata=MOBY).container
        assert dict(found.labels) == {"com.docker/engine.bundle.path": str(docker.base / "exec/containerd" / id)}
        assert (found.image, found.snapshotter, found.snapshot_key) == ("", "", "")
        assert found.spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
        assert found.runtime.name == "io.containerd.runc.v2"
        assert found.runtime.options.type_url == "containerd.runc.v1.Options"
        options = runc_options_pb2.Options.FromString(found.runtime.options.value)
        assert (options.binary_name, options.root) == ("runc", str(docker.base / "exec/runtime-runc"))
        task = TasksStub(channel).Get(tasks_pb2.GetRequest(container_id=id), metadata=MOBY).process
        assert task.pid == state(docker, id)["Pid"]
        assert list(LeasesStub(channel).List(leases_pb2.ListRequest(), metadata=MOBY).leases) == []
        names = NamespacesStub(channel).List(namespaces_pb2.ListNamespacesRequest()).namespaces
        assert "moby" in {one.name for one in names}
        docker("rm", "--force", id)
        with pytest.raises(grpc.RpcError) as failed:
            ContainersStub(channel).Get(containers_pb2.GetContainerRequest(id=id), metadata=MOBY)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_container_that_an_earlier_dockerd_left_in_the_daemon_is_replaced(docker):
    id = docker.out("create", IMAGE, "true")
    stale = containers_pb2.Container(id=id, labels={"stale": "yes"})
    stale.runtime.name = "io.containerd.runc.v2"
    stale.spec.type_url, stale.spec.value = "types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}"
    with calls(docker) as channel:
        ContainersStub(channel).Create(containers_pb2.CreateContainerRequest(container=stale), metadata=MOBY)
    docker("start", "--attach", id)
    assert state(docker, id)["ExitCode"] == 0
    docker("rm", id)


def test_a_pull_keeps_the_manifest_in_the_daemon_under_a_lease(docker, registry: Registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    image = layout.image("1", [layout.layer({"file": b"pulled"})])
    name = registry.push(layout.root, "e2e/for-docker:1", source="1")
    config = json.loads(layout.path(image["digest"]).read_bytes())["config"]["digest"]
    assert docker.process is not None
    netns = f"/proc/{docker.process.pid}/ns/net"  # dockerd's, whose loopback is not the registry's
    port = int(registry.host.rpartition(":")[2])
    with relayed(listening_in(netns, port), ("127.0.0.1", port)), calls(docker) as channel:
        docker("pull", name)
        content, leases = ContentStub(channel), LeasesStub(channel)
        pieces = content.Read(content_pb2.ReadContentRequest(digest=image["digest"]), metadata=MOBY)
        assert b"".join(one.data for one in pieces) == layout.path(image["digest"]).read_bytes()
        [lease] = leases.List(leases_pb2.ListRequest(), metadata=MOBY).leases
        assert lease.id == f"moby-image-{config}"
        held = leases.ListResources(leases_pb2.ListResourcesRequest(id=lease.id), metadata=MOBY).resources
        assert [(one.type, one.id) for one in held] == [("content", image["digest"])]
        docker("rmi", name)
        assert list(leases.List(leases_pb2.ListRequest(), metadata=MOBY).leases) == []


@contextmanager
def relayed(server: socket.socket, address: tuple[str, int]) -> Iterator[None]:
    """Pass on to *address* what connects to *server*, until the block ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def accept(threads: ThreadPoolExecutor) -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:  # it was shut down
                return
            other = socket.create_connection(address)
            ends.extend((one, other))
            threads.submit(copy, one, other)
            threads.submit(copy, other, one)

    ends: list[socket.socket] = []
    with server, ThreadPoolExecutor(32) as threads:
        threads.submit(accept, threads)
        try:
            yield
        finally:
            for end in (server, *ends):
                with suppress(OSError):  # its peer has ended it
                    end.shutdown(socket.SHUT_RDWR)
            threads.shutdown()
            for end in ends:
                end.close()


def test_a_plugin_runs_in_a_namespace_of_its_own(docker):
    base = docker.base / "plugin"
    (base / "rootfs").mkdir(parents=True)
    subprocess.run(["tar", "-C", base / "rootfs", "-xf", docker.base / "tree.tar"], check=True)
    config = {
        "description": "",
        "entrypoint": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"],
        "interface": {"types": ["docker.logdriver/1.0"], "socket": "s"},
        "network": {"type": "none"},
    }
    (base / "config.json").write_text(json.dumps(config))
    docker("plugin", "create", "plug", base)
    id = docker.out("plugin", "inspect", "--format", "{{.Id}}", "plug")
    place = Path("/run/docker/plugins") / id  # there, whatever the exec-root is
    place.mkdir()
    metadata = (("containerd-namespace", "plugins.moby"),)
    with socket.socket(socket.AF_UNIX) as server, calls(docker) as channel:
        server.bind(str(place / "s"))  # what the plugin itself would do; dockerd connects to see whether it is up
        server.listen()
        docker("plugin", "enable", "plug")
        task = TasksStub(channel).Get(tasks_pb2.GetRequest(container_id=id), metadata=metadata).process
        assert Path(f"/proc/{task.pid}/cmdline").read_bytes().startswith(b"/bin/sh\0-c\0trap exit TERM")
        docker("plugin", "disable", "--force", "plug")
        with pytest.raises(grpc.RpcError) as failed:
            TasksStub(channel).Get(tasks_pb2.GetRequest(container_id=id), metadata=metadata)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    docker("plugin", "rm", "plug")


def test_dockerd_without_live_restore_ends_what_ran_and_tells_what_it_does_not_know(docker):
    """The last one of those that share a dockerd: it is killed and started again."""
    runs = running(docker, IMAGE, "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done")
    lost = running(docker, IMAGE, "sleep", "300")
    pid = state(docker, runs)["Pid"]
    docker.stop(signal.SIGKILL)
    with calls(docker) as channel:
        tasks = TasksStub(channel)
        tasks.Kill(tasks_pb2.KillRequest(container_id=lost, signal=signal.SIGKILL), metadata=MOBY)
        tasks.Wait(tasks_pb2.WaitRequest(container_id=lost), metadata=MOBY, timeout=30)
        tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=lost), metadata=MOBY)
    docker.start()
    eventually(lambda: state(docker, runs)["Status"] == state(docker, lost)["Status"] == "exited")
    eventually(lambda: not is_alive(pid))
    assert (state(docker, runs)["ExitCode"], state(docker, lost)["ExitCode"]) == (4, 255)
    docker("start", runs)
    assert state(docker, runs)["Status"] == "running"
    docker("rm", "--force", runs, lost)


def test_an_attached_client_goes_on_across_a_restart_of_the_daemon(alone):
    argv = alone.argv("run", "--rm", "--interactive", IMAGE, "sh", "-c", "cat; exit 3")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("before\n")
        client.stdin.flush()
        assert client.stdout.readline() == "before\n"
        eventually(lambda: alone.out("ps", "--quiet"))
        id = alone.out("ps", "--quiet", "--no-trunc")
        eventually(lambda: state(alone, id)["Running"])
        alone.daemon.kill()
        client.stdin.write("without\n")
        client.stdin.flush()
        assert client.stdout.readline() == "without\n"
        alone.daemon.start()
        eventually(lambda: alone("exec", id, "true", check=False).returncode == 0)
        assert client.communicate("after\n", timeout=60)[0] == "after\n"
    assert client.returncode == 3


def test_dockerd_that_starts_first_waits_for_its_daemon(alone):
    alone.stop()
    alone.daemon.stop()
    said = len(alone.log.read_text())
    with ThreadPoolExecutor(1) as threads:
        starts = threads.submit(alone.start)
        eventually(lambda: "Starting up" in alone.log.read_text()[said:])
        alone.daemon.start()
        starts.result()
    assert alone.out("run", "--rm", IMAGE, "echo", "served") == "served"
