"""Exec, attach and port-forward over a SPDY connection (k8s.io/apimachinery, remotecommand v1 to v4, portforward)."""

import asyncio
import logging

from runtimed.cri.streaming import running
from runtimed.cri.streaming.connection import Connection, Stream
from runtimed.cri.streaming.session import Runtime, Session
from runtimed.cri.streaming.tickets import Ticket
from runtimed.errors import RuntimedError

log = logging.getLogger(__name__)

REMOTE = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
FORWARD = "portforward.k8s.io"
_STREAMS_WITHIN_S = 30.0
_LEAVES_WITHIN_S = 2.0


async def remote(connection: Connection, runtime: Runtime, ticket: Ticket, protocol: str) -> None:
    """Serve an exec or attach: the client opens a stream for each of what it asked for."""
    wanted = {name for name in ("stdin", "stdout", "stderr") if getattr(ticket, name)} | {"error"}
    if ticket.tty:
        wanted -= {"stderr"}
        if protocol in REMOTE[:2]:
            wanted |= {"resize"}
    streams: dict[str, Stream] = {}
    try:
        async with asyncio.timeout(_STREAMS_WITHIN_S):
            while wanted - streams.keys():
                stream = await connection.opened.get()
                if stream is None:
                    return
                streams[stream.headers.get("streamtype", "").lower()] = stream
    except TimeoutError:
        return
    session = Session(
        streams["stdin"].input if "stdin" in wanted else None,
        streams["stdout"].write if "stdout" in wanted else None,
        streams["stderr"].write if "stderr" in wanted else None,
    )
    async with asyncio.TaskGroup() as tasks:
        sizes = None
        if "resize" in wanted:
            sizes = tasks.create_task(running.follow_sizes(streams["resize"].input, session))
        status, words = await running.run(runtime, ticket, session, connection.ended)
        if sizes is not None:
            sizes.cancel()
    message = status if protocol == REMOTE[0] else words.encode()
    async with asyncio.timeout(_STREAMS_WITHIN_S):
        for name in ("stdout", "stderr"):
            if name in wanted:
                await streams[name].close()
        await streams["error"].write(message)
        for stream in streams.values():
            await stream.close()
    await _left(connection)


async def forward(connection: Connection, runtime: Runtime, sandbox: str) -> None:
    """Serve port-forward: for each connection the client opens a stream for data and one for an error."""
    waiting: dict[tuple[str, str], dict[str, Stream]] = {}
    async with asyncio.TaskGroup() as tasks:
        running_now = set()
        while (stream := await connection.opened.get()) is not None:
            headers = stream.headers
            key = (headers.get("requestid", ""), headers.get("port", ""))
            pair = waiting.setdefault(key, {})
            pair[headers.get("streamtype", "").lower()] = stream
            if pair.keys() >= {"data", "error"}:
                del waiting[key]
                task = tasks.create_task(_forward_one(connection, runtime, sandbox, key[1], pair))
                running_now.add(task)
                task.add_done_callback(running_now.discard)
        for task in running_now:
            task.cancel()


async def _forward_one(
    connection: Connection, runtime: Runtime, sandbox: str, port: str, pair: dict[str, Stream]
) -> None:
    data, error = pair["data"], pair["error"]
    try:
        if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 1 << 16:
            await error.write(f"port {port[:16]!r} is not a port".encode())
            return
        await runtime.port_forward(sandbox, int(port), data.input, data.write)
    except RuntimedError as exc:
        await error.write(str(exc).encode())
    except Exception:
        log.exception("port-forward failed")
        await error.write(b"internal error")
    finally:
        if not connection.ended.is_set():
            await data.close()
            await error.close()
        connection.forget(data)
        connection.forget(error)


async def _left(connection: Connection) -> None:
    """Let the client close: a connection closed with input unread would take output along that has not arrived."""
    try:
        async with asyncio.timeout(_LEAVES_WITHIN_S):
            await connection.ended.wait()
    except TimeoutError:
        pass
