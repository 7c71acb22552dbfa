"""``rctl cri port-forward`` towards a streaming server that is a socket of the test."""

import asyncio
import socket
from contextlib import suppress

from runtimed.cli.cri.forward import Forwarder
from runtimed.cri.streaming import spdy

ERROR, DATA = 1, 3  # the streams of the first connection


async def test_what_went_wrong_is_told_though_the_data_ended_before(capsys):
    ours, servers = socket.socketpair()
    here, local = socket.socketpair()
    pod = await asyncio.open_connection(sock=ours)
    forwarder = Forwarder(*pod)
    running = asyncio.create_task(forwarder.run())
    connected = asyncio.create_task(forwarder.connect(8, *await asyncio.open_connection(sock=local)))
    _, server = await asyncio.open_connection(sock=servers)
    reader, writer = await asyncio.open_connection(sock=here)
    try:
        server.write(spdy.data_frame(DATA, b"", fin=True))
        assert await reader.read() == b""
        await connected
        server.write(spdy.data_frame(ERROR, b"nobody listens", fin=True))
        server.close()
        with suppress(Exception):  # the connection is lost
            await running
        assert "port 8: nobody listens" in capsys.readouterr().err
    finally:
        await forwarder.close()
        for one in (writer, server, pod[1]):
            one.close()
            with suppress(OSError):
                await one.wait_closed()
