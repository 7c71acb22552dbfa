"""Logs that the shim writes for real containers: cri://."""

import asyncio
import fcntl
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from tests.integration.shim.conftest import eventually, exists, fds_of
from tests.unit.shim.test_crilog import joined, parsed

pytestmark = pytest.mark.root


def texts(path):
    return [text for *_, text in parsed(path.read_text())]


async def contains(path, text):
    """Wait until *text* is in the file."""
    async with asyncio.timeout(10):
        while not path.exists() or text not in path.read_text():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


async def test_both_streams_are_in_the_log_before_the_exit_is_told(shim, bundle, tmp_path):
    log = tmp_path / "log"
    uri = f"cri://{log}"
    await shim.run("t1", bundle("echo out; sleep 0.1; echo err >&2; printf unfinished"), stdout=uri, stderr=uri)
    await shim.events.of("/tasks/exit", "t1")
    assert parsed(log.read_text()) == [
        ("stdout", "F", "out"),
        ("stderr", "F", "err"),
        ("stdout", "P", "unfinished"),
    ]


async def test_much_output_is_whole_when_the_exit_is_told(shim, bundle, tmp_path):
    log = tmp_path / "log"
    await shim.run("t1", bundle("seq 200000"), stdout=f"cri://{log}?max_line=100")
    assert (await shim.wait("t1")).exit_status == 0
    assert joined(parsed(log.read_text())) == "".join(f"{number}\n" for number in range(1, 200001))


async def test_a_kubelets_rotation_loses_no_line(shim, bundle, tmp_path):
    """A rename, and the new file made by whoever answers ReopenContainerLog, or by the shim."""
    log = tmp_path / "log"
    script = "i=0; while [ $i -lt 60 ]; do seq $((i * 50)) $((i * 50 + 49)); i=$((i + 1)); sleep 0.01; done"
    await shim.create("t1", bundle(script), stdout=f"cri://{log}")
    await shim.Start(pb.StartRequest(id="t1"))
    waiting = asyncio.create_task(shim.wait("t1"))
    rotated: list[Path] = []
    while not waiting.done():
        if log.exists() and log.stat().st_size:
            rotated.append(tmp_path / f"log.{len(rotated)}")
            log.rename(rotated[-1])
            if len(rotated) % 2:
                log.touch(0o640)
        await asyncio.sleep(0.005)
    assert len(rotated) > 2
    lines = [text for path in (*rotated, log) if path.exists() for text in texts(path)]
    assert lines == [str(number) for number in range(3000)]


async def test_a_terminal_is_logged_as_stdout(shim, bundle, tmp_path, fifo):
    log = tmp_path / "log"
    stdin = fifo("in")
    script = "read line; echo got $line; echo err >&2"
    await shim.run("t1", bundle(script, terminal=True), terminal=True, stdin=str(stdin), stdout=f"cri://{log}")
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"word\n")
    os.close(fd)
    assert (await shim.wait("t1")).exit_status == 0
    lines = parsed(log.read_text().replace("\r", ""))
    assert lines[-2:] == [("stdout", "F", "got word"), ("stdout", "F", "err")]


async def test_an_exec_is_logged_too(shim, bundle, tmp_path):
    log = tmp_path / "log"
    await shim.run("t1", bundle("exec sleep 60"), stdout=f"cri://{log}")
    await shim.exec("t1", "e1", "echo hello", stdout=f"cri://{log}", stderr=f"cri://{tmp_path}/other")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    assert texts(log) == ["hello"]
    assert (tmp_path / "other").read_text() == ""


async def test_a_process_that_reopens_its_output_without_root_is_logged(shim, bundle, tmp_path):
    log = tmp_path / "log"
    script = "echo again >/proc/self/fd/1"
    await shim.run("t1", bundle(script, user={"uid": 1000, "gid": 1000}), stdout=f"cri://{log}")
    await shim.wait("t1")
    assert texts(log) == ["again"]


async def test_an_orphan_that_holds_the_output_holds_up_neither_exit_nor_delete_for_long(shim, bundle, tmp_path):
    """What it writes after the container's end, until Delete, is in the log as well."""
    log = tmp_path / "log"
    await shim.run("t0", bundle("exec sleep 60"))
    script = "setsid sleep 30 & echo main"
    await shim.exec("t0", "e1", script, stdout=f"cri://{log}")
    await shim.Start(pb.StartRequest(id="t0", exec_id="e1"))
    await shim.wait("t0", "e1")
    assert texts(log) == ["main"]
    async with asyncio.timeout(5):  # 2 s of them for the orphan
        await shim.delete("t0", "e1")


async def test_a_deleted_container_leaves_no_descriptor_of_its_log(shim, bundle, tmp_path):
    await shim.run("t0", bundle("exec sleep 60"))  # the connection for events is open by then
    await shim.events.of("/tasks/start")
    before = fds_of(shim.worker)
    await shim.run("t1", bundle("echo x"), stdout=f"cri://{tmp_path}/log", stderr=f"cri://{tmp_path}/log")
    await shim.wait("t1")
    await shim.delete("t1")
    assert fds_of(shim.worker) == before


async def test_a_full_disk_holds_up_no_container_and_the_loss_is_told(shim, bundle, tmp_path, small_disk, fifo):
    log, passed, go = small_disk / "log", tmp_path / "passed", fifo("go")
    script = "seq 100000; echo passed >&2; read line; echo after"
    streams = {"stdin": str(go), "stdout": f"cri://{log}", "stderr": f"file://{passed}"}
    pid = await shim.run("t1", bundle(script), **streams)
    await contains(passed, "passed")  # though most of it found no room
    await eventually(lambda: unread(f"/proc/{pid}/fd/1") == 0)  # nor will any more of it find some
    assert log.stat().st_size <= 64 << 10
    mount("-o", "remount,size=1m", small_disk)
    fd = os.open(go, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"\n")
    os.close(fd)
    await shim.wait("t1")
    *numbers, _torn, notice, last = texts(log)
    assert last == "after"
    written = [int(number) for number in numbers]
    assert written == list(range(1, len(written) + 1))
    lost = sum(len(f"{number}\n") for number in range(len(written) + 1, 100001))
    assert notice == f"[runtimed: {lost} bytes of output could not be written and are lost]"
    await shim.delete("t1")


def unread(pipe):
    """Return how many bytes are in a pipe."""
    fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(fd)


def mount(*args):
    subprocess.run(["mount", *args], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", path)
    yield path
    subprocess.run(["umount", path], check=True)


async def test_a_flood_of_output_leaves_the_shim_time_for_calls(shim, bundle, tmp_path):
    log = tmp_path / "log"
    pid = await shim.run("t1", bundle("exec yes"), stdout=f"cri://{log}")
    await eventually(lambda: log.stat().st_size)  # it floods
    async with asyncio.timeout(10):
        for _ in range(20):
            assert (await shim.state("t1")).status == 2
        await shim.kill("t1")
        assert (await shim.wait("t1")).exit_status == 137
        await shim.delete("t1")
    assert not exists(pid)
    lines = texts(log)
    assert set(lines[:-1]) == {"y"}


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("cri://{dir}/no/such/log", NotFound, "log {dir}/no/such/log: No such file or directory"),
        ("cri://{dir}/log?lines=3", InvalidArgument, "there is no option 'lines'"),
        ("cri://{dir}", RuntimedError, "log {dir}: Is a directory"),
    ],
)
async def test_a_log_that_cannot_be_made_fails_the_create(shim, bundle, tmp_path, uri, error, message):
    await shim.Connect(pb.ConnectRequest())  # the connection is open by then
    before = fds_of(shim.worker)
    with pytest.raises(error, match=message.replace("{dir}", str(tmp_path))):
        await shim.create("t1", bundle(), stdout=uri.replace("{dir}", str(tmp_path)))
    assert fds_of(shim.worker) == before
