"""The daemon's two sockets: gRPC for clients, ttrpc for shims."""

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from runtimed import directories
from runtimed.config import Config
from runtimed.errors import Internal
from runtimed.events import EventBus
from runtimed.rpc import ttrpc
from runtimed.rpc.grpc_server import BACKLOG, Server
from runtimed.server.offered import names_of
from runtimed.services import events as events_service
from runtimed.services.health import HEALTH, HealthService
from runtimed.services.interceptors import Observe, wrapped
from runtimed.services.reflection import REFLECTION, ReflectionService
from runtimed.services.registration import register

_CALLS_END_WITHIN_S = 1.0


@asynccontextmanager
async def listening(
    config: Config,
    offered: Sequence[tuple[ServiceDescriptor, Any]],
    events: EventBus,
    observe: Observe | None = None,
) -> AsyncIterator[None]:
    """Serve gRPC while the block runs; at the end streams are ended, and calls get a moment to finish.

    *observe* hears of each call.
    """
    server = Server(partial(wrapped, observe=observe))
    for service, servicer in offered:
        register(server, service, servicer)
    names = [*names_of(offered), HEALTH.full_name]
    health = HealthService(names)
    register(server, HEALTH, health)
    register(server, REFLECTION, ReflectionService([*names, REFLECTION.full_name]))
    await server.serve(_bound(config.address, config))
    try:
        yield
    finally:
        health.stop()
        events.close()
        await server.stop(_CALLS_END_WITHIN_S)
        _unlink(config.address)


@asynccontextmanager
async def listening_to_shims(config: Config, events: EventBus) -> AsyncIterator[None]:
    """Take the events of shims while the block runs."""
    server = ttrpc.Server({events_service.TTRPC_NAME: events_service.ttrpc_service(events)})
    address = config.address + directories.TTRPC_SUFFIX
    await server.serve(_bound(address, config))
    try:
        yield
    finally:
        await server.close()
        _unlink(address)


def _bound(address: str, config: Config) -> socket.socket:
    """Return a listening socket, with the owner and the mode that are configured. Raises Internal."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with directories.umask(0o777 & ~config.socket.mode):
            sock.bind(address)
        os.chown(address, config.socket.uid, config.socket.gid)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise Internal(f"socket {address}: cannot listen on it: {exc.strerror}") from None
    return sock


def _unlink(address: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(address)  # noqa: PTH108  a socket's name, on tmpfs
