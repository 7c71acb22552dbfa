"""Pods and containers when the daemon, a shim, the kernel's memory or a volume fails them at the worst moment."""

import os
import select
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.failpoints import VARIABLE
from runtimed.linux.mount import mount
from tests.cri import TIMEOUT_S, cri_daemon
from tests.daemon import cgroups
from tests.fakes.tasks import signal_shim

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def cri(busybox):
    with cri_daemon() as running:
        running.write_network()
        running.image = running.pull(busybox)
        yield running


@pytest.fixture
def pod(cri):
    """A pod of the test's own; whatever pods there are go after it, and leave nothing."""
    yield cri.run_pod("pod")
    for one in cri.pods():
        cri.remove_pod(one.id)
    assert left(cri) == []


def left(cri):
    """Return what there is of pods: networks, files, tasks, snapshots' mounts, cgroups, addresses."""
    state = cri.daemon.state
    found = [*state.glob("netns/*"), *state.glob("cri/*/*"), *state.glob("io.containerd*/k8s.io/*")]
    found += [path for top in cgroups(cri.daemon.namespace) for path in top.iterdir() if path.is_dir()]
    return [str(path) for path in found] + cri.addresses()


def started(cri, pod, name, command="sleep 1000", **options):
    id = cri.create(pod, cri.container_config(name, command, image=cri.image, **options))
    cri.start(id)
    return id


def restart(cri, **environment):
    cri.daemon.environment = environment
    cri.daemon.start()
    cri.reconnect()


def shim_of(cri, pod):
    return int(Path(f"/proc/{cri.info(pod)['pid']}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def told(cri, *ids):
    """Wait at the end of the block until all of *ids* have been told to have ended."""
    with cri.events() as events:
        yield
        waiting = set(ids)
        for event in events:
            if event.container_event_type == pb.CONTAINER_STOPPED_EVENT:
                waiting.discard(event.container_id)
            if not waiting:
                return


STEPS = ("create.bundle", "create.made", "start.started")  # integration/tasks has the others


def test_a_crash_at_any_step_of_a_pod_or_container_leaves_what_can_be_removed(cri):
    programs = {(step, "pod"): f"{step}=panic" for step in STEPS}
    programs |= {(step, "container"): f"{step}=1*off->panic" for step in STEPS}  # the first one is the pod's
    cri.daemon.kill()
    restart(cri, **{VARIABLE: programs[STEPS[0], "pod"]})
    cases = [*programs]
    for (step, kind), after in zip(cases, [*cases[1:], None], strict=True):
        with pytest.raises(grpc.RpcError) as failed:
            started(cri, cri.run_pod("crashes", uid=step), "crashes")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE, (step, kind)
        cri.daemon.process.wait(20)
        restart(cri, **({VARIABLE: programs[after]} if after else {}))
        if kind == "container":
            assert [one.state for one in cri.pods()] == [pb.SANDBOX_READY], step
            [found] = cri.containers()
            assert found.state in {pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING}, step
        for one in cri.pods():
            cri.remove_pod(one.id)
        assert left(cri) == [], (step, kind)
    cri.remove_pod(cri.run_pod("crashes", uid=step))  # the name is free


@pytest.mark.parametrize("step", ["create.made", "create.marked"])
def test_a_container_whose_start_a_daemon_did_not_live_to_see_can_be_started(cri, pod, step):
    cri.daemon.kill()
    restart(cri, **{VARIABLE: f"{step}=panic"})
    with pytest.raises(grpc.RpcError) as failed:
        started(cri, pod, "begun")
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    cri.daemon.process.wait(20)
    restart(cri)
    [found] = cri.containers()
    assert found.state == pb.CONTAINER_CREATED
    cri.start(found.id)
    assert cri.shell(found.id, "echo runs") == "runs\n"
    assert cri.status(found.id).state == pb.CONTAINER_RUNNING


def test_daemons_that_die_again_and_again_while_pods_come_and_go_leave_none_of_them(cri):
    made: list[str] = []
    deaths: list[int] = []
    is_up = threading.Event()
    is_up.set()

    def come_and_go(number):
        turn = 0
        while len(deaths) < 3:
            turn += 1
            is_up.wait(60)
            with suppress(grpc.RpcError):
                pod = cri.run_pod(f"churn{number}", uid=f"{number}", attempt=turn)
                started(cri, pod, "main", "true")
                cri.remove_pod(pod)
                made.append(pod)

    with ThreadPoolExecutor(3) as threads:
        workers = [threads.submit(come_and_go, number) for number in range(3)]
        for _ in range(3):
            with cri.events() as events:
                next(events)
            is_up.clear()
            cri.daemon.kill()
            restart(cri)
            is_up.set()
            deaths.append(1)
        for worker in workers:
            worker.result()
    assert made
    for one in cri.pods():
        cri.remove_pod(one.id)
    assert not cri.containers()
    assert left(cri) == []


def test_a_shim_that_is_killed_takes_its_pod_along_and_all_is_told(cri, pod):
    id = started(cri, pod, "orphan")
    pids = [cri.info(pod)["pid"], cri.container_info(id)["pid"]]
    fds = [os.pidfd_open(pid) for pid in pids]
    with told(cri, pod, id):
        os.kill(shim_of(cri, pod), signal.SIGKILL)
    for fd in fds:
        assert select.select([fd], [], [], 0)[0]  # they had ended when that was told
        os.close(fd)
    status = cri.status(id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert cri.pod_status(pod).status.state == pb.SANDBOX_NOTREADY


def test_a_shim_that_does_not_answer_costs_its_own_pod_only(cri, pod):
    id = started(cri, pod, "wedged")
    other = cri.run_pod("other")
    alive = started(cri, other, "alive")
    shim = shim_of(cri, pod)
    cri.daemon.kill()
    signal_shim(shim, signal.SIGSTOP)
    try:
        restart(cri)
        assert cri.status(id).state == pb.CONTAINER_UNKNOWN
        assert cri.shell(alive, "echo usable") == "usable\n"
    finally:
        signal_shim(shim, signal.SIGCONT)
    # That one can be removed while it is stuck takes ten seconds: integration/tasks/test_own_shim.py has it.
    cri.remove_pod(pod)
    assert [one.id for one in cri.pods()] == [other]


def test_a_container_whose_process_was_moved_to_another_cgroup_is_not_given_up(cri, pod):
    id = started(cri, pod, "moved", "exec sleep 1000")
    pid = cri.container_info(id)["pid"]
    cri.daemon.kill()
    tops = [top / "elsewhere" for top in cgroups(cri.daemon.namespace) if "cpuset" not in str(top)]
    for top in tops:
        top.mkdir()
        (top / "cgroup.procs").write_text(str(pid))
    restart(cri)
    assert cri.status(id).state == pb.CONTAINER_RUNNING
    with told(cri, id):
        cri.stop(id)
    assert cri.status(id).exit_code == 137
    for top in tops:
        top.rmdir()


def test_containers_out_of_memory_all_at_once_are_each_told(cri, pod):
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=12 << 20)
    eat = "x=x; while :; do x=$x$x; done"
    config = [cri.container_config(f"eats{n}", eat, image=cri.image, resources=resources) for n in range(4)]
    ids = [cri.create(pod, one) for one in config]
    with told(cri, *ids), ThreadPoolExecutor(4) as threads:
        list(threads.map(cri.start, ids))
        cri.runtime.Version(pb.VersionRequest(), timeout=5)
    assert [(cri.status(id).exit_code, cri.status(id).reason) for id in ids] == [(137, "OOMKilled")] * 4


def test_a_command_that_comes_when_its_container_ends_is_told_so(cri, pod):
    """And not that a pipe is broken, after which a kubelet would take the container for unhealthy."""

    def probe(id):
        while True:
            try:
                assert cri.runtime.ExecSync(request(id), timeout=TIMEOUT_S).exit_code in {0, 137}  # killed with it
            except grpc.RpcError as exc:
                return exc.code(), exc.details(), cri.status(id).state

    def request(id):
        return pb.ExecSyncRequest(container_id=id, cmd=["/bin/true"])

    ids = [started(cri, pod, f"ends{number}", "sleep 0.3") for number in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for code, details, state in threads.map(probe, [*ids, *ids]):
            assert (code, state) == (grpc.StatusCode.FAILED_PRECONDITION, pb.CONTAINER_EXITED), details


def test_commands_that_end_at_once_leave_no_zombies(cri, pod):
    id = started(cri, pod, "storm")
    with ThreadPoolExecutor(8) as threads:
        orphan = "(busybox sleep 0 & busybox sleep 0 &) ; true"
        assert list(threads.map(lambda _: cri.shell(id, orphan), range(24))) == [""] * 24
    shim = shim_of(cri, pod)
    children = [int(pid) for pid in Path(f"/proc/{shim}/task/{shim}/children").read_text().split()]
    assert {cri.info(pod)["pid"], cri.container_info(id)["pid"]} <= {*children}
    assert not [pid for pid in children if ") Z " in Path(f"/proc/{pid}/stat").read_text()]


def test_what_is_busy_on_the_host_is_removed_all_the_same(cri, pod):
    id = started(cri, pod, "busy")
    places = [
        cri.daemon.state / "io.containerd.runtime.v2.task/k8s.io" / id / "rootfs",
        cri.daemon.state / "cri/sandboxes" / pod / "shm",
    ]
    holding = [subprocess.Popen(["sleep", "1000"], cwd=place) for place in places]
    try:
        cri.remove(id)
        cri.remove(id)
        cri.remove_pod(pod)
        cri.remove_pod(pod)
        assert not [place for place in places if place.exists()]
        assert not cri.pods()
    finally:
        for process in holding:
            process.kill()
            process.wait()


def test_a_volume_that_does_not_answer_holds_up_its_own_container_only(cri, pod, tmp_path):
    """A file system whose server is silent, as of a dead NFS or CSI: whoever asks it for anything waits."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount("silent", str(tmp_path), "fuse", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0")
        hung = cri.container_config("hung", "true", image=cri.image)
        hung.mounts.append(pb.Mount(host_path=f"{tmp_path}/below", container_path="/x"))
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=hung)
        waiting = [cri.runtime.CreateContainer.future(request, timeout=TIMEOUT_S) for _ in range(2)]
        assert select.select([fuse], [], [], 20)[0]  # somebody has asked
        assert cri.shell(started(cri, pod, "beside"), "echo beside") == "beside\n"
        other = cri.run_pod("other")
        assert {one.id for one in cri.pods()} == {pod, other}
        cri.runtime.ListContainerStats(pb.ListContainerStatsRequest(), timeout=5)
        assert not any(one.done() for one in waiting)
    finally:
        os.close(fuse)  # which ends the connection, and the waiting
        subprocess.run(["umount", tmp_path], check=True)
    for one in waiting:
        assert isinstance(one.exception(), grpc.RpcError)
        assert "below" in one.details()
    assert [one.metadata.name for one in cri.containers()] == ["beside"]


def test_requests_of_absurd_size_are_refused_and_the_daemon_goes_on(cri, pod):
    huge = "x" * (20 << 20)
    for config in (cri.pod_config("huge", annotations={"a": huge}), cri.pod_config("huge", hostname=huge)):
        with pytest.raises(grpc.RpcError) as failed:
            cri.run(config)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    container = cri.container_config(
        "huge", "true", image=cri.image, envs=[pb.KeyValue(key="A", value=huge[: 1 << 20].encode())]
    )
    with pytest.raises(grpc.RpcError, match="longer than") as failed:
        cri.create(pod, container)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [one.id for one in cri.pods()] == [pod]
