"""The warm parent: what it answers, and what its children are."""

import json
import os
import select
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.rpc import ttrpc
from tests.integration.shim.conftest import Nursery, Shim, eventually, exists, fds_of, proc
from tests.processes import children

pytestmark = pytest.mark.root


def cwd_of(pid):
    return Path(f"/proc/{pid}/cwd").readlink()


async def test_a_shim_is_what_it_should_be(shim, tmp_path):
    await shim.Connect(pb.ConnectRequest())  # it has come up by then
    pid = shim.pid
    assert os.getsid(pid) == pid
    await eventually(lambda: cwd_of(pid) == tmp_path / "shim")
    assert proc(pid, "comm") == "runtimed-shim\n"
    assert int(proc(pid, "oom_score_adj")) == min(int(proc("self", "oom_score_adj")) + 1, 1000)
    assert stat.S_IMODE(shim.path.stat().st_mode) == 0o600
    # The pair between keeper and worker, and the pipe for signals: nothing of the nursery's but runc in memory.
    keepers = [*["/dev/null"] * 3, "/memfd", *["pipe"] * 2, *["socket"] * 2]
    await eventually(lambda: [link.partition(":")[0] for link in fds_of(pid)] == keepers)  # the worker answers first
    # Beside these the worker has its event loop, the listening socket, and the client's.
    (worker,) = children(pid)
    assert [link.partition(":")[0] for link in fds_of(worker)] == sorted([*keepers, "anon_inode", "socket", "socket"])
    assert proc(worker, "comm") == "runtimed-shim\n"
    assert os.getsid(worker) == pid


async def test_a_shim_loads_neither_grpc_nor_what_else_it_can_do_without(shim):
    maps = proc(shim.pid, "maps")
    assert "grpc" not in maps
    assert "msgspec" not in maps


async def test_an_idle_shim_costs_little_memory(shim):
    await shim.Connect(pb.ConnectRequest())
    lines = [line.split() for line in proc(shim.pid, "smaps_rollup").splitlines()]
    private = sum(int(words[1]) for words in lines if words[0].startswith("Private_"))
    assert private < 1800  # KiB; containerd's shim has 4150


async def test_shims_outlive_the_nursery(bundle, bind, events, tmp_path, runc_root):
    nursery = Nursery(tmp_path / "rehearsal")
    path = tmp_path / "own.sock"
    request = {
        "id": "g",
        "namespace": "test",
        "bundle": str(tmp_path),
        "socket": str(path),
        "runc_root": str(runc_root),
    }
    pid = nursery.ask(request)["pid"]
    client = await ttrpc.Client.connect(path)
    shim = Shim(client, pid, events, path, bind)
    await shim.run("t1", bundle("exec sleep 60"))
    nursery.process.kill()
    nursery.process.wait()
    nursery.socket.close()
    await shim.kill("t1")
    assert (await shim.wait("t1")).exit_status == 137
    await shim.tear_down()
    await client.close()
    os.close(shim.pidfd)


def test_a_rehearsal_comes_to_its_end(tmp_path, capfd):
    nursery = Nursery(tmp_path / "rehearsal")
    assert "error" in nursery.ask(b"what is no request is answered when the rehearsal is over")
    nursery.close()
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_nursery_ends_with_its_daemon(tmp_path):
    nursery = Nursery(tmp_path / "rehearsal")
    nursery.close()
    assert nursery.process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", ["/proc/no", "/tmp"])
async def test_without_a_place_to_rehearse_in_there_are_shims_all_the_same(directory, tmp_path, events, bind, capfd):
    nursery = Nursery(directory)
    path = tmp_path / "own.sock"
    request = {"id": "g", "namespace": "test", "bundle": str(tmp_path), "socket": str(path)}
    pid = nursery.ask(request)["pid"]
    client = await ttrpc.Client.connect(path)
    shim = Shim(client, pid, events, path, bind)
    await shim.tear_down()
    nursery.close()
    await client.close()
    os.close(shim.pidfd)
    assert "rehearsal" in capfd.readouterr().err


async def test_a_shim_that_died_leaves_no_zombie(nursery, fork):
    answer, path = fork()
    pidfd = os.pidfd_open(answer["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)
    fork(socket="/no/such/directory/s")  # the nursery has had a turn
    assert not exists(answer["pid"])
    path.unlink()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"{", "Expecting"),
        (b"[]", "a JSON object"),
        (b"\xff", "codec"),
        (json.dumps({"id": "x"}).encode(), "a request needs 'namespace'"),
        (json.dumps({"id": 1, "namespace": "n", "bundle": "/", "socket": "/s"}).encode(), "needs 'id', a string"),
    ],
)
def test_a_request_that_is_none_is_answered(nursery, request_, message):
    assert message in nursery.ask(request_)["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"socket": "/no/such/directory/s"}, "shim socket /no/such/directory/s: No such file or directory"),
        ({"socket": "/tmp/" + "s" * 200}, "path too long"),
        ({"bundle": "/no/such/bundle"}, "No such file or directory: '/no/such/bundle'"),
        ({"debug": "yes"}, "'debug' must be of type bool"),
    ],
)
def test_what_cannot_be_started_is_answered(fork, changes, message):
    answer, path = fork(**changes)
    assert message in answer["error"]
    assert not path.exists()


async def test_a_socket_in_use_is_an_error_and_a_stale_one_is_not(fork, tmp_path, events, bind):
    taken = tmp_path / "taken"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(taken))
    sock.listen()
    answer, _ = fork(socket=str(taken))
    assert f"shim socket {taken}: Address already in use" in answer["error"]
    sock.close()
    answer, _ = fork(socket=str(taken))
    client = await ttrpc.Client.connect(taken)
    shim = Shim(client, answer["pid"], events, taken, bind)
    await shim.tear_down()
    await client.close()
    os.close(shim.pidfd)
    assert not taken.exists()


async def test_a_shim_without_tasks_ends_by_sigterm(shim):
    await shim.Connect(pb.ConnectRequest())
    os.kill(shim.pid, signal.SIGTERM)
    await shim.ended()


async def test_connect_tells_a_daemon_whose_shim_it_is(shim):
    assert (await shim.Connect(pb.ConnectRequest(id="t1"))).shim_pid == shim.pid


@pytest.fixture
def parent(tmp_path, fork):
    """A nursery that has been asked once, and the pid of its spare."""
    parent = Nursery(tmp_path / "rehearsal")
    answer, path = fork(parent)
    first = os.pidfd_open(answer["pid"])
    deadline = time.monotonic() + 20
    # One that has its worker takes signals as a shim does.
    while not (spare := [pid for pid in children(parent.process.pid) if pid != answer["pid"] and children(pid)]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield parent, spare[0]
    signal.pidfd_send_signal(first, signal.SIGKILL)
    select.select([first], [], [])
    os.close(first)
    path.unlink()
    parent.close()


async def test_a_shim_is_forked_before_it_is_asked_for(parent, fork, shim_of):
    nursery, spare = parent
    assert proc(spare, "comm") == "runtimed-nurser\n"  # what is no shim yet is not called one
    answer, path = fork(nursery)
    assert answer["pid"] == spare
    async with shim_of(answer, path) as shim:
        await shim.Connect(pb.ConnectRequest())
        await eventually(lambda: proc(spare, "comm") == "runtimed-shim\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_without_its_spare_a_nursery_forks_when_it_is_asked(parent, fork, shim_of, number):
    nursery, spare = parent
    os.kill(spare, number)
    await eventually(lambda: not exists(spare))
    answer, path = fork(nursery)
    async with shim_of(answer, path) as shim:
        assert (await shim.Connect(pb.ConnectRequest())).shim_pid == answer["pid"] != spare


async def test_what_a_spare_cannot_serve_is_answered(parent, fork, shim_of):
    nursery, spare = parent
    answer, _ = fork(nursery, socket="/no/such/directory/s")
    assert "No such file or directory" in answer["error"]
    await eventually(lambda: not exists(spare))
    answer, path = fork(nursery)
    async with shim_of(answer, path) as shim:
        assert (await shim.Connect(pb.ConnectRequest())).shim_pid == answer["pid"]


async def test_a_spare_ends_with_its_nursery(parent):
    nursery, spare = parent
    nursery.process.kill()
    await eventually(lambda: not exists(spare))
    assert nursery.socket.recv(1) == b""  # by which the daemon knows
