"""``rctl cri port-forward``: local ports as ports of a pod, over SPDY, which every runtime speaks."""

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete
from runtimed.cli.attach import with_signals
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME
from runtimed.cli.cri.find import pod_id
from runtimed.cli.cri.upgrade import upgraded
from runtimed.cli.output import note
from runtimed.cri.streaming import spdy
from runtimed.errors import InvalidArgument, Unavailable, os_errors

_PROTOCOL = "portforward.k8s.io"
_PIECE = 32 << 10  # bytes of a frame


@click.command("port-forward", short_help="Make ports of a pod local ones.")
@click.option("--address", default="127.0.0.1", show_default=True, metavar="IP", help="Where to listen.")
@click.option("--tls-ca", "authority", metavar="FILE", help="Who signs the streaming server's certificate.")
@click.argument("id", metavar="POD", shell_complete=complete.pods)
@click.argument("ports", metavar="[LOCAL:]REMOTE...", nargs=-1, required=True)
@click.pass_obj
def port_forward_command(
    settings: Settings, address: str, authority: str | None, id: str, ports: tuple[str, ...]
) -> int:
    """Take connections at local ports to ports of a pod, until interrupted; print where.

    LOCAL may be 0: any port that is free.

    \b
    rctl cri port-forward web 8080:80
    rctl cri port-forward kube-system/coredns 0:8080 0:9153
    """
    pairs = [_pair(text) for text in ports]

    async def work(client: Client) -> int:
        request = pb.PortForwardRequest(pod_sandbox_id=await pod_id(client, id), port=[there for _, there in pairs])
        url = (await client.call(RUNTIME.PortForward, request)).url
        headers = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": _PROTOCOL}
        async with upgraded(url, "POST", headers, authority=authority) as (reader, writer, _):
            return await _serve(Forwarder(reader, writer), address, pairs)

    return run(settings, lambda client: with_signals(lambda _: work(client)))


async def _serve(forwarder: "Forwarder", address: str, pairs: list[tuple[int, int]]) -> int:
    servers = []
    try:
        for here, there in pairs:

            def serve(local: StreamReader, remote: StreamWriter, port: int = there) -> "asyncio.Future[None]":
                return asyncio.ensure_future(forwarder.connect(port, local, remote))

            with os_errors(f"port {here} of {address}"):
                servers.append(await asyncio.start_server(serve, address, here))
            host, port = servers[-1].sockets[0].getsockname()[:2]
            print(f"{f'[{host}]' if ':' in host else host}:{port} -> {there}", flush=True)
        await forwarder.run()
    finally:
        for server in servers:
            server.close()
        await forwarder.close()
    return 0


class _Stream:
    """The two streams of a connection: what goes to and fro, and what went wrong."""

    def __init__(self, port: int, writer: StreamWriter) -> None:
        self.port = port
        self.writer = writer
        self.ended = asyncio.Event()
        self.error = b""


class Forwarder:
    """Connections over one SPDY connection to the streaming server."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = spdy.Decoder()
        self._encoder = spdy.Encoder()
        self._data: dict[int, _Stream] = {}
        self._errors: dict[int, _Stream] = {}
        self._next = 1
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Pass on what comes from the pod. Raises Unavailable when the connection is lost."""
        with suppress(OSError):
            while data := await self._reader.read(1 << 16):
                for frame in self._decoder.feed(data):
                    await self._take(frame)
        raise Unavailable("streaming server: the connection was lost; the pod may have ended")

    async def connect(self, port: int, reader: StreamReader, writer: StreamWriter) -> None:
        """Connect a local connection to *port* of the pod, until either side has ended."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        stream, error, data = _Stream(port, writer), self._next, self._next + 2
        self._next += 4
        self._errors[error], self._data[data] = stream, stream
        try:
            for id, kind in ((error, "error"), (data, "data")):
                headers = {"streamtype": kind, "port": str(port), "requestid": str(error)}
                self._writer.write(self._encoder.syn_stream(id, headers))
            self._writer.write(spdy.data_frame(error, b"", fin=True))
            sending = asyncio.create_task(self._send(data, reader))
            try:
                await stream.ended.wait()
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        finally:
            del self._data[data]  # but what went wrong may come later
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def close(self) -> None:
        """End every connection."""
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _send(self, id: int, reader: StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                self._writer.write(spdy.data_frame(id, data))
                await self._writer.drain()
            self._writer.write(spdy.data_frame(id, b"", fin=True))

    async def _take(self, frame: spdy.Frame) -> None:
        if frame.type == spdy.PING and frame.stream % 2 == 0:
            self._writer.write(spdy.ping(frame.stream))
        if (stream := self._data.get(frame.stream)) is not None:
            if frame.type == 0 and frame.data:
                with suppress(OSError):  # of a local connection that has gone: sending finds out, too
                    stream.writer.write(frame.data)
                    await stream.writer.drain()
            if frame.flags & spdy.FIN or frame.type == spdy.RST_STREAM:
                stream.ended.set()
        elif (stream := self._errors.get(frame.stream)) is not None:
            stream.error += frame.data if frame.type == 0 else b""
            if frame.flags & spdy.FIN or frame.type == spdy.RST_STREAM:
                del self._errors[frame.stream]
                if stream.error:
                    note(f"port {stream.port}: {stream.error.decode(errors='replace')}")
                    stream.ended.set()


def _pair(text: str) -> tuple[int, int]:
    """Return the local port and the pod's. Raises InvalidArgument."""
    here, colon, there = text.partition(":")
    numbers = [here, there] if colon else [here, here]
    if not all(number.isascii() and number.isdigit() and int(number[:6]) < 1 << 16 for number in numbers):
        raise InvalidArgument(f"port {text!r} is not of the form [LOCAL:]REMOTE, as 8080:80")
    if int(numbers[1]) == 0:
        raise InvalidArgument(f"port {text!r}: there is no port 0 in a pod")
    return int(numbers[0]), int(numbers[1])
