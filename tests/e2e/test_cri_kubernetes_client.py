"""Exec, attach and port-forward by the client that people use from Python, through a stand-in for the API server.

What an API server does with them is find the node, have its kubelet ask the runtime for a URL, and pass on bytes both
ways. The stand-in asks the runtime itself.
"""

import asyncio
import threading
from contextlib import closing, suppress
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.stream import portforward, stream

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S

pytestmark = [pytest.mark.root, pytest.mark.e2e]


class ApiServer:
    """Serves a pod's exec, attach and portforward, its name being a container's or pod's ID, in a thread of its own."""

    def __init__(self, cri):
        self._cri = cri
        self._loop = asyncio.new_event_loop()
        self._connections = set()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what):
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(TIMEOUT_S)

    async def _close(self):
        self._server.close()
        for one in self._connections:
            one.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            await self._proxy(reader, writer)
        finally:
            await closed(writer)
            self._connections.discard(task)

    async def _proxy(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        request, _, headers = head.partition(b"\r\n")
        asked = urlsplit(request.decode().split()[1])
        url = urlsplit(await asyncio.to_thread(self._url, asked.path, parse_qs(asked.query)))
        back, forth = await asyncio.open_connection(url.hostname, url.port)
        forth.write(f"GET {url.path} HTTP/1.1\r\n".encode() + headers)
        # Until either side ends: the client leaves its socket open when the server has closed the WebSocket.
        ways = [asyncio.create_task(pass_on(reader, forth)), asyncio.create_task(pass_on(back, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            await closed(forth)

    def _url(self, path, query):
        *_, namespace, _, name, kind = path.split("/")
        assert namespace == "test"
        id, runtime = unquote(name), self._cri.runtime
        if kind == "portforward":
            ports = [int(port) for one in query["ports"] for port in one.split(",")]
            return runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=id, port=ports), timeout=TIMEOUT_S).url
        flags = {flag: query.get(flag, [""])[0].lower() == "true" for flag in ("stdin", "stdout", "stderr", "tty")}
        if kind == "attach":
            return runtime.Attach(pb.AttachRequest(container_id=id, **flags), timeout=TIMEOUT_S).url
        assert kind == "exec"
        return runtime.Exec(pb.ExecRequest(container_id=id, cmd=query["command"], **flags), timeout=TIMEOUT_S).url


async def pass_on(reader, writer):
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def closed(writer):
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("pod")


@pytest.fixture(scope="module")
def container(cri, pod, busybox):
    command = "nc -ll -p 8000 -e cat & while read line; do echo got $line; done"
    id = cri.create(pod, cri.container_config("c", command, image=busybox, stdin=True))
    cri.start(id)
    return id


@pytest.fixture(scope="module")
def api(cri):
    with ApiServer(cri) as server:
        api = CoreV1Api(ApiClient(Configuration(host=server.url)))
        yield api
        api.api_client.close()


@pytest.fixture(params=["v4.channel.k8s.io", "v5.channel.k8s.io"])
def started(api, container, request):
    """Starts an exec or attach, in both protocols of the client's, of which it offers the later first by itself."""
    api.api_client.set_default_header("sec-websocket-protocol", request.param)
    made = []

    def start(method, **options):
        flags = {"stdin": False, "stdout": True, "stderr": True, "tty": False} | options
        made.append(stream(method, container, "test", _preload_content=False, **flags))
        assert made[-1].subprotocol == request.param
        return made[-1]

    yield start
    del api.api_client.default_headers["sec-websocket-protocol"]
    for one in made:
        one.close()
        one.sock.shutdown()  # its close leaves the socket open when the server was the first to close


@pytest.fixture
def exec(api, started):
    return lambda *command, **options: started(api.connect_get_namespaced_pod_exec, command=[*command], **options)


def test_the_output_and_the_exit_code_arrive(exec):
    command = exec("sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo bad >&2; exit 3")
    command.run_forever(timeout=TIMEOUT_S)
    assert command.read_stdout() == "x" * 300_000
    assert command.read_stderr() == "bad\n"
    assert command.returncode == 3


def test_a_command_answers_what_it_is_told(exec):
    command = exec("sh", "-c", "while read line; do echo got $line; [ $line != end ] || exit 0; done", stdin=True)
    for word in ("one", "two", "end"):
        command.write_stdin(f"{word}\n")
        assert command.readline_stdout(timeout=TIMEOUT_S) == f"got {word}"
    command.run_forever(timeout=TIMEOUT_S)
    assert command.returncode == 0


def test_input_ends_where_the_protocol_can_say_so(exec):
    command = exec("sh", "-c", "cat; echo end", stdin=True)
    command.write_stdin("a\n")
    assert command.readline_stdout(timeout=TIMEOUT_S) == "a"
    if command.subprotocol.startswith("v4"):
        return  # the end of the connection is the only way of v4; the command is ended
    command.close_channel(0)
    command.run_forever(timeout=TIMEOUT_S)
    assert (command.read_stdout(), command.returncode) == ("end\n", 0)


def test_a_terminal(exec):
    command = exec("sh", stdin=True, stderr=False, tty=True)
    command.write_channel(4, '{"Width":97,"Height":31}')
    command.write_stdin("until [ \"$(stty size)\" = '31 97' ]; do sleep 0.05; done; echo si''ze; exit 4\n")
    command.run_forever(timeout=TIMEOUT_S)
    assert "size\r\n" in command.read_stdout()
    assert command.returncode == 4


def test_a_program_that_is_not_there_is_told(exec):
    command = exec("/nothing")
    command.run_forever(timeout=TIMEOUT_S)
    assert "nothing" in command.read_channel(3)


def test_a_client_is_attached_leaves_and_comes_again(api, started):
    for word in ("one", "two"):
        attached = started(api.connect_get_namespaced_pod_attach, stdin=True)
        attached.write_stdin(f"{word}\n")
        assert attached.readline_stdout(timeout=TIMEOUT_S) == f"got {word}"
        attached.close()


def test_ports_are_forwarded(api, pod):
    ports = portforward(api.connect_get_namespaced_pod_portforward, pod, "test", ports="8000,9")
    with closing(ports.socket(8000)) as connection, closing(ports.socket(9)) as refused:
        connection.settimeout(TIMEOUT_S)
        connection.sendall(b"through")
        got = b""
        while len(got) < len(b"through"):
            got += connection.recv(100)
        assert got == b"through"
        assert ports.error(8000) is None
        refused.settimeout(TIMEOUT_S)
        assert refused.recv(1) == b""
        assert "port 9 of the pod" in ports.error(9)
    proxy = next(one for one in threading.enumerate() if one.name.startswith("Kubernetes port forward"))
    proxy.join(TIMEOUT_S)
    assert not proxy.is_alive()
