"""The streaming server: where kubelets send exec, attach and port-forward after they have got a URL.

A URL serves once and for a minute. What a client can hold is bounded: streams by what it asked for, input by 256 KiB a
stream, output by the socket's buffer, a connection by the time in which nothing moves. Who has no URL may be anybody,
and has a connection for ten seconds.
"""

import asyncio
import importlib
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtimed.cri.streaming.session import Runtime
from runtimed.cri.streaming.strangers import TurnedAway
from runtimed.cri.streaming.tickets import Ticket, Tickets
from runtimed.errors import InvalidArgument, os_errors
from runtimed.threads import blocking

if TYPE_CHECKING:
    from runtimed.cri.streaming.requests import Requests

log = logging.getLogger(__name__)

_HANDSHAKE_WITHIN_S = 10.0  # of TLS


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
        self._listener: asyncio.Server | None = None
        self._requests: Requests | None = None
        self._tls: ssl.SSLContext | None = None  # what listens
        self._current: ssl.SSLContext | None = None  # what serves: of the certificate and key that were good last
        self._loaded: list[tuple[int, int, int]] = []  # what tells that its files have been changed

    async def start(self) -> None:
        """Listen. Raises InvalidArgument for files that are no certificate and key; what os_errors says."""
        if self._settings.certificate:
            self._load()
            self._tls = self._current
            assert self._tls is not None
            self._tls.sni_callback = self._choose  # called for each connection, with or without a name
        where = f"streaming server at {self._settings.host}:{self._settings.port}"
        with os_errors(where):
            self._listener = await asyncio.get_running_loop().create_server(
                self._connected,
                self._settings.host,
                self._settings.port,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_WITHIN_S if self._tls else None,
            )

    async def close(self) -> None:
        """End every session, and listen no more."""
        if self._listener:
            self._listener.close()
        if self._requests:
            await self._requests.close()

    def url(self, ticket: Ticket) -> str:
        """Return where a client can make the request, once. Raises ResourceExhausted, InvalidArgument."""
        if ticket.kind != "portforward" and not (ticket.stdin or ticket.stdout or ticket.stderr):
            raise InvalidArgument("one of stdin, stdout and stderr must be asked for")
        if ticket.tty and ticket.stderr:
            raise InvalidArgument("a terminal has no stderr of its own: tty and stderr cannot both be asked for")
        if wrong := [port for port in ticket.ports if not 0 < port < 1 << 16]:
            raise InvalidArgument(f"{wrong[0]} is no number of a port")
        assert self._listener is not None
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{host}:{self._listener.sockets[0].getsockname()[1]}/{ticket.kind}/{self._tickets.issue(ticket)}"

    async def load(self) -> None:
        """Load what serves HTTP: aiohttp, 10 MB, and 0.1 s that the thread that serves everybody does not wait."""
        if self._requests is None:
            module = await blocking(importlib.import_module, "runtimed.cri.streaming.requests")
            if self._requests is None:
                self._requests = module.Requests(self._runtime, self._tickets, self._settings.idle_limit_s)

    def _connected(self) -> asyncio.BaseProtocol:
        """Return what a new connection is read by."""
        return TurnedAway() if self._requests is None else self._requests.connection()

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
