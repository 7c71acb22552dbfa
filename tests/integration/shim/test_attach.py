"""Clients attached to real containers: beside the log, at rest, at the end."""

import os
from contextlib import contextmanager

import pytest
from google.protobuf.empty_pb2 import Empty

from runtimed.api import shim_attach_pb2 as attach_pb
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition
from tests.integration.shim.conftest import eventually, fds_of
from tests.unit.shim.test_attach import END, Client

pytestmark = pytest.mark.root


@contextmanager
def client(path):
    made = Client(path)
    try:
        yield made
    finally:
        made.close()


async def ask(shim, id, path):
    request = attach_pb.AttachRequest(id=id, path=str(path))
    await shim.client.call("runtimed.shim.v1.Attach", "Attach", request, Empty, timeout_s=10)


async def test_who_is_attached_stays_so_while_the_shim_rests_and_is_forgotten_when_gone(shim, bundle, fifo, tmp_path):
    stdin, log = fifo("in"), tmp_path / "log"
    await shim.run("t1", bundle("cat; echo over >&2"), stdin=str(stdin), stdout=f"cri://{log}", stderr=f"cri://{log}")
    with client(tmp_path / "a") as one, client(tmp_path / "b") as two:
        await ask(shim, "t1", one.path)
        await ask(shim, "t1", two.path)
        await shim.rested()
        held = len(fds_of(shim.pid))
        writer = os.open(stdin, os.O_WRONLY)
        os.write(writer, b"hello\n")
        await eventually(lambda: one.pieces == [(1, b"hello\n")] and two.pieces == one.pieces)
        two.close()
        await shim.rested()
        assert len(fds_of(shim.pid)) == held - 1
        await shim.CloseIO(pb.CloseIORequest(id="t1", stdin=True))
        os.close(writer)
        assert (await shim.wait("t1")).exit_status == 0
        assert one.pieces[:2] == [(1, b"hello\n"), (2, b"over\n")]
        with pytest.raises(FailedPrecondition):
            await ask(shim, "t1", one.path)
        await shim.delete("t1")
        await eventually(lambda: one.pieces[-1] == END and one.has_ended)


async def test_a_terminal_has_clients_as_well(shim, bundle, tmp_path):
    await shim.create("t1", bundle("echo out; echo err >&2", terminal=True), terminal=True, stdout="cri://")
    with client(tmp_path / "a") as one:
        await ask(shim, "t1", one.path)
        await shim.Start(pb.StartRequest(id="t1"))
        assert (await shim.wait("t1")).exit_status == 0
        await shim.delete("t1")
        await eventually(lambda: one.pieces[-1:] == [END])
        assert one.bytes_of(1) == b"out\r\nerr\r\n"


async def test_without_a_log_nobody_can_be_attached(shim, bundle, tmp_path):
    await shim.run("t1", bundle("exec sleep 60"))
    with client(tmp_path / "a") as one:
        with pytest.raises(FailedPrecondition, match="one log"):
            await ask(shim, "t1", one.path)
        assert one.pieces == []
