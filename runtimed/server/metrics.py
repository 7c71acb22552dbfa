"""The endpoint for Prometheus: ``GET /v1/metrics`` on an address of its own, if one is configured."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from runtimed import directories
from runtimed.errors import Internal, RuntimedError
from runtimed.server.parts import Parts
from runtimed.services.interceptors import Observe
from runtimed.threads import blocking

PATH = "/v1/metrics"  # containerd's


@asynccontextmanager
async def telling(parts: Parts) -> AsyncIterator[Observe | None]:
    """Tell of *parts* while the block runs, if there is an address for it; yield who wants to hear of calls.

    Raises:
        RuntimedError: the address cannot be listened on.
    """
    if not parts.config.metrics.address:
        yield None
        return
    # Loaded by whoever wants it: prometheus_client takes 1 MB and 10 ms, aiohttp 10 MB and 0.1 s.
    from aiohttp import web

    from runtimed.server.measures import CONTENT_TYPE, Measures

    measures = Measures(parts)
    parts.transfer.puller.listener = measures.pulled
    parts.collector.listener = measures.collected

    async def answer(_: web.Request) -> web.Response:
        try:
            text = await measures.text()
        except RuntimedError as exc:
            return web.Response(status=503, text=f"{exc}\n")
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    application = web.Application()
    application.router.add_get(PATH, answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    sock = await blocking(_listening, parts.config.metrics.address)
    try:
        await runner.setup()
        await web.SockSite(runner, sock).start()  # which closes it
        yield measures.called
    finally:
        await runner.cleanup()
        if sock.family == socket.AF_UNIX:  # from here on it is ours to remove
            await blocking(Path(parts.config.metrics.address).unlink, missing_ok=True)


def _listening(address: str) -> socket.socket:
    """Return a socket that is bound to *address*, whatever kind of address that is. Raises RuntimedError. Blocks."""
    is_path = address.startswith("/")
    sock: socket.socket | None = None
    try:
        if is_path:
            directories.clear_socket(Path(address))
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(address)
            Path(address).chmod(0o660)  # nobody can connect before it listens
            return sock
        host, _, port = address.rpartition(":")
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise Internal(f"metrics.address: cannot listen on {address}: {exc.strerror}; give another one") from None
