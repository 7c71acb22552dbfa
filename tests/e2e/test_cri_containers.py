"""Containers over the daemon's socket: their life, logs, events, and what survives the daemon."""

import os
import select
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("pod", network=pb.NODE)


@pytest.fixture
def run(cri, pod, busybox):
    """Return a function that starts a container that runs a shell command; it is removed afterwards."""
    made = []

    def run(name, command, *, start=True, **options):
        config = cri.container_config(name, command, image=busybox, **options)
        made.append(cri.create(pod, config))
        if start:
            cri.start(made[-1])
        return made[-1]

    yield run
    for id in made:
        cri.remove(id)


@contextmanager
def ending(cri, id):
    """Wait at the end of the block until the container has ended."""
    with cri.events() as events:
        yield
        if cri.status(id).state != pb.CONTAINER_EXITED:
            next(e for e in events if e.container_id == id and e.container_event_type == pb.CONTAINER_STOPPED_EVENT)


def wait(cri, id):
    with ending(cri, id):
        pass
    return cri.status(id)


def log(cri, name):
    return (cri.logs / "pod" / f"{name}.log").read_text().splitlines()


def test_a_container_goes_through_its_states(cri, run, pod, busybox):
    id = run("life", "echo hello; echo oops >&2; sleep 0.1; exit 3", start=False)
    status = cri.status(id)
    assert (status.state, status.started_at, status.exit_code) == (pb.CONTAINER_CREATED, 0, 0)
    assert status.image.image == busybox
    assert status.image_id.startswith("sha256:")
    assert "@sha256:" in status.image_ref
    cri.start(id)
    status = wait(cri, id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 3, "Error")
    assert status.created_at < status.started_at < status.finished_at
    lines = [line.split(" ", 1)[1] for line in log(cri, "life")]
    assert sorted(lines) == ["stderr F oops", "stdout F hello"]
    assert status.log_path == str(cri.logs / "pod/life.log")


def test_an_end_without_an_error_is_completed(cri, run):
    assert wait(cri, run("fine", "exit 0")).reason == "Completed"


def test_a_command_that_does_not_exist_is_a_start_error(cri, pod, busybox):
    config = cri.container_config("none", image=busybox)
    config.command.append("/no/such/program")
    id = cri.create(pod, config)
    with pytest.raises(grpc.RpcError, match="/no/such/program"):
        cri.start(id)
    status = cri.status(id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "/no/such/program" in status.message
    cri.remove(id)


@pytest.fixture
def trapping(run, tmp_path):
    """Return a function that starts a container whose shell sets traps, and then says so and loops."""

    def start(name, traps, **options):
        fifo = tmp_path / name
        os.mkfifo(fifo)
        mount = pb.Mount(container_path="/ready", host_path=str(fifo))
        id = run(name, f"{traps}; echo > /ready; while :; do sleep 0.05; done", mounts=[mount], **options)
        assert fifo.read_text() == "\n"
        return id

    return start


def test_stop_sends_the_signal_and_kills_what_does_not_end(cri, trapping):
    polite = trapping("polite", "trap 'exit 7' TERM")
    cri.stop(polite, 30)
    assert cri.status(polite).exit_code == 7
    deaf = trapping("deaf", "trap '' TERM")
    cri.stop(deaf, 1)
    assert cri.status(deaf).exit_code == 137
    cri.stop(deaf)
    cri.stop("0" * 64)


def test_the_stop_signal_of_the_configuration_counts(cri, trapping):
    id = trapping("signal", "trap 'exit 9' USR1; trap '' TERM", stop_signal=pb.SIGUSR1)
    assert cri.status(id).stop_signal == pb.SIGUSR1
    cri.stop(id, 30)
    assert cri.status(id).exit_code == 9


def test_a_running_container_can_be_removed(cri, pod, busybox):
    id = cri.create(pod, cri.container_config("gone", "sleep 100", image=busybox))
    cri.start(id)
    cri.remove(id)
    assert id not in [one.id for one in cri.containers()]
    with pytest.raises(grpc.RpcError) as failed:
        cri.status(id)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    cri.remove(id)


def test_containers_are_listed_by_state_label_pod_and_id(cri, run, pod):
    one = run("one", "sleep 100", labels={"k": "1", "all": "y"})
    two = run("two", "sleep 100", labels={"k": "2", "all": "y"}, start=False)

    def ids(**fields):
        return {one.id for one in cri.containers(**fields)}

    assert {one, two} <= ids()
    assert ids(label_selector={"all": "y"}) == {one, two}
    running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert ids(label_selector={"all": "y"}, state=running) == {one}
    assert ids(id=two[:10]) == {two}
    assert ids(pod_sandbox_id=pod) == ids()
    assert ids(pod_sandbox_id="f" * 64) == set()
    stream = cri.runtime.StreamContainers(pb.StreamContainersRequest(), timeout=TIMEOUT_S)
    assert {found.id for some in stream for found in some.containers} == ids()


def test_the_same_request_once_more_gets_the_same_container(cri, run, pod, busybox):
    config = cri.container_config("again", "sleep 100", image=busybox)
    id = cri.create(pod, config)
    assert cri.create(pod, config) == id
    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(cri.start, id) for _ in range(3)]:
            done.exception()  # those that come after it has run are refused
    assert cri.status(id).state == pb.CONTAINER_RUNNING
    with pytest.raises(grpc.RpcError) as failed:
        cri.create(pod, config)
    assert failed.value.code() is grpc.StatusCode.ALREADY_EXISTS
    cri.remove(id)


def test_what_cannot_be_created_leaves_nothing(cri, pod, busybox):
    before = cri.daemon.ctr("snapshots", "ls").stdout
    for options, code in (
        ({"image": "registry.example/none:1"}, grpc.StatusCode.NOT_FOUND),
        ({"image": busybox, "name": ""}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        config = cri.container_config(options.pop("name", "bad"), "true", **options)
        with pytest.raises(grpc.RpcError) as failed:
            cri.create(pod, config)
        assert failed.value.code() is code
    with pytest.raises(grpc.RpcError) as failed:
        cri.create("f" * 64, cri.container_config("bad", "true", image=busybox))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert cri.daemon.ctr("snapshots", "ls").stdout == before


def test_a_stopped_pod_takes_no_containers_and_its_own_have_ended(cri, busybox):
    pod = cri.run_pod("stopped", network=pb.NODE)
    id = cri.create(pod, cri.container_config("in", "sleep 100", image=busybox))
    cri.start(id)
    waiting = cri.create(pod, cri.container_config("waiting", "sleep 100", image=busybox))
    cri.stop_pod(pod)
    assert cri.status(id).exit_code == 137
    for call in (
        lambda: cri.create(pod, cri.container_config("late", "true", image=busybox)),
        lambda: cri.start(waiting),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    cri.remove_pod(pod)
    assert not cri.containers(pod_sandbox_id=pod)
    assert not cri.containers(id=id)


def test_events_tell_each_step_with_the_state_there_was(cri, busybox):
    with cri.events() as events:
        pod = cri.run_pod("events", network=pb.NODE)
        id = cri.create(pod, cri.container_config("one", "exit 4", image=busybox))
        cri.start(id)
        seen = []
        for event in events:
            seen.append((event.container_id, event.container_event_type))
            assert event.pod_sandbox_status.id == pod
            if seen[-1] == (id, pb.CONTAINER_STOPPED_EVENT):
                [status] = event.containers_statuses
                assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 4)
                break
        cri.remove_pod(pod)
        for event in events:
            seen.append((event.container_id, event.container_event_type))
            if seen[-1] == (pod, pb.CONTAINER_DELETED_EVENT):
                break
    created, started, stopped, deleted = range(4)
    assert seen == [
        *((pod, created), (pod, started), (id, created), (id, started), (id, stopped)),
        *((pod, stopped), (id, deleted), (pod, deleted)),
    ]


def test_a_container_out_of_memory_says_so(cri, run):
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
    status = wait(cri, run("oom", "a=x; while :; do a=$a$a; done", resources=resources))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert status.resources.linux.memory_limit_in_bytes == 16 << 20


def exec_sync(cri, id, *command, timeout=0, deadline=TIMEOUT_S):
    request = pb.ExecSyncRequest(container_id=id, cmd=command, timeout=timeout)
    done = cri.runtime.ExecSync(request, timeout=deadline)
    return done.stdout, done.stderr, done.exit_code


def names(cri, id):
    """Return the command lines of what runs in a container."""
    stdout, _, _ = exec_sync(cri, id, "ps", "-o", "args")
    return stdout.decode().splitlines()


def test_a_command_is_run_and_its_output_told(cri, run):
    id = run("exec", "sleep 1000")
    assert exec_sync(cri, id, "sh", "-c", "echo out; echo err >&2; exit 5") == (b"out\n", b"err\n", 5)
    assert exec_sync(cri, id, "sh", "-c", "sleep 100 & echo done") == (b"done\n", b"", 0)
    with pytest.raises(grpc.RpcError, match="no-such-program"):
        exec_sync(cri, id, "/no-such-program")
    for command, of, code in (
        ((), id, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), "f" * 64, grpc.StatusCode.NOT_FOUND),
        (("true",), run("unstarted", "true", start=False), grpc.StatusCode.FAILED_PRECONDITION),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            exec_sync(cri, of, *command)
        assert failed.value.code() is code
    assert not list((cri.daemon.state / "cri/exec").iterdir())


@pytest.mark.parametrize("by", ["timeout", "caller"])
def test_a_command_that_takes_too_long_is_ended(cri, run, by):
    id = run(f"slow-{by}", "sleep 1000")
    limits = {"timeout": {"timeout": 1}, "caller": {"deadline": 1}}[by]
    with pytest.raises(grpc.RpcError) as failed:
        exec_sync(cri, id, "sleep", "4321", **limits)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for _ in range(100):  # the caller's leaving is known to the daemon a moment later; each look is a call
        if "sleep 4321" not in names(cri, id):
            break
    assert "sleep 4321" not in names(cri, id)


def test_of_endless_output_only_what_fits_is_kept(cri, run):
    id = run("endless", "sleep 1000")
    stdout, stderr, _ = exec_sync(cri, id, "sh", "-c", "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2")
    assert 15 << 20 < len(stdout) + len(stderr) <= 16 << 20
    with pytest.raises(grpc.RpcError) as failed:
        exec_sync(cri, id, "cat", "/dev/zero", timeout=1)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_many_commands_at_once_each_get_their_own(cri, run):
    id = run("storm", "sleep 1000")
    with ThreadPoolExecutor(13) as threads:
        done = [threads.submit(exec_sync, cri, id, "sh", "-c", f"echo {n}; exit {n}") for n in range(26)]
        assert [one.result() for one in done] == [(f"{n}\n".encode(), b"", n) for n in range(26)]


def test_resources_are_changed_while_it_runs_and_before(cri, run):
    resources = pb.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 << 20)
    running = run("resized", "sleep 1000", resources=resources)
    waiting = run("resized-before", "sleep 1000", resources=resources, start=False)
    changed = pb.LinuxContainerResources(memory_limit_in_bytes=80 << 20)
    for id in (running, waiting):
        request = pb.UpdateContainerResourcesRequest(container_id=id, linux=changed)
        cri.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)
        told = cri.status(id).resources.linux
        assert (told.cpu_shares, told.memory_limit_in_bytes) == (512, 80 << 20)
    cri.start(waiting)
    for id in (running, waiting):
        [path] = [
            path / name
            for path in Path("/sys/fs/cgroup").glob(f"**/{id}")
            for name in ("memory.limit_in_bytes", "memory.max")
            if (path / name).exists()
        ]
        assert int(path.read_text()) == 80 << 20
    cri.stop(running)
    with pytest.raises(grpc.RpcError) as failed:
        cri.runtime.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id=running, linux=changed), timeout=TIMEOUT_S
        )
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_checkpoint_that_cannot_be_is_refused_and_the_container_goes_on(cri, run, tmp_path):
    """With criu: vm/inside/test_cri_checkpoint.py."""
    id = run("kept", "while :; do echo on; usleep 10000; done")
    ended = run("ended", "true")
    wait(cri, ended)

    def refused(container, location):
        request = pb.CheckpointContainerRequest(container_id=container, location=location)
        with pytest.raises(grpc.RpcError) as failed:
            cri.runtime.CheckpointContainer(request, timeout=TIMEOUT_S)
        return failed.value.code(), failed.value.details()

    assert refused(id, "relative")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert refused("f" * 64, "/x")[0] is grpc.StatusCode.NOT_FOUND
    assert refused(ended, "/x") == (grpc.StatusCode.FAILED_PRECONDITION, f"container {ended} is not running")
    if shutil.which("criu") is None:
        code, told = refused(id, str(tmp_path / "c.tar"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "need criu: install it" in told
    log = Path(cri.status(id).log_path)
    size = log.stat().st_size
    grows = pb.ExecSyncRequest(container_id=id, cmd=["usleep", "100000"], timeout=10)
    cri.runtime.ExecSync(grows, timeout=TIMEOUT_S)
    assert log.stat().st_size > size
    assert not list(tmp_path.iterdir())


def test_a_renamed_log_is_made_anew_and_written_on(cri, run, tmp_path):
    fifo = tmp_path / "say"
    os.mkfifo(fifo)
    mount = pb.Mount(container_path="/say", host_path=str(fifo))
    id = run("rotated", "while read line; do echo $line; done < /say", mounts=[mount])
    reopen = pb.ReopenContainerLogRequest(container_id=id)
    path = Path(cri.status(id).log_path)
    with fifo.open("w") as say:
        path.rename(tmp_path / "old")
        cri.runtime.ReopenContainerLog(reopen, timeout=TIMEOUT_S)
        assert path.read_text() == ""
        say.write("after\n")
    wait(cri, id)
    assert [line.split(" ", 3)[3] for line in log(cri, "rotated")] == ["after"]
    with pytest.raises(grpc.RpcError) as failed:
        cri.runtime.ReopenContainerLog(reopen, timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_a_log_that_is_not_a_file_is_not_written_to(cri, run, kind, tmp_path):
    id = run(f"hostile-{kind}", "sleep 1000")
    path = Path(cri.status(id).log_path)
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("")
    {"link": lambda: path.symlink_to(victim), "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(grpc.RpcError) as failed:
        cri.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id), timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert victim.read_text() == ""


def test_the_pod_ends_when_its_first_process_does(cri):
    pod = cri.run_pod("paused", network=pb.NODE)
    info = cri.pod_status(pod, verbose=True).info["info"]
    pid = int(info.partition('"pid":')[2].partition(",")[0])
    with cri.events() as events:
        os.kill(pid, signal.SIGKILL)
        next(e for e in events if e.container_id == pod and e.container_event_type == pb.CONTAINER_STOPPED_EVENT)
    assert cri.pod_status(pod).status.state == pb.SANDBOX_NOTREADY
    cri.remove_pod(pod)


def test_pods_containers_and_exit_codes_survive_the_daemon(busybox):
    with cri_daemon() as cri:
        cri.write_network()
        cri.pull(busybox)
        pod = cri.run_pod("kept", labels={"l": "v"})
        before = cri.pod_status(pod).status

        def made(name, command):
            id = cri.create(pod, cri.container_config(name, command, image=busybox))
            cri.start(id)
            return id

        ids = {name: made(name, command) for name, command in {"runs": "sleep 1000", "done": "exit 5"}.items()}
        ids["new"] = cri.create(pod, cri.container_config("new", "exit 0", image=busybox))
        gate = cri.daemon.base / "gate"
        gate.mkdir()
        mount = pb.Mount(container_path="/gate", host_path=str(gate))
        config = cri.container_config("ends", "while [ ! -e /gate/go ]; do sleep 0.02; done; exit 6", image=busybox)
        config.mounts.append(mount)
        ids["ends"] = cri.create(pod, config)
        cri.start(ids["ends"])
        done = wait(cri, ids["done"])
        pidfd = os.pidfd_open(pid_of(cri, ids["ends"]))
        cri.daemon.kill()
        (gate / "go").touch()
        assert select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        cri.daemon.start()
        cri.reconnect()
        assert cri.pod_status(pod).status == before
        assert cri.status(ids["runs"]).state == pb.CONTAINER_RUNNING
        assert cri.status(ids["done"]) == done
        assert cri.status(ids["new"]).state == pb.CONTAINER_CREATED
        status = wait(cri, ids["ends"])
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 6)
        cri.start(ids["new"])
        assert wait(cri, ids["new"]).exit_code == 0
        again = cri.run_pod("kept", uid=before.metadata.uid, labels={"l": "v"})
        assert again == pod
        assert cri.addresses() == [before.network.ip]


def pid_of(cri, id):
    request = pb.ContainerStatusRequest(container_id=id, verbose=True)
    info = cri.runtime.ContainerStatus(request, timeout=TIMEOUT_S).info["info"]
    return int(info.partition('"pid":')[2].partition(",")[0])
