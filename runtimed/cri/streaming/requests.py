"""Requests to the streaming server, by aiohttp: a ticket is redeemed, a protocol agreed on, a session served."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from runtimed.cri.streaming import over_spdy, over_websocket, ports_over_websocket
from runtimed.cri.streaming.connection import Connection
from runtimed.cri.streaming.hangup import HangUp, watch_over
from runtimed.cri.streaming.idle import unless_idle
from runtimed.cri.streaming.raw import Raw
from runtimed.cri.streaming.session import Runtime
from runtimed.cri.streaming.strangers import TurnedAway
from runtimed.cri.streaming.tickets import Ticket, Tickets
from runtimed.errors import NotFound

_MAX_FORWARDS = 2 * 256  # streams
_MAX_MESSAGE = 1 << 20  # bytes
_LAST_WORDS_S = 1.0  # for answers to be sent, at the end
_STRANGERS = 512  # connections at once that have not come with a ticket yet
_TICKET_WITHIN_S = 10.0  # of its connection


class Requests:
    """Any local process, or whoever reaches the address, can connect: before it has a ticket it gets little."""

    def __init__(self, runtime: Runtime, tickets: Tickets, idle_limit_s: float) -> None:
        self._runtime = runtime
        self._tickets = tickets
        self._idle_limit_s = idle_limit_s
        self._sessions: dict[web.RequestHandler, asyncio.Task[None]] = {}  # by connection
        self._server = web.Server(self._handle, access_log=None)

    async def close(self) -> None:
        """End every session and every connection."""
        for session in self._sessions.values():
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions.values())
        await self._server.shutdown(_LAST_WORDS_S)

    def connection(self) -> asyncio.BaseProtocol:
        """Return what reads a new connection."""
        if len(self._server.connections) - len(self._sessions) >= _STRANGERS:
            return TurnedAway()
        handler = self._server()
        asyncio.get_running_loop().call_later(_TICKET_WITHIN_S, self._look, handler)
        return handler

    def _look(self, handler: web.RequestHandler) -> None:
        if handler not in self._sessions:
            handler.force_close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        kind, _, token = request.path.removeprefix("/").partition("/")
        try:
            ticket = self._tickets.redeem(kind, token)
        except NotFound as exc:
            return web.Response(status=404, text=str(exc))
        session = asyncio.current_task()
        assert session is not None
        self._sessions[request.protocol] = session
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, ticket)
            if request.headers.get("Upgrade", "").lower() == "spdy/3.1":
                return await self._spdy(request, ticket)
            return web.Response(status=400, text="only SPDY/3.1 and WebSocket are served: upgrade to one of them")
        finally:
            del self._sessions[request.protocol]

    async def _spdy(self, request: web.BaseRequest, ticket: Ticket) -> web.StreamResponse:
        offered = [
            one.strip() for line in request.headers.getall("X-Stream-Protocol-Version", []) for one in line.split(",")
        ]
        known = (over_spdy.FORWARD,) if ticket.kind == "portforward" else over_spdy.REMOTE
        protocol = next((one for one in known if one in offered), None) or (None if offered else known[-1])
        if protocol is None:
            return web.Response(status=403, text=f"of these protocols one must be spoken: {', '.join(known)}")
        watch_over(_transport(request))
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

    async def _websocket(self, request: web.BaseRequest, ticket: Ticket) -> web.StreamResponse:
        forwards = ticket.kind == "portforward"
        known = over_websocket.PROTOCOLS
        if forwards:  # the old protocols have no other way to say which ports
            has_few = 0 < len(ticket.ports) <= ports_over_websocket.MOST
            known = (over_websocket.TUNNEL, *(ports_over_websocket.PROTOCOLS if has_few else ()))
        socket = web.WebSocketResponse(protocols=known, max_msg_size=_MAX_MESSAGE, compress=False)
        offered = [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()]
        if not set(offered) & set(known) and (offered or forwards):
            return web.Response(status=403, text=f"of these protocols one must be spoken: {', '.join(known)}")
        transport = _transport(request)
        watch_over(transport)
        await socket.prepare(request)
        if socket.ws_protocol == over_websocket.TUNNEL:
            await self._tunnel(socket, transport, ticket)
        elif forwards:
            await ports_over_websocket.forward(socket, transport, self._runtime, ticket, self._idle_limit_s)
        else:
            await over_websocket.remote(socket, transport, self._runtime, ticket, self._idle_limit_s)
        return socket

    async def _tunnel(self, socket: web.WebSocketResponse, transport: asyncio.BaseTransport, ticket: Ticket) -> None:
        """SPDY in the messages of a WebSocket."""
        flowing = asyncio.Event()
        flowing.set()
        connection = Connection(_sender(socket), flowing.clear, flowing.set, max_streams=_most(ticket))

        async def read() -> None:
            try:
                while (message := await socket.receive()).type == web.WSMsgType.BINARY:
                    connection.feed(message.data)
                    if not flowing.is_set():
                        with HangUp(transport, flowing.set) as hangup:
                            await flowing.wait()
                        if hangup.has_come:
                            return
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
        async with unless_idle(connection, self._idle_limit_s, connection.lost):
            with suppress(TimeoutError):  # the client did not take the end
                if ticket.kind == "portforward":
                    await over_spdy.forward(connection, self._runtime, ticket.target)
                else:
                    await over_spdy.remote(connection, self._runtime, ticket, protocol)


def _transport(request: web.BaseRequest) -> asyncio.BaseTransport:
    if request.transport is None:
        raise ConnectionResetError("the client has gone")
    return request.transport


def _most(ticket: Ticket) -> int:
    return _MAX_FORWARDS if ticket.kind == "portforward" else 8


def _sender(socket: web.WebSocketResponse) -> Callable[[bytes], Awaitable[None]]:
    async def send(data: bytes) -> None:
        if not socket.closed:
            with suppress(ConnectionError):  # reading finds out, too
                await socket.send_bytes(data)

    return send
