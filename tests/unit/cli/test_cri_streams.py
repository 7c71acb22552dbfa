"""rctl's own WebSocket client against a server that is not ours, and what is done with what comes."""

import asyncio
import os
import ssl
import subprocess
import sys

import pytest
import websockets.asyncio.server
from websockets.typing import Subprotocol

from runtimed.cli.cri import remote
from runtimed.cli.cri.websocket import connected
from runtimed.errors import Internal, InvalidArgument, NotFound, Unavailable

PROTOCOLS = remote.PROTOCOLS


async def serving(handler, **options):
    server = await websockets.asyncio.server.serve(
        handler, "127.0.0.1", 0, subprotocols=[Subprotocol(one) for one in PROTOCOLS], **options
    )
    return server, server.sockets[0].getsockname()[1]


async def echo(socket):
    async for message in socket:
        await socket.send(message)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1_000_001])
async def test_messages_of_every_size_go_there_and_back(size):
    server, port = await serving(echo, max_size=None)
    async with server, connected(f"http://127.0.0.1:{port}/x?y=z", PROTOCOLS) as socket:
        assert socket.protocol == "v5.channel.k8s.io"
        data = os.urandom(size)
        await socket.send(data)
        assert await socket.receive() == data


async def test_pings_are_answered_pieces_are_joined_and_the_end_is_told():
    async def handler(socket):
        await (await socket.ping(b"there?"))
        await socket.send([b"one ", b"two ", b"three"])

    server, port = await serving(handler)
    async with server, connected(f"http://127.0.0.1:{port}/", PROTOCOLS) as socket:
        assert await socket.receive() == b"one two three"
        assert await socket.receive() is None


async def test_what_refuses_or_is_not_there_says_so():
    def refuse(connection, request):
        return connection.respond(404, "the token has been used\n") if request.path == "/gone" else None

    server, port = await serving(echo, process_request=refuse)
    async with server:
        with pytest.raises(NotFound, match="the token has been used"):
            async with connected(f"http://127.0.0.1:{port}/gone", PROTOCOLS):
                pass
        with pytest.raises(Internal):
            async with connected(f"http://127.0.0.1:{port}/", ["v9.channel.k8s.io"]):
                pass
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        async with connected(f"http://127.0.0.1:{port}/", PROTOCOLS):
            pass
    with pytest.raises(InvalidArgument, match="no URL of a streaming server"):
        async with connected("unix:///run/x", PROTOCOLS):
            pass


async def test_a_connection_that_breaks_is_no_end():
    async def handler(socket):
        socket.transport.abort()

    server, port = await serving(handler)
    async with server, connected(f"http://127.0.0.1:{port}/", PROTOCOLS) as socket:
        with pytest.raises(Unavailable, match="lost"):
            await socket.receive()


async def test_tls_is_trusted_by_the_authority_that_was_given(tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server, port = await serving(echo, ssl=context)
    url = f"https://127.0.0.1:{port}/"
    async with server:
        for authority in (str(certificate), ""):
            async with connected(url, PROTOCOLS, authority=authority) as socket:
                await socket.send(b"secret")
                assert await socket.receive() == b"secret"
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as raised:
            async with connected(url, PROTOCOLS):
                pass
        assert "--tls-ca" in raised.value.__notes__[0]
        with pytest.raises(InvalidArgument, match="--tls-ca '/no/such'"):
            async with connected(url, PROTOCOLS, authority="/no/such"):
                pass


def test_tls_works_in_rctl_which_starts_without_it():
    script = """
import sys
sys.modules["ssl"] = None
import asyncio.sslproto
del sys.modules["ssl"]
from runtimed.cli.cri.upgrade import _context
assert asyncio.sslproto.ssl is None
_context(None)
asyncio.sslproto.SSLProtocol, asyncio.sslproto.ssl.MemoryBIO
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b'{"metadata":{},"status":"Success"}', 0),
        (
            b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}',
            7,
        ),
    ],
)
def test_the_end_of_a_command(said, status):
    assert remote.exit_status(said) == status


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"status":"Failure","reason":"InternalError","message":"no such file"}', "no such file"),
        (b"plain words", "plain words"),
        (b"[]", r"\[\]"),
        (b'{"status":"Failure"}', "does not say"),
        (b'{"status":"Failure","reason":"NonZeroExitCode"}', "NonZeroExitCode"),
    ],
)
def test_what_kept_a_command_from_its_end(said, words):
    with pytest.raises(Internal, match=words):
        remote.exit_status(said)
