"""The shim as a program, started the way containerd starts it."""

import asyncio
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtimed.api import bootstrap_pb2, types_pb2
from runtimed.api import runc_options_pb2 as runc_pb
from runtimed.api import task_v3_pb2 as pb
from runtimed.mounts import Mount, mount_all, mounts_below
from runtimed.rpc import ttrpc
from tests.integration.shim.conftest import Shim

pytestmark = pytest.mark.root

SHIM = Path(sys.executable).parent / "containerd-shim-runtimed-v1"


def call(*args, bundle, stdin=b"", **env):
    """Run the program and return what it printed; stdout and stderr are one pipe, as containerd has it."""
    done = subprocess.run(
        [SHIM, *map(str, args)],
        cwd=bundle,
        input=stdin,
        env={"PATH": os.environ["PATH"], **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def sockets():
    """A directory with a path short enough for sockets with long names."""
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def environment(sockets, events, runc_root):
    return {
        "TTRPC_ADDRESS": str(events.path),
        "RUNTIMED_SHIM_SOCKETS": str(sockets / "s"),
        "RUNTIMED_RUNC_ROOT": str(runc_root),
    }


FLAGS = ("-namespace", "test", "-address", "/run/x.sock", "-publish-binary", "/bin/true", "-id", "t1")


@pytest.fixture
async def connected(events, bind, tmp_path, runc_root):
    """Connect to shims; they have ended afterwards."""
    shims = []

    async def connect(address):
        path = Path(address.removeprefix("unix://"))
        client = await ttrpc.Client.connect(path)
        response = await client.call("containerd.task.v3.Task", "Connect", pb.ConnectRequest(), pb.ConnectResponse)
        shims.append(Shim(client, response.shim_pid, events, path, bind))
        return shims[-1]

    yield connect
    for shim in shims:
        if shim.is_alive:
            await shim.tear_down()
        await shim.client.close()
        os.close(shim.pidfd)
    assert mounts_below(tmp_path) == []


async def test_start_leaves_a_shim_and_prints_where_it_listens(bundle, environment, connected, sockets):
    path = bundle("exit 3")
    status, printed = call(*FLAGS, "start", bundle=path, **environment)
    name = hashlib.sha256(b"/run/x.sock/test/t1").hexdigest()
    assert (status, printed.decode()) == (0, f"unix://{sockets}/s/{name}")
    assert (path / "address").read_bytes() == printed
    shim = await connected(printed.decode())
    await shim.run("t1", path)
    assert (await shim.wait("t1")).exit_status == 3
    await shim.events.of("/tasks/exit")


async def test_one_that_was_started_by_exec_rests_too(bundle, environment, connected):
    path = bundle("exec sleep 300")
    _, printed = call(*FLAGS, "start", bundle=path, **environment)
    shim = await connected(printed.decode())
    pid = await shim.run("t1", path)
    await shim.rested()
    os.kill(pid, signal.SIGKILL)
    assert (await shim.wait("t1")).exit_status == 137
    await shim.rested()
    await shim.delete("t1")


async def test_start_answers_in_the_form_the_daemon_understands(bundle, environment, connected):
    path = bundle("exit 3")
    any_options = types_pb2.RuntimeRequest(runtime_path="containerd.runc.v1.Options").SerializeToString()
    _, printed = call(*FLAGS, "start", bundle=path, stdin=any_options, MAX_SHIM_VERSION="2", **environment)
    answer = json.loads(printed)
    assert (answer["version"], answer["protocol"]) == (2, "ttrpc")
    await connected(answer["address"])


async def test_start_takes_bootstrap_parameters(bundle, environment, connected, sockets):
    path = bundle("exit 3")
    params = bootstrap_pb2.BootstrapParams(
        instance_id="t1",
        namespace="test",
        containerd_grpc_address="/other.sock",
        containerd_ttrpc_address=environment.pop("TTRPC_ADDRESS"),
        socket_dir=str(sockets / "other"),
    )
    status, printed = call(*FLAGS, "start", bundle=path, stdin=params.SerializeToString(), **environment)
    assert status == 0
    result = bootstrap_pb2.BootstrapResult.FromString(printed)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith(f"unix://{sockets}/other/")
    shim = await connected(result.address)
    await shim.run("t1", path)
    await shim.events.of("/tasks/start")


async def test_containers_of_a_group_join_its_shim(bundle, environment, connected):
    annotations = {"io.kubernetes.cri.sandbox-id": "pod1"}
    first, second = bundle("exit 1", annotations=annotations), bundle("exit 2", annotations=annotations)
    _, one = call(*FLAGS, "start", bundle=first, **environment)
    _, two = call(*FLAGS[:-1], "t2", "start", bundle=second, **environment)
    assert one == two
    shim = await connected(one.decode())
    await shim.run("t1", first)
    await shim.run("t2", second)
    assert [(await shim.wait(id)).exit_status for id in ("t1", "t2")] == [1, 2]


async def test_delete_cleans_up_after_a_shim_that_was_killed(bundle, environment, connected, runc_root, bind):
    path = bundle("exec sleep 60")
    _, printed = call(*FLAGS, "start", bundle=path, **environment)
    shim = await connected(printed.decode())
    pid = await shim.run("t1", path)
    pidfd = os.pidfd_open(pid)
    os.kill(shim.pid, signal.SIGKILL)
    await shim.ended()

    status, printed = call(*FLAGS, "-bundle", path, "delete", bundle=path, **environment)
    assert status == 0
    deleted = pb.DeleteResponse.FromString(printed)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert deleted.exited_at.seconds > 0
    assert mounts_below(path) == []
    assert list((runc_root / "test").iterdir()) == []
    assert select.select([pidfd], [], [], 5)[0]  # it has ended; reaping it is for whoever inherited it
    os.close(pidfd)
    assert not shim.path.exists()


async def test_delete_ends_a_shim_that_its_daemon_has_lost(bundle, environment, connected):
    path = bundle("exec sleep 60")
    _, printed = call(*FLAGS, "start", bundle=path, **environment)
    shim = await connected(printed.decode())
    await shim.run("t1", path)
    # Not from this event loop: it is the one that takes the shim's events.
    status, _ = await asyncio.to_thread(call, *FLAGS, "-bundle", path, "delete", bundle=path, **environment)
    assert status == 0
    await shim.ended()
    assert mounts_below(path) == []


def test_a_socket_path_that_is_too_long_is_an_error(bundle, environment, tmp_path):
    environment["RUNTIMED_SHIM_SOCKETS"] = str(tmp_path / ("x" * 80))
    status, printed = call(*FLAGS, "start", bundle=bundle(), **environment)
    assert status == 1
    assert b"path too long" in printed


def test_delete_of_nothing_is_fine(bundle, environment):
    path = bundle()
    status, printed = call(*FLAGS, "-bundle", path, "delete", bundle=path, **environment)
    assert status == 0
    assert pb.DeleteResponse.FromString(printed).exit_status == 137


def test_delete_unmounts_a_rootfs_without_a_container(bundle, environment, rootfs):
    path = bundle()
    mount_all([Mount("bind", str(rootfs), "", ("rbind",))], path / "rootfs")
    assert call(*FLAGS, "-bundle", path, "delete", bundle=path, **environment)[0] == 0
    assert mounts_below(path) == []


def test_info_tells_the_features_of_the_runtime(tmp_path):
    options = runc_pb.Options(binary_name=shutil.which("runc") or "")
    stdin = types_pb2.RuntimeRequest()
    stdin.options.type_url = options.DESCRIPTOR.full_name
    stdin.options.value = options.SerializeToString()
    for given in (b"", stdin.SerializeToString(), stdin.options.SerializeToString()):
        status, printed = call("-info", bundle=tmp_path, stdin=given)
        info = types_pb2.RuntimeInfo.FromString(printed)
        assert (status, info.name, info.version.version) == (0, "io.containerd.runtimed.v1", "0.1.0")
        assert "createRuntime" in json.loads(info.features.value)["hooks"]


def test_the_version_is_printed(tmp_path):
    assert b"0.1.0" in call("-v", bundle=tmp_path)[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "action ''"),
        (("-nosuch", "start"), "unknown flag '-nosuch'"),
        (("-namespace", "test", "start"), "id must not be empty"),
        (("-namespace", "../x", "-id", "t1", "start"), "namespace '../x'"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(tmp_path, args, message):
    status, printed = call(*args, bundle=tmp_path)
    assert status == 1
    assert printed.decode().startswith("containerd-shim-runtimed-v1: ")
    assert message in printed.decode()
