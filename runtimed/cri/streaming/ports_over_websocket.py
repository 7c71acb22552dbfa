"""Port-forward in the channels of a WebSocket, the way before the tunnelled one (k8s.io/kubelet, portforward).

The ports are those that the URL was asked for: two channels for each, data and error, in their order. On both the
server says the port's number first. A port has one connection; when all have ended, so has the WebSocket.
"""

import asyncio
import logging

from aiohttp import web

from runtimed.cri.streaming.idle import unless_idle
from runtimed.cri.streaming.over_websocket import Channels
from runtimed.cri.streaming.running import unless
from runtimed.cri.streaming.session import Input, Runtime
from runtimed.cri.streaming.tickets import Ticket
from runtimed.errors import RuntimedError

log = logging.getLogger(__name__)
PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
MOST = 32  # ports of one WebSocket


async def forward(
    socket: web.WebSocketResponse,
    transport: asyncio.BaseTransport,
    runtime: Runtime,
    ticket: Ticket,
    idle_limit_s: float,
) -> None:
    """Serve port-forward for all ports of *ticket*."""
    channels = Channels(socket, socket.ws_protocol or PROTOCOLS[0], transport)
    inputs = [Input(channels.look) for _ in ticket.ports]
    gone = asyncio.Event()
    reading = asyncio.create_task(_read(channels, inputs, gone))
    try:
        async with unless_idle(channels, idle_limit_s, gone.set), asyncio.TaskGroup() as tasks:
            for number, port in enumerate(ticket.ports):
                one = _forward_one(channels, runtime, ticket.target, port, number, inputs[number])
                tasks.create_task(unless(one, gone))
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    await socket.close()


async def _read(channels: Channels, inputs: list[Input], gone: asyncio.Event) -> None:
    try:
        async for channel, data in channels:
            is_data = channel % 2 == 0 and 0 <= channel < 2 * len(inputs)
            if is_data and not await channels.fill(inputs[channel // 2], data):
                return
    finally:
        gone.set()


async def _forward_one(
    channels: Channels, runtime: Runtime, sandbox: str, port: int, number: int, incoming: Input
) -> None:
    data, error = 2 * number, 2 * number + 1
    try:
        for channel in (data, error):
            await channels.send(channel, port.to_bytes(2, "little"))
        await runtime.port_forward(sandbox, port, incoming, channels.writer(data))
    except RuntimedError as exc:
        await channels.send(error, str(exc).encode())
    except Exception:
        log.exception("port-forward failed")
        await channels.send(error, b"internal error")
    finally:
        incoming.close()
