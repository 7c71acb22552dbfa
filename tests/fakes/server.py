"""A real gRPC server on a unix socket, as the daemon has it, for the services a test registers."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from runtimed.rpc.grpc_server import Server
from runtimed.services.interceptors import wrapped

_LARGEST = 16 << 20
_OPTIONS = [("grpc.max_receive_message_length", _LARGEST), ("grpc.max_send_message_length", _LARGEST)]

NAMESPACE = (("containerd-namespace", "default"),)


@asynccontextmanager
async def served(path: Path, *register: Callable[[Any], object]) -> AsyncIterator[grpc.aio.Channel]:
    """Serve on the socket *path* what each of *register* adds to the server; yield a channel to it."""
    server = Server(wrapped)
    for one in register:
        one(server)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    await server.serve(sock)
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS) as channel:
            yield channel
    finally:
        await server.stop()
