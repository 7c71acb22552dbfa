"""The streaming server: where kubelets send exec, attach and port-forward after they have got a URL.

A URL serves once and for a minute. What a client can hold is bounded: streams by what it asked for, input by 256 KiB a
stream, output by the socket's buffer, a connection by the time in which nothing moves.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from runtimed.cri.streaming import over_spdy, over_websocket, ports_over_websocket
from runtimed.cri.streaming.connection import Connection
from runtimed.cri.streaming.raw import Raw
from runtimed.cri.streaming.session import Runtime
from runtimed.cri.streaming.tickets import Ticket, Tickets
from runtimed.errors import InvalidArgument, NotFound, os_errors

log = logging.getLogger(__name__)
_MAX_FORWARDS = 2 * 256  # streams
_MAX_MESSAGE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = "127.0.0.1"  # also in URLs
    port: int = 0  # 0: any
    idle_limit_s: float = 4 * 3600.0  # without a byte either way
    certificate: Path | None = None  # PEM files; read again when they change
    key: Path | None = None


class StreamingServer:
    def __init__(self, runtime: Runtime, settings: Settings = Settings()) -> None:
        self._runtime = runtime
        self._settings = settings
        self._tickets = Tickets()
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None  # what listens
        self._current: ssl.SSLContext | None = None  # what serves: of the certificate and key that were good last
        self._loaded: list[tuple[int, int, int]] = []  # what tells that its files have been changed
        self._sessions: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises InvalidArgument for files that are no certificate and key; what os_errors says."""
        if self._settings.certificate:
            self._load()
            self._tls = self._current
            assert self._tls is not None
            self._tls.sni_callback = self._choose  # called for each connection, with or without a name
        application = web.Application()
        application.router.add_route("*", "/{kind:exec|attach|portforward}/{token}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        where = f"streaming server at {self._settings.host}:{self._settings.port}"
        with os_errors(where):
            site = web.TCPSite(self._runner, self._settings.host, self._settings.port, ssl_context=self._tls)
            await site.start()

    async def close(self) -> None:
        """End every session, and listen no more."""
        for session in self._sessions:
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions)
        if self._runner:
            await self._runner.cleanup()

    def url(self, ticket: Ticket) -> str:
        """Return where a client can make the request, once. Raises ResourceExhausted, InvalidArgument."""
        if ticket.kind != "portforward" and not (ticket.stdin or ticket.stdout or ticket.stderr):
            raise InvalidArgument("one of stdin, stdout and stderr must be asked for")
        if ticket.tty and ticket.stderr:
            raise InvalidArgument("a terminal has no stderr of its own: tty and stderr cannot both be asked for")
        if wrong := [port for port in ticket.ports if not 0 < port < 1 << 16]:
            raise InvalidArgument(f"{wrong[0]} is no number of a port")
        assert self._runner is not None
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{host}:{self._runner.addresses[0][1]}/{ticket.kind}/{self._tickets.issue(ticket)}"

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self._load()
        assert self._current is not None
        connection.context = self._current

    def _load(self) -> None:
        """Read certificate and key again if they have changed; the last good ones serve while they do not fit."""
        certificate, key = self._settings.certificate, self._settings.key or self._settings.certificate
        assert certificate is not None
        assert key is not None
        try:
            found = [(one.st_ino, one.st_size, one.st_mtime_ns) for one in (certificate.stat(), key.stat())]
            if found != self._loaded:
                # Not into the one that serves: a certificate that is not the key's would take the key from it.
                fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                fresh.load_cert_chain(certificate, key, password="")  # or an encrypted key is asked for at a terminal
                self._current, self._loaded = fresh, found
        except (OSError, ssl.SSLError) as exc:
            if self._current is None:
                raise InvalidArgument(f"streaming certificate {certificate} and key {key}: {exc}") from None
            log.warning("streaming certificate cannot be read", extra={"error": str(exc)})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            ticket = self._tickets.redeem(request.match_info["kind"], request.match_info["token"])
        except NotFound as exc:
            return web.Response(status=404, text=str(exc))
        session = asyncio.current_task()
        assert session is not None
        self._sessions.add(session)
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, ticket)
            if request.headers.get("Upgrade", "").lower() == "spdy/3.1":
                return await self._spdy(request, ticket)
            return web.Response(status=400, text="only SPDY/3.1 and WebSocket are served: upgrade to one of them")
        finally:
            self._sessions.discard(session)

    async def _spdy(self, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        offered = [
            one.strip() for line in request.headers.getall("X-Stream-Protocol-Version", []) for one in line.split(",")
        ]
        known = (over_spdy.FORWARD,) if ticket.kind == "portforward" else over_spdy.REMOTE
        protocol = next((one for one in known if one in offered), None) or (None if offered else known[-1])
        if protocol is None:
            return web.Response(status=403, text=f"of these protocols one must be spoken: {', '.join(known)}")
        raw = Raw(request)
        raw.switch({"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol})
        connection = Connection(raw.send, raw.pause, raw.resume, max_streams=_most(ticket))
        raw.on_data, raw.on_lost = connection.feed, connection.lost
        try:
            await self._run(connection, ticket, protocol)
        finally:
            await connection.close()
            await raw.close()
        return web.Response()  # to a connection that is closed: for aiohttp, which wants one

    async def _websocket(self, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        forwards = ticket.kind == "portforward"
        known = over_websocket.PROTOCOLS
        if forwards:  # the old protocols have no other way to say which ports
            has_few = 0 < len(ticket.ports) <= ports_over_websocket.MOST
            known = (over_websocket.TUNNEL, *(ports_over_websocket.PROTOCOLS if has_few else ()))
        socket = web.WebSocketResponse(protocols=known, max_msg_size=_MAX_MESSAGE, compress=False, heartbeat=60.0)
        offered = [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()]
        if not set(offered) & set(known) and (offered or forwards):
            return web.Response(status=403, text=f"of these protocols one must be spoken: {', '.join(known)}")
        await socket.prepare(request)
        if socket.ws_protocol == over_websocket.TUNNEL:
            await self._tunnel(socket, ticket)
        elif forwards:
            await ports_over_websocket.forward(socket, self._runtime, ticket)
        else:
            await over_websocket.remote(socket, self._runtime, ticket)
        return socket

    async def _tunnel(self, socket: web.WebSocketResponse, ticket: Ticket) -> None:
        """SPDY in the messages of a WebSocket."""
        flowing = asyncio.Event()
        flowing.set()
        connection = Connection(_sender(socket), flowing.clear, flowing.set, max_streams=_most(ticket))

        async def read() -> None:
            try:
                while (message := await socket.receive()).type == web.WSMsgType.BINARY:
                    connection.feed(message.data)
                    await flowing.wait()
            finally:
                connection.lost()

        reading = asyncio.create_task(read())
        try:
            await self._run(connection, ticket, over_spdy.FORWARD)
        finally:
            await connection.close()
            reading.cancel()
            await asyncio.wait([reading])
            await socket.close()

    async def _run(self, connection: Connection, ticket: Ticket, protocol: str) -> None:
        watching = asyncio.create_task(self._watch(connection))
        try:
            if ticket.kind == "portforward":
                await over_spdy.forward(connection, self._runtime, ticket.target)
            else:
                await over_spdy.remote(connection, self._runtime, ticket, protocol)
        except TimeoutError:
            pass  # the client did not take the end
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, connection: Connection) -> None:
        """End a connection on which nothing has moved for too long."""
        loop = asyncio.get_running_loop()
        limit = self._settings.idle_limit_s
        idle = asyncio.get_running_loop().create_future()

        def look() -> None:
            left = connection.last_activity + limit - loop.time()
            if left > 0:
                timers[0] = loop.call_later(left, look)
            elif not idle.done():
                idle.set_result(None)

        timers = [loop.call_soon(look)]
        try:
            await idle
        finally:
            timers[0].cancel()
        connection.lost()


def _most(ticket: Ticket) -> int:
    return _MAX_FORWARDS if ticket.kind == "portforward" else 8


def _sender(socket: web.WebSocketResponse) -> Callable[[bytes], Awaitable[None]]:
    async def send(data: bytes) -> None:
        if not socket.closed:
            with suppress(ConnectionError):  # reading finds out, too
                await socket.send_bytes(data)

    return send
