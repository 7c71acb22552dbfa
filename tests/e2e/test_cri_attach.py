"""kubectl attach and kubectl run -i, as far as the runtime goes: clients with the streams of a first process."""

import asyncio
import json
import socket
import time
from base64 import b64encode
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
import websockets

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S
from tests.processes import children
from tests.unit.cri.streaming.spdy_client import SpdyClient

pytestmark = [pytest.mark.root, pytest.mark.e2e]

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("pod", network=pb.NODE)


@pytest.fixture
def run(cri, pod, busybox):
    """Run containers that are removed after the test."""
    made = []

    def start(command, **options):
        config = cri.container_config(f"c{time.monotonic_ns()}", command, image=busybox, **options)
        made.append(cri.create(pod, config))
        cri.start(made[-1])
        return made[-1]

    yield start
    for id in made:
        cri.remove(id)


def url(cri, id, *, stdin=True, tty=False, stderr=None):
    request = pb.AttachRequest(
        container_id=id, stdin=stdin, stdout=True, stderr=not tty if stderr is None else stderr, tty=tty
    )
    return cri.runtime.Attach(request, timeout=TIMEOUT_S).url


class Spdy:
    """A client over SPDY, as a kubelet is."""

    def __init__(self, client, ids):
        self.client, self.ids = client, ids

    def send(self, data, *, last=False):
        self.client.send(self.ids["stdin"], data, fin=last)

    def resize(self, width, height):
        self.client.send(self.ids["resize"], json.dumps({"Width": width, "Height": height}).encode() + b"\n")

    async def until(self, text, name="stdout"):
        await self.client.until(lambda: text in self.client.data[self.ids[name]])

    async def result(self):
        """Wait for the end; return stdout, stderr and the status."""
        await self.client.until(lambda: self.ids["error"] in self.client.ended)
        out, err = (self.client.data[self.ids[name]] if name in self.ids else b"" for name in ("stdout", "stderr"))
        return out, err, json.loads(self.client.data[self.ids["error"]])


@asynccontextmanager
async def spdy(cri, id, *, stdin=True, tty=False, protocol="v4.channel.k8s.io"):
    client = await SpdyClient.connect(url(cri, id, stdin=stdin, tty=tty), protocol)
    names = ["error", "stdout", *(["stdin"] if stdin else []), "resize" if tty else "stderr"]
    try:
        yield Spdy(client, {name: client.open(streamtype=name) for name in names})
    finally:
        await client.close()


@asynccontextmanager
async def websocket(cri, id, protocol="v5.channel.k8s.io", **options):
    where = url(cri, id, **options).replace("http", "ws", 1)
    async with websockets.connect(where, subprotocols=[protocol], max_size=None, compression=None) as socket:
        yield socket


async def received(socket, until):
    """Return what comes on each channel until *until* says so of it, or the end."""
    found = dict.fromkeys((STDOUT, STDERR, ERROR), b"")
    async with asyncio.timeout(TIMEOUT_S):
        async for message in socket:
            found[message[0]] += message[1:]
            if until(found):
                break
    return found


def log_of(cri, id):
    return Path(cri.status(id).log_path).read_text()


async def exited(cri, id):
    """Wait for the end of a container; return its exit code."""
    async with asyncio.timeout(TIMEOUT_S):
        while cri.status(id).state != pb.CONTAINER_EXITED:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    return cri.status(id).exit_code


async def attached(cri, id, count):
    """Wait until the container's shim has that many clients."""
    request = pb.ContainerStatusRequest(container_id=id, verbose=True)
    pid = json.loads(cri.runtime.ContainerStatus(request, timeout=TIMEOUT_S).info["info"])["pid"]
    keeper = parent(pid)
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = [link for process in (keeper, *children(keeper)) for link in links(process)]
            if len({link for link in found if "/cri/exec/attach-" in link}) == count:
                return
            await asyncio.sleep(0.01)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def links(process):
    """Return what the descriptors of a process lead to."""
    found = []
    with suppress(OSError):  # it ends
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
    return found


async def test_several_clients_get_the_output_which_goes_on_to_the_log(cri, run):
    id = run("while read line; do echo got $line; echo err $line >&2; done", stdin=True)
    async with spdy(cri, id) as one, websocket(cri, id) as two:
        await attached(cri, id, 2)
        one.send(b"first\n")
        await one.until(b"got first\n")
        await one.until(b"err first\n", "stderr")
        found = await received(two, lambda found: b"err first\n" in found[STDERR] and b"got" in found[STDOUT])
        assert found[STDOUT] == b"got first\n"
        await two.send(bytes([STDIN]) + b"second\n")
        await one.until(b"got first\ngot second\n")
    assert "stdout F got second\n" in log_of(cri, id)
    # Both have left; the input is open to the next one, who sees nothing of what was before.
    async with spdy(cri, id) as three:
        three.send(b"third\n", last=False)
        await three.until(b"got third\n")
        assert three.client.data[three.ids["stdout"]] == b"got third\n"
        three.send(b"", last=True)  # who ends the input leaves
        assert (await three.result())[2]["status"] == "Success"
    assert cri.status(id).state == pb.CONTAINER_RUNNING


async def test_with_stdin_once_the_first_clients_end_is_the_inputs(cri, run):
    id = run("cat; echo done; echo err >&2", stdin=True, stdin_once=True)
    async with spdy(cri, id) as one:
        data = b"".join(b"%d\n" % number for number in range(30000))
        await attached(cri, id, 1)
        async with spdy(cri, id) as two:  # gets the output; the input is the first one's
            await attached(cri, id, 2)
            one.send(data, last=True)
            out, err, status = await one.result()
            assert (out, err, status["status"]) == (data + b"done\n", b"err\n", "Success")
            assert (await two.result())[0].endswith(b"done\n")
    assert await exited(cri, id) == 0
    with pytest.raises(grpc.RpcError, match="is not running") as failed:
        url(cri, id)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_client_that_goes_away_ends_a_stdin_once_input_too(cri, run):
    id = run("cat; exit 3", stdin=True, stdin_once=True)
    async with websocket(cri, id, "v4.channel.k8s.io") as socket:
        await socket.recv()
        await socket.send(bytes([STDIN]) + b"x\n")
        await received(socket, lambda found: found[STDOUT] == b"x\n")
    assert await exited(cri, id) == 3


async def test_a_terminal_has_a_size_an_echo_and_several_clients(cri, run):
    id = run("stty size; read a; stty size; exec sh", stdin=True, stdin_once=True, tty=True)
    async with spdy(cri, id, tty=True) as one:
        one.resize(101, 33)
        one.send(b"x\n")
        await one.until(b"x\r\n")
        one.send(b"stty size; echo e''nd\n")
        await one.until(b"end\r\n")
        assert b"33 101\r\n" in one.client.data[one.ids["stdout"]]
    async with spdy(cri, id, tty=True) as two:  # a terminal has no end of input: one can come again
        two.send(b"echo a''gain; exit 4\n")
        out, _, _ = await two.result()
        assert b"again\r\n" in out
    assert await exited(cri, id) == 4


async def test_without_an_input_what_a_client_sends_is_nothing_and_its_end_too(cri, run):
    id = run("read x; echo read=$x; while [ ! -e /go ]; do usleep 10000; done; echo out")
    async with spdy(cri, id) as one:
        one.send(b"something\n", last=True)
        await attached(cri, id, 1)
        probe = pb.ExecSyncRequest(container_id=id, cmd=["touch", "/go"], timeout=10)
        await asyncio.to_thread(cri.runtime.ExecSync, probe, timeout=TIMEOUT_S)
        out, _, status = await one.result()
        # What it said of its input came before the client, or with it.
        assert (bytes(out).removeprefix(b"read=\n"), status["status"]) == (b"out\n", "Success")
    assert "read=\n" in log_of(cri, id)


@pytest.mark.parametrize(
    "protocol",
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"],
)
async def test_every_websocket_protocol_serves(cri, echo, protocol):
    async with websocket(cri, echo, protocol) as socket:
        assert socket.subprotocol == protocol
        is_text = "base64" in protocol
        await socket.recv()
        await socket.send("0" + b64encode(b"hello\n").decode() if is_text else b"\0hello\n")
        answer = "1" + b64encode(b"got hello\n").decode() if is_text else b"\1got hello\n"
        assert await socket.recv() == answer


@pytest.fixture(scope="module")
def echo(cri, pod, busybox):
    """A container that answers each line, which several tests use."""
    config = cri.container_config("echo", "while read line; do echo got $line; done", image=busybox, stdin=True)
    id = cri.create(pod, config)
    cri.start(id)
    return id


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])
async def test_every_spdy_protocol_serves(cri, echo, protocol):
    async with spdy(cri, echo, protocol=protocol) as one:
        one.send(b"hello\n")
        await one.until(b"got hello\n")
        one.send(b"", last=True)
        await one.client.until(lambda: one.ids["error"] in one.client.ended)


async def test_it_works_again_after_a_restart_of_the_daemon(cri, echo):
    async with spdy(cri, echo) as one:
        one.send(b"before\n")
        await one.until(b"got before\n")
        await asyncio.to_thread(cri.daemon.kill)
        await one.client.end()
    await asyncio.to_thread(cri.daemon.start)
    cri.reconnect()
    async with spdy(cri, echo) as two:
        two.send(b"after\n")
        await two.until(b"got after\n")
        assert two.client.data[two.ids["stdout"]] == b"got after\n"
    assert not list((cri.daemon.state / "cri/exec").glob("*"))


async def test_who_does_not_read_is_dropped_and_told_and_the_container_goes_on(cri, run):
    size = 12_000_000  # more than all buffers on the way take: of those of TCP up to 4 MB, net.ipv4.tcp_wmem
    id = run(f"read x; yes | head -c {size}; echo; echo over", stdin=True)
    async with spdy(cri, id) as silent, spdy(cri, id, stdin=False) as other:
        await attached(cri, id, 2)
        silent.client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        silent.send(b"go\n")
        await other.client.until(lambda: other.client.data[other.ids["stdout"]][-5:] == b"over\n")
        assert await exited(cri, id) == 0
        assert len(other.client.data[other.ids["stdout"]]) == size + len("\nover\n")
        out, _, status = await silent.result()
        assert b"over" not in out
        assert status["status"] == "Failure"
        assert "not taken in time" in status["message"]
    assert log_of(cri, id).endswith("stdout F over\n")


async def test_a_url_serves_once_and_one_for_exec_is_none_for_attach(cri, echo):
    where = url(cri, echo)
    for address, code in ((where.replace("/attach/", "/exec/"), 404), (where, 101), (where, 404)):
        client = await SpdyClient.connect(address, "v4.channel.k8s.io")
        assert client.status == code
        await client.close()


async def test_what_cannot_be_attached_to_gets_no_url(cri, echo, pod, busybox):
    fresh = cri.create(pod, cri.container_config("fresh", "true", image=busybox))
    for id, options, code in (
        ("f" * 64, {}, grpc.StatusCode.NOT_FOUND),
        (fresh, {}, grpc.StatusCode.FAILED_PRECONDITION),
        (echo, {"tty": True, "stderr": True}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            url(cri, id, **options)
        assert failed.value.code() is code


async def test_a_container_that_has_ended_since_is_told(cri, run):
    id = run("read x", stdin=True)
    where = url(cri, id, stdin=False)
    cri.stop(id)
    client = await SpdyClient.connect(where, "v4.channel.k8s.io")
    ids = {name: client.open(streamtype=name) for name in ("error", "stdout", "stderr")}
    await client.until(lambda: ids["error"] in client.ended)
    assert "is not running" in json.loads(client.data[ids["error"]])["message"]
    await client.close()


async def test_a_container_without_a_log_has_clients(cri, pod, busybox):
    config = cri.container_config("nolog", "read x; echo got $x", image=busybox, stdin=True, stdin_once=True)
    config.log_path = ""
    id = cri.create(pod, config)
    cri.start(id)
    async with spdy(cri, id) as one:
        one.send(b"it\n", last=True)
        assert (await one.result())[0] == b"got it\n"
    cri.remove(id)


async def test_who_has_left_a_silent_container_is_forgotten(cri, echo):
    for number in range(40):
        async with spdy(cri, echo) as one:
            if number % 2:
                await attached(cri, echo, 1)
            else:  # in the middle of being attached, or so
                await one.client.until(lambda one=one: set(one.ids.values()) <= one.client.replied)
        if number % 2:
            await attached(cri, echo, 0)
    await attached(cri, echo, 0)
    async with asyncio.timeout(TIMEOUT_S):  # whose attaching is cut short is let go of a moment after the shim's end
        while any("/cri/exec/attach-" in link for link in links(cri.daemon.pid)):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    assert not list((cri.daemon.state / "cri/exec").glob("*"))
