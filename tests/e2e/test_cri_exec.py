"""kubectl exec and port-forward, as far as the runtime goes: URLs, streams of real processes, ports of real pods."""

import asyncio
import json
import os

import aiohttp
import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri.streaming.session import Input
from runtimed.cri.streams import Streams
from tests.cri import TIMEOUT_S
from tests.e2e.test_cri_pods import listening_in

pytestmark = [pytest.mark.root, pytest.mark.e2e]

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


@pytest.fixture(scope="module")
def container(cri, busybox):
    pod = cri.run_pod("pod", network=pb.NODE)
    id = cri.create(pod, cri.container_config("shell", "sleep 1000", image=busybox))
    cri.start(id)
    return id


def url(cri, container, *command, tty=False, stdin=False, stderr=True):
    request = pb.ExecRequest(container_id=container, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=stderr)
    return cri.runtime.Exec(request, timeout=TIMEOUT_S).url


async def talk(where, *messages):
    """Send *messages* (channel and bytes), then return what came on each channel until the end."""
    found = {channel: b"" for channel in (STDOUT, STDERR, ERROR)}
    async with (
        asyncio.timeout(TIMEOUT_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(where, protocols=["v5.channel.k8s.io"], max_msg_size=0) as socket,
    ):
        for channel, data in messages:
            await socket.send_bytes(bytes([channel]) + data)
        async for message in socket:
            found[message.data[0]] += message.data[1:]
    return found[STDOUT], found[STDERR], json.loads(found[ERROR])


async def test_output_and_exit_code_come_back(cri, container):
    out, err, status = await talk(url(cri, container, "sh", "-c", "echo out; echo err >&2"))
    assert (out, err, status["status"]) == (b"out\n", b"err\n", "Success")
    _, _, status = await talk(url(cri, container, "sh", "-c", "exit 7"))
    assert status["details"]["causes"][0]["message"] == "7"


async def test_input_reaches_the_command_and_its_end_does(cri, container):
    data = os.urandom(300_000)
    pieces = [(STDIN, data[start : start + 20_000]) for start in range(0, len(data), 20_000)]
    out, _, status = await talk(url(cri, container, "cat", stdin=True), *pieces, (255, bytes([STDIN])))
    assert out == data
    assert status["status"] == "Success"


async def test_a_large_output_comes_whole(cri, container):
    out, _, _ = await talk(url(cri, container, "head", "-c", "5000000", "/dev/zero"))
    assert out == bytes(5_000_000)


async def test_a_terminal_has_a_size_and_all_its_output(cri, container):
    size = json.dumps({"Width": 101, "Height": 33}).encode()
    # The size comes beside the input, not before it.
    sized = 'until [ "$(stty size 2>/dev/null)" = "33 101" ]; do sleep 0.01; done'
    command = f"read line; {sized}; stty size; echo got $line"
    where = url(cri, container, "sh", "-c", command, tty=True, stdin=True, stderr=False)
    out, _, status = await talk(where, (RESIZE, size), (STDIN, b"hello\n"))
    assert out.replace(b"\r\n", b"\n").endswith(b"33 101\ngot hello\n")
    assert status["status"] == "Success"


async def test_a_command_that_does_not_exist_is_told_in_the_status(cri, container):
    _, _, status = await talk(url(cri, container, "/no/such"))
    assert status["status"] == "Failure"
    assert "/no/such" in status["message"]


def running_execs(cri):
    return [path.name for path in (cri.daemon.state / "cri/exec").iterdir()]


async def test_a_client_that_leaves_ends_its_command(cri, container):
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(url(cri, container, "sleep", "5432"), protocols=["v5.channel.k8s.io"])
        await socket.receive()
        await socket.close()
    probe = pb.ExecSyncRequest(container_id=container, cmd=["ps", "-o", "args"], timeout=10)
    ended = asyncio.get_running_loop().time() + TIMEOUT_S
    while True:  # the end of a connection is known a moment later, and the FIFOs go last; each look is a call
        listed = await asyncio.to_thread(cri.runtime.ExecSync, probe, timeout=TIMEOUT_S)
        left = running_execs(cri)
        if b"sleep 5432" not in listed.stdout and not left:
            return
        assert asyncio.get_running_loop().time() < ended, (listed.stdout, left)


async def test_a_url_serves_once(cri, container):
    where = url(cri, container, "true")
    await talk(where)
    with pytest.raises(aiohttp.WSServerHandshakeError) as failed:
        await talk(where)
    assert failed.value.status == 404


def test_what_cannot_be_run_gets_no_url(cri, container):
    for id, command, code in (
        ("f" * 64, ["true"], grpc.StatusCode.NOT_FOUND),
        (container, [], grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            url(cri, id, *command)
        assert failed.value.code() is code
    with pytest.raises(grpc.RpcError) as failed:
        cri.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id="f" * 64, port=[80]), timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


class _State:
    """A pod in a network namespace, for the part of the daemon that forwards."""

    def __init__(self, netns):
        self.state = self.record = self
        self.netns = netns

    def ready_sandbox(self, id):
        return self


async def test_a_port_of_the_pod_is_reached_through_its_loopback(cri):
    pod = await asyncio.to_thread(cri.run_pod, "forward")
    path = json.loads(cri.pod_status(pod, verbose=True).info["info"])["networkNamespace"]
    streams = Streams(_State(path))  # type: ignore[arg-type]
    server = await asyncio.to_thread(listening_in, path, 8080)
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    incoming, outgoing = Input(), bytearray()

    async def write(data):
        outgoing.extend(data)

    with server:
        forwarding = asyncio.create_task(streams.port_forward(pod, 8080, incoming, write))
        inside, _ = await loop.sock_accept(server)
        with inside:
            incoming.feed(b"question")
            incoming.end()
            assert await loop.sock_recv(inside, 100) == b"question"
            assert await loop.sock_recv(inside, 100) == b""
            await loop.sock_sendall(inside, b"answer")
        await forwarding
    assert outgoing == b"answer"
    with pytest.raises(Exception, match="port 9 of the pod: Connection refused"):
        await streams.port_forward(pod, 9, Input(), write)
    await asyncio.to_thread(cri.remove_pod, pod)
