"""The streaming server towards clients that are not ours, with a runtime that is made up."""

import asyncio
import base64
import json
import socket
import struct
import time
import zlib
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
import websockets

from runtimed.cri.streaming import over_spdy, requests, spdy, tickets
from runtimed.cri.streaming.hangup import HangUp
from runtimed.cri.streaming.server import Settings, StreamingServer
from runtimed.cri.streaming.tickets import Ticket, Tickets
from runtimed.errors import InvalidArgument, NotFound, ResourceExhausted
from tests.unit.cri.streaming.spdy_client import SpdyClient

V4 = "v4.channel.k8s.io"


class FakeRuntime:
    """``cat`` and its kin."""

    def __init__(self):
        self.sizes = []
        self.sessions = []
        self.cancelled = asyncio.Event()
        self.forwarded = asyncio.Event()  # a connection has ended
        self.written = 0

    async def exec(self, container, command, tty, session):
        match command[0]:
            case "cat":
                while data := await session.stdin.read():
                    await session.stdout(data)
            case "fail":
                await session.stderr(b"bad")
                return 7
            case "error":
                raise NotFound("container 'c'")
            case "resize":
                self.sizes.append(await session.resizes.get())
                await session.stdout(b"seen")
            case "yes":
                try:
                    while True:
                        await session.stdout(b"y" * 65536)
                        self.written += 65536
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "hang":
                self.sessions.append(session)
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
        return 0

    async def attach(self, container, tty, session):
        self.sessions.append(session)
        await session.stdout(b"attached")

    async def port_forward(self, sandbox, port, incoming, outgoing):
        if port == 81:
            raise NotFound("port 81 of the pod")
        if port == 82:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        try:
            while data := await incoming.read():
                await outgoing(data.upper())
        finally:
            self.forwarded.set()


@asynccontextmanager
async def serving(**settings):
    runtime = FakeRuntime()
    server = StreamingServer(runtime, Settings(**settings))
    await server.start()
    await server.load()
    try:
        yield server, runtime
    finally:
        await server.close()


def ticket(command="cat", **fields):
    flags = {"stdin": True, "stdout": True, "stderr": not fields.get("tty")} | fields
    return Ticket(kind="exec", target="c", command=(command,), **flags)


async def opened(server, request, protocol=V4):
    client = await SpdyClient.connect(server.url(request), protocol)
    assert client.status == 101
    names = ["error", *(name for name in ("stdin", "stdout", "stderr") if getattr(request, name))]
    names += ["resize"] if request.tty else []
    ids = {name: client.open(streamtype=name) for name in names}
    return client, ids


def test_the_dictionary_is_that_of_the_draft():
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


async def test_exec_over_spdy_ends_with_its_status():
    async with serving() as (server, _):
        client, ids = await opened(server, ticket())
        client.send(ids["stdin"], b"hello ")
        client.send(ids["stdin"], b"world", fin=True)
        await client.until(lambda: client.ended >= {ids["stdout"], ids["error"]})
        assert client.data[ids["stdout"]] == b"hello world"
        assert json.loads(client.data[ids["error"]])["status"] == "Success"
        assert set(ids.values()) <= client.replied
        await client.close()


async def test_an_exit_code_is_told():
    async with serving() as (server, _):
        client, ids = await opened(server, ticket("fail"))
        await client.until(lambda: ids["error"] in client.ended)
        status = json.loads(client.data[ids["error"]])
        assert status["reason"] == "NonZeroExitCode"
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
        assert client.data[ids["stderr"]] == b"bad"
        await client.close()


async def test_an_error_of_the_runtime_is_told():
    async with serving() as (server, _):
        client, ids = await opened(server, ticket("error"))
        await client.until(lambda: ids["error"] in client.ended)
        assert json.loads(client.data[ids["error"]])["message"] == "container 'c'"
        await client.close()


async def test_a_terminal_is_resized():
    async with serving() as (server, runtime):
        client, ids = await opened(server, ticket("resize", tty=True))
        client.send(ids["resize"], b'{"Width":80,"Height":24}\n')
        await client.until(lambda: ids["error"] in client.ended)
        assert runtime.sizes == [(80, 24)]
        await client.close()


async def test_a_client_that_leaves_ends_the_command():
    async with serving() as (server, runtime):
        client, _ = await opened(server, ticket("hang"))
        client.writer.write(b"")
        await client.until(lambda: len(client.replied) == 4)
        await client.close()
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


def reset(transport):
    """End a connection at once: an end in due form would come behind the bytes that nobody reads."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def test_a_client_that_never_reads_holds_little():
    async with serving() as (server, runtime):
        client, _ = await opened(server, ticket("yes"))
        client.writer.transport.pause_reading()
        before = -1
        async with asyncio.timeout(20):
            while runtime.written != before or not before:  # until the sockets' buffers are full
                before = runtime.written
                await asyncio.sleep(0.3)
        assert runtime.written < 64 << 20
        client.writer.transport.abort()
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


async def test_a_client_that_writes_to_a_command_that_never_reads_is_held_up():
    async with serving() as (server, runtime):
        client, ids = await opened(server, ticket("hang"))
        await client.until(lambda: len(client.replied) == 4)
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(1.0):
                for _ in range(4096):
                    client.send(ids["stdin"], b"x" * 32768)
                    await client.writer.drain()
        reset(client.writer.transport)
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


@pytest.mark.parametrize("kind", ["exec", "portforward"])
async def test_a_websocket_that_leaves_while_it_is_held_up_ends_the_call(kind):
    async with serving() as (server, runtime):
        request = ticket("hang") if kind == "exec" else Ticket(kind=kind, target="p", ports=(82,))
        async with socket_to(server.url(request), V4) as ws:
            with pytest.raises(TimeoutError):  # noqa: PT012  it is the block that takes too long
                async with asyncio.timeout(0.5):
                    while True:
                        await ws.send(bytes(100_000))
            reset(ws.transport)
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


async def test_a_websocket_that_never_reads_holds_little():
    async with serving() as (server, runtime):
        async with socket_to(server.url(ticket("yes")), V4) as ws:
            ws.transport.pause_reading()
            before = -1
            async with asyncio.timeout(20):
                while runtime.written != before or not before:  # until the sockets' buffers are full
                    before = runtime.written
                    await asyncio.sleep(0.3)
            assert runtime.written < 64 << 20
            ws.transport.abort()
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


async def test_a_message_that_is_too_long_ends_the_websocket():
    async with serving() as (server, runtime):
        async with socket_to(server.url(ticket("hang")), V4) as ws:
            await ws.recv()
            await ws.send(bytes((1 << 20) + 2))
            with pytest.raises(websockets.ConnectionClosedError):
                await ws.recv()
        assert ws.close_code == 1009
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


@pytest.mark.parametrize("kind", ["exec", "attach"])
async def test_a_client_that_opens_no_streams_is_let_go(kind, monkeypatch):
    monkeypatch.setattr(over_spdy, "_STREAMS_WITHIN_S", 0.05)
    async with serving() as (server, runtime):
        request = Ticket(kind=kind, target="c", command=("hang",), stdin=True, stdout=True)
        client = await SpdyClient.connect(server.url(request), V4)
        for name in ("error", "stdin", "nonsense"):
            client.open(streamtype=name)
        await client.end()
        assert not runtime.sessions
        await client.close()


async def test_sizes_without_end_hold_nothing():
    async with serving() as (server, runtime):
        client, ids = await opened(server, ticket("hang", tty=True))
        for number in range(1, 20_000):
            client.send(ids["resize"], b'{"Width":%d,"Height":7}\n' % number)
            if number % 500 == 0:
                await client.writer.drain()
        client.control(6, struct.pack(">I", 5))
        await client.until(lambda: client.pings == [5])
        async with asyncio.timeout(10):
            [session] = runtime.sessions
            while await session.resizes.get() != (19_999, 7):
                pass
        assert session.resizes.empty()
        await client.close()


@pytest.mark.parametrize("upgrade", ["websocket", "SPDY/3.1"])
async def test_a_page_of_another_origin_needs_the_token_and_learns_nothing_without(upgrade):
    async with serving() as (server, _):
        url = server.url(ticket())
        headers = {"Origin": "https://elsewhere.example", "Upgrade": upgrade, "Connection": "Upgrade"}
        async with aiohttp.ClientSession() as session:
            for wrong in (f"{url}x", url.replace("/exec/", "/attach/"), url.rpartition("/")[0] + "/"):
                async with session.get(wrong, headers=headers) as answer:
                    assert answer.status == 404
                    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                    assert url.rpartition("/")[2] not in await answer.text()


async def test_a_silent_connection_ends():
    async with serving(idle_limit_s=0.2) as (server, runtime):
        client, _ = await opened(server, ticket("hang"))
        await client.end()
        assert runtime.cancelled.is_set()
        await client.close()


@pytest.mark.parametrize(
    ("request_", "protocol"),
    [(ticket("hang"), V4), (Ticket(kind="portforward", target="p", ports=(82,)), V4)],
    ids=["exec", "ports"],
)
async def test_a_silent_websocket_ends(request_, protocol):
    async with serving(idle_limit_s=0.2) as (server, runtime), asyncio.timeout(20):
        async with socket_to(server.url(request_), protocol) as ws:
            [_ async for _ in ws]
        await runtime.cancelled.wait()


async def stranger(server):
    host, port = server._listener.sockets[0].getsockname()
    return await asyncio.open_connection(host, port)


async def test_who_has_no_url_has_no_connection_for_long(monkeypatch):
    monkeypatch.setattr(requests, "_TICKET_WITHIN_S", 0.2)
    async with serving() as (server, runtime), asyncio.timeout(20):
        client, ids = await opened(server, ticket())
        for words in (b"", b"GET /exec/", b"GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await stranger(server)
            writer.write(words)
            assert (await reader.read())[:12] in (b"", b"HTTP/1.1 404")
            writer.close()
        client.send(ids["stdin"], b"still here")
        await client.until(lambda: client.data.get(ids["stdout"]) == b"still here")
        await client.close()


async def test_strangers_have_few_connections_at_once(monkeypatch):
    monkeypatch.setattr(requests, "_STRANGERS", 2)
    async with serving() as (server, _), asyncio.timeout(20):
        clients = [await opened(server, ticket()) for _ in range(3)]  # who has a URL is none
        strangers = [await stranger(server) for _ in range(2)]
        while len(server._requests._server.connections) < 5:  # noqa: ASYNC110 - the server gets there later
            await asyncio.sleep(0)
        for _ in range(2):
            reader, writer = await stranger(server)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        for _, writer in strangers:
            writer.close()
        while len(server._requests._server.connections) > 3:  # noqa: ASYNC110 - the server gets there later
            await asyncio.sleep(0)
        clients.append(await opened(server, ticket()))
        for client, _ in clients:
            await client.close()


async def test_before_there_is_a_url_nobody_is_served():
    server = StreamingServer(FakeRuntime())
    await server.start()
    async with asyncio.timeout(20):
        reader, writer = await stranger(server)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    await server.close()


async def test_a_connection_that_is_closed_here_has_hung_up():
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    writer.transport.abort()
    gone = [asyncio.Event() for _ in range(3)]
    closing = HangUp(writer.transport, gone[0].set)
    async with asyncio.timeout(20):
        await gone[0].wait()
        assert closing.has_come
        with suppress(OSError):
            await writer.wait_closed()
        with HangUp(writer.transport, gone[1].set):
            await gone[1].wait()
    HangUp(writer.transport, gone[2].set).close()
    await asyncio.sleep(0)
    assert not gone[2].is_set()
    far.close()


async def test_a_url_serves_once():
    async with serving() as (server, _):
        url = server.url(ticket())
        client = await SpdyClient.connect(url, V4)
        await client.close()
        again = await SpdyClient.connect(url, V4)
        assert again.status == 404
        await again.close()
        guess = await SpdyClient.connect(url[:-1] + "-", V4)
        assert guess.status == 404
        await guess.close()


def test_a_token_expires_and_they_are_bounded(monkeypatch):
    waiting = Tickets()
    token = waiting.issue(ticket())
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + tickets.LIFETIME_S + 1)
    with pytest.raises(NotFound):
        waiting.redeem("exec", token)
    for _ in range(1000):
        waiting.issue(ticket())
    with pytest.raises(ResourceExhausted):
        waiting.issue(ticket())


async def test_a_request_that_cannot_be_gets_no_url():
    async with serving() as (server, _):
        with pytest.raises(InvalidArgument):
            server.url(Ticket(kind="exec", target="c", command=("x",)))
        with pytest.raises(InvalidArgument):
            server.url(Ticket(kind="exec", target="c", command=("x",), tty=True, stdout=True, stderr=True))


async def test_a_protocol_that_is_not_spoken_is_refused():
    async with serving() as (server, _):
        client = await SpdyClient.connect(server.url(ticket()), "v9.channel.k8s.io")
        assert client.status == 403
        await client.close()


def _bomb():
    packer = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = struct.pack(">II", 1, 1 << 26) + bytes(1 << 26)
    return struct.pack(">IIH", 1, 0, 0) + packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">HHI", 0x8003, 1, len(_bomb())) + _bomb(),
        struct.pack(">II", 1, 0xFFFFFF),
        struct.pack(">HHI", 0x8002, 1, 0),
        struct.pack(">HHI", 0x8003, 1, 3) + b"abc",
        struct.pack(">HHI", 0x8003, 1, 14) + struct.pack(">IIH", 1, 0, 0) + b"junk",
    ],
)
async def test_what_is_no_spdy_ends_the_connection(data):
    async with serving() as (server, _):
        client = await SpdyClient.connect(server.url(ticket()), V4)
        client.writer.write(data)
        await client.end()
        await client.close()


async def test_more_streams_than_asked_for_are_refused_and_pings_answered():
    async with serving() as (server, _):
        client, _ = await opened(server, ticket("hang"))
        ids = [client.open(streamtype=f"more{number}") for number in range(8)]
        client.control(6, struct.pack(">I", 5))
        await client.until(lambda: client.pings == [5])
        assert set(client.resets) == set(ids[4:])
        await client.close()


async def test_ports_are_forwarded_over_spdy():
    async with serving() as (server, _):
        url = server.url(Ticket(kind="portforward", target="p"))
        client = await SpdyClient.connect(url, "portforward.k8s.io")
        pairs = []
        for number, port in enumerate((80, 80, 81)):
            error = client.open(streamtype="error", port=port, requestid=number)
            pairs.append((client.open(streamtype="data", port=port, requestid=number), error))
        for data, _ in pairs[:2]:
            client.send(data, b"hello", fin=True)
        await client.until(lambda: client.ended >= {id for pair in pairs for id in pair})
        assert [client.data[data] for data, _ in pairs] == [b"HELLO", b"HELLO", b""]
        assert client.data[pairs[2][1]] == b"port 81 of the pod"
        await client.close()


def web(url):
    return url.replace("http://", "ws://").replace("https://", "wss://")


def socket_to(url, protocol):
    return websockets.connect(web(url), subprotocols=[websockets.Subprotocol(protocol)], compression=None)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", V4, "channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_exec_over_websocket(protocol):
    is_text = "base64" in protocol

    def encoded(channel, data):
        return f"{channel}{base64.b64encode(data).decode()}" if is_text else bytes((channel,)) + data

    def decoded(message):
        return (int(message[0]), base64.b64decode(message[1:])) if is_text else (message[0], message[1:])

    async with serving() as (server, _), socket_to(server.url(ticket()), protocol) as ws:
        assert ws.subprotocol == protocol
        assert decoded(await ws.recv()) == (1, b"")
        await ws.send(encoded(0, b"hello"))
        assert decoded(await ws.recv()) == (1, b"hello")
        if protocol.startswith("v5"):
            await ws.send(b"\xff\x00")
            assert json.loads(decoded(await ws.recv())[1])["status"] == "Success"


async def test_a_websocket_that_closes_ends_the_command():
    async with serving() as (server, runtime):
        async with socket_to(server.url(ticket("hang")), V4) as ws:
            await ws.recv()
        async with asyncio.timeout(10):
            await runtime.cancelled.wait()


async def test_a_terminal_is_resized_over_websocket():
    async with serving() as (server, runtime):
        async with socket_to(server.url(ticket("resize", tty=True)), V4) as ws:
            await ws.send(b'\x04{"Width":132,"Height":50}')
            messages = [await ws.recv() for _ in range(3)]
        assert runtime.sizes == [(132, 50)]
        assert messages[1] == b"\x01seen"
        assert json.loads(messages[2][1:])["status"] == "Success"


async def test_attach_over_spdy():
    async with serving() as (server, _):
        request = Ticket(kind="attach", target="c", stdout=True)
        client, ids = await opened(server, request)
        await client.until(lambda: ids["error"] in client.ended)
        assert client.data[ids["stdout"]] == b"attached"
        await client.close()


@pytest.mark.parametrize("protocol", [V4, "v4.base64.channel.k8s.io"])
async def test_ports_are_forwarded_in_the_channels_of_a_websocket(protocol):
    is_text = "base64" in protocol

    def encoded(channel, data):
        return f"{channel}{base64.b64encode(data).decode()}" if is_text else bytes((channel,)) + data

    def decoded(message):
        return (int(message[0]), base64.b64decode(message[1:])) if is_text else (message[0], message[1:])

    async with serving() as (server, runtime):
        request = Ticket(kind="portforward", target="p", ports=(80, 81, 8080))
        async with socket_to(server.url(request), protocol) as ws:
            got = [b""] * 6
            await ws.send(encoded(0, b"one"))
            await ws.send(encoded(4, b"two"))
            await ws.send(encoded(1, b"to a channel that takes nothing"))
            await ws.send(encoded(9, b"to one that there is not"))
            while (got[0][2:], got[4][2:], got[3][2:]) != (b"ONE", b"TWO", b"port 81 of the pod"):
                channel, data = decoded(await ws.recv())
                got[channel] += data
            numbers = [int.from_bytes(data[:2], "little") for data in got]
            assert numbers == [80, 80, 81, 81, 8080, 8080]
            # A port that is no more: what is sent to it goes nowhere, and holds nothing up.
            for _ in range(10):
                await ws.send(encoded(2, bytes(100_000)))
            await ws.send(encoded(0, b"three"))
            while not got[0].endswith(b"THREE"):
                channel, data = decoded(await ws.recv())
                got[channel] += data
        async with asyncio.timeout(10):
            await runtime.forwarded.wait()


async def test_a_websocket_whose_ports_have_all_ended_is_closed():
    async with serving() as (server, _):
        url = server.url(Ticket(kind="portforward", target="p", ports=(81,)))
        async with asyncio.timeout(10), socket_to(url, V4) as ws:
            assert [message async for message in ws] == [b"\0\x51\0", b"\1\x51\0", b"\1port 81 of the pod"]


@pytest.mark.parametrize("ports", [(), tuple(range(1, 34))])
async def test_without_ports_or_with_too_many_there_is_no_forwarding_in_channels(ports):
    async with serving() as (server, _):
        url = server.url(Ticket(kind="portforward", target="p", ports=ports))
        with pytest.raises(websockets.InvalidStatus, match="403"):
            async with socket_to(url, V4):
                pass


async def test_what_is_no_port_gets_no_url():
    async with serving() as (server, _):
        for port in (0, -1, 65536):
            with pytest.raises(InvalidArgument, match=f"{port} is no number of a port"):
                server.url(Ticket(kind="portforward", target="p", ports=(80, port)))


async def test_ports_are_forwarded_in_a_tunnel():
    async with serving() as (server, _):
        url = web(server.url(Ticket(kind="portforward", target="p")))
        # aiohttp's client: "websockets" takes the name for no token of HTTP, which it is not.
        protocols = ["SPDY/3.1+portforward.k8s.io"]
        async with aiohttp.ClientSession() as client_session, client_session.ws_connect(url, protocols=protocols) as ws:
            assert ws.protocol == protocols[0]

            class Writer:
                def __init__(self):
                    self.sent = []

                def write(self, data):
                    self.sent.append(data)

            class Reader:
                buffer = b""

                async def readexactly(self, size):
                    while len(self.buffer) < size:
                        self.buffer += await ws.receive_bytes()
                    data, self.buffer = self.buffer[:size], self.buffer[size:]
                    return data

            client = SpdyClient(Reader(), Writer())
            error = client.open(streamtype="error", port=80, requestid=0)
            data = client.open(streamtype="data", port=80, requestid=0)
            client.send(data, b"through", fin=True)
            await ws.send_bytes(b"".join(client.writer.sent))
            await client.until(lambda: client.ended >= {data, error})
            assert client.data[data] == b"THROUGH"
