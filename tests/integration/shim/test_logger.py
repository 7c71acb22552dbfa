"""Programs that take the output of real containers: binary://."""

import asyncio
import os
import signal

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition, InvalidArgument
from tests.integration.shim.conftest import fds_of, proc

pytestmark = pytest.mark.root

READY = "exec 5<&-\n"
COPY = READY + 'cat <&4 >"$2/err" &\ncat <&3 >"$2/out"\nwait\necho "$CONTAINER_NAMESPACE/$CONTAINER_ID" >"$2/ended"\n'


@pytest.fixture
def program(tmp_path):
    """Write a logger of a shell script and return its URI; it has the test's directory as $2."""

    def make(script=COPY, name="logger"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        return f"binary://{path}?dir={tmp_path}"

    return make


async def test_a_logger_has_all_of_the_output_before_delete_returns(shim, bundle, tmp_path, program):
    uri = program()
    await shim.run("t1", bundle("seq 20000; echo err >&2"), stdout=uri, stderr=uri)
    assert (await shim.wait("t1")).exit_status == 0
    await shim.delete("t1")
    assert (tmp_path / "out").read_text() == "".join(f"{number}\n" for number in range(1, 20001))
    assert (tmp_path / "err").read_text() == "err\n"
    assert (tmp_path / "ended").read_text() == "test/t1\n"
    assert shim.others() == []


async def test_a_logger_of_a_terminal(shim, bundle, tmp_path, program):
    await shim.run("t1", bundle("tty; echo err >&2", terminal=True), terminal=True, stdout=program())
    await shim.wait("t1")
    await shim.delete("t1")
    assert (tmp_path / "out").read_text() == "/dev/pts/0\nerr\n"
    assert (tmp_path / "err").read_text() == ""


async def test_a_logger_of_an_exec_has_its_id(shim, bundle, tmp_path, program):
    uri = program()
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "echo hello", stdout=uri, stderr=uri)
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    await shim.delete("t1", "e1")
    assert (tmp_path / "out").read_text() == "hello\n"
    assert (tmp_path / "ended").read_text() == "test/e1\n"


async def test_a_logger_that_dies_does_not_end_the_container(shim, bundle, tmp_path, program, fifo):
    uri = program(READY + 'read line <&3; echo "$line" >"$2/out"; exec sleep 60')
    go = fifo("go")
    await shim.run("t1", bundle("echo one; read line; seq 100000; exit 8"), stdin=str(go), stdout=uri)
    (logger,) = [pid for pid in shim.others() if proc(pid, "comm") in {"sleep\n", "logger\n"}]
    os.kill(logger, signal.SIGKILL)
    fd = os.open(go, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"\n")
    os.close(fd)
    assert (await shim.wait("t1")).exit_status == 8  # neither SIGPIPE nor a full pipe


async def test_what_a_logger_reads_no_more_waits_and_delete_ends_it(shim, bundle, tmp_path, program):
    uri = program("trap 'echo asked >\"$2/asked\"; exit 0' TERM\n" + READY + "while :; do sleep 0.05; done")
    await shim.run("t1", bundle("echo out"), stdout=uri)
    await shim.wait("t1")
    async with asyncio.timeout(10):  # 2 s to see the end, then SIGTERM
        await shim.delete("t1")
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert shim.others() == []


async def test_a_create_that_fails_leaves_no_logger(shim, bundle, tmp_path, program):
    await shim.run("t0", bundle("exec sleep 60"))
    await shim.events.of("/tasks/start")
    before = fds_of(shim.worker), shim.others()
    with pytest.raises(Exception, match="no/such/program"):
        await shim.create("t1", bundle(args=["/no/such/program"]), stdout=program())
    with pytest.raises(FailedPrecondition, match=r"logger '.*/broken' ended with status 9 before it was ready"):
        await shim.create("t1", bundle(), stdout=program("exit 9", "broken"))
    with pytest.raises(InvalidArgument, match=r"stderr 'binary:///no/such': /no/such: No such file"):
        await shim.create("t1", bundle(), stdout=program(), stderr="binary:///no/such")
    assert (fds_of(shim.worker), shim.others()) == before
    await shim.run("t1", bundle("exit 3"), stdout=program())
    assert (await shim.wait("t1")).exit_status == 3
