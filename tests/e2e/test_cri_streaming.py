"""Exec and port-forward in real containers over SPDY, as a kubelet asks for them, by a client of the tests' own."""

import json

import pytest

from runtimed.api import cri_pb2 as pb
from tests.unit.cri.streaming.spdy_client import SpdyClient

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("pod")


@pytest.fixture(scope="module")
def container(cri, pod, busybox):
    id = cri.create(pod, cri.container_config("c", "nc -ll -p 8000 -e cat", image=busybox))
    cri.start(id)
    return id


async def opened(cri, container, *command, tty=False):
    request = pb.ExecRequest(container_id=container, cmd=command, tty=tty, stdin=True, stdout=True, stderr=not tty)
    client = await SpdyClient.connect(cri.runtime.Exec(request).url, "v4.channel.k8s.io")
    names = ["error", "stdin", "stdout", "resize" if tty else "stderr"]
    return client, {name: client.open(streamtype=name) for name in names}


async def test_a_command_gets_its_input_and_its_end_and_tells_its_exit_code(cri, container):
    client, ids = await opened(cri, container, "sh", "-c", "cat; echo err >&2; exit 3")
    client.send(ids["stdin"], b"hello" * 50_000, fin=True)
    await client.until(lambda: ids["error"] in client.ended)
    assert client.data[ids["stdout"]] == b"hello" * 50_000
    assert client.data[ids["stderr"]] == b"err\n"
    assert json.loads(client.data[ids["error"]])["details"]["causes"][0]["message"] == "3"
    await client.close()
    assert not list((cri.daemon.state / "cri/exec").iterdir())


async def test_a_terminal_has_the_size_it_is_given(cri, container):
    client, ids = await opened(cri, container, "sh", tty=True)
    client.send(ids["resize"], b'{"Width":97,"Height":31}\n')
    client.send(ids["stdin"], b"until [ \"$(stty size)\" = '31 97' ]; do sleep 0.05; done; echo si''ze; exit\n")
    await client.until(lambda: ids["error"] in client.ended)
    assert b"size\r\n" in client.data[ids["stdout"]]
    await client.close()


async def test_a_program_that_is_not_there_is_told(cri, container):
    client, ids = await opened(cri, container, "/nothing")
    await client.until(lambda: ids["error"] in client.ended)
    assert "nothing" in json.loads(client.data[ids["error"]])["message"]
    await client.close()


async def test_a_port_of_the_pod_is_forwarded(cri, pod, container):
    url = cri.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[8000])).url
    client = await SpdyClient.connect(url, "portforward.k8s.io")
    streams = {}
    for number, port in enumerate((8000, 9)):
        streams[port] = [client.open(streamtype=kind, port=port, requestid=number) for kind in ("error", "data")]
    client.send(streams[8000][1], b"through", fin=True)
    await client.until(lambda: client.ended >= {id for ids in streams.values() for id in ids})
    assert client.data[streams[8000][1]] == b"through"
    assert b"port 9 of the pod" in client.data[streams[9][0]]
    await client.close()
