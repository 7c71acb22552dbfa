"""GET requests of a worker, after redirects; where each may lead and what it may carry there."""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from runtimed.errors import InvalidArgument, PermissionDenied, Unavailable
from runtimed.workers import tls as tls_contexts
from runtimed.workers.proxies import Proxy, proxy_for
from runtimed.workers.tls import Tls
from runtimed.workers.watchdog import Watchdog

_READ_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# What a request carries wherever it is sent. All else was meant for the registry: tokens, but also headers that a
# client or the host's configuration gave, by names that say nothing of their secrets.
_HARMLESS = frozenset(("accept", "accept-encoding", "range", "user-agent"))
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Place:
    """A URL, and what a request for it carries. Never shown: the URL may be signed."""

    url: str
    headers: Mapping[str, str]
    tls: Tls
    is_local: bool | None = None  # whether the host before was this machine or on its link; None: there was none

    def redirected(self, location: str, is_local: bool) -> "Place":
        """Return the place that the host here names by *location*.

        Raises:
            PermissionDenied: it leads from https to something else.
        """
        target = urljoin(self.url, location)
        here, there = urlsplit(self.url), urlsplit(target)
        if here.scheme == "https" and there.scheme != "https":
            raise PermissionDenied(f"{here.netloc} redirects from https to something else; not followed")
        if (here.scheme, here.hostname, _port(here)) == (there.scheme, there.hostname, _port(there)):
            return Place(target, self.headers, self.tls, is_local)
        harmless = {name: value for name, value in self.headers.items() if name.lower() in _HARMLESS}
        return Place(target, harmless, self.tls.elsewhere(), is_local)


class Connection(http.client.HTTPConnection):
    """A connection to the host of a place, direct or by the proxy that is set for it. Connects when it is asked."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._parts = _parse(place.url)
        self.name = self._parts.netloc
        assert self._parts.hostname is not None
        port = _port(self._parts)
        self.proxy: Proxy | None = proxy_for(self._parts.scheme, self._parts.hostname, port)
        host, at = (self.proxy.host, self.proxy.port) if self.proxy else (self._parts.hostname, port)
        super().__init__(host, at, timeout=_READ_TIMEOUT_S)
        self.default_port = _PORTS[self._parts.scheme]  # which the Host header leaves out; a signature may cover it
        if self.proxy and self._parts.scheme == "https":
            authorization = {"Proxy-Authorization": self.proxy.authorization} if self.proxy.authorization else {}
            self.set_tunnel(self._parts.hostname, port, authorization)
        self.is_local = False
        self._connected: socket.socket | None = None

    @property
    def wire(self) -> socket.socket | None:
        """The socket, also when an answer has taken it over (one that says ``Connection: close``)."""
        return self.sock or self._connected

    def connect(self) -> None:
        super().connect()
        if not self.proxy:
            self.is_local = self._check_peer()
        if self._parts.scheme == "https":
            # The handshake by itself, so that it is a connected socket's: a watchdog can end it.
            context = tls_contexts.context(self._place.tls)
            self.sock = context.wrap_socket(
                self.sock, server_hostname=self._parts.hostname, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
        self._connected = self.sock

    def get(self, extra: Mapping[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a GET of the place, with *extra* headers."""
        parts = self._parts._replace(fragment="")
        headers = {"User-Agent": "runtimed", **self._place.headers, **extra}
        if self.proxy and parts.scheme == "http":
            target = parts.geturl()
            if self.proxy.authorization:
                headers["Proxy-Authorization"] = self.proxy.authorization
        else:
            target = parts._replace(scheme="", netloc="").geturl() or "/"
        self.request("GET", target, headers=headers)
        return self.getresponse()

    def _check_peer(self) -> bool:
        """Return whether the peer is this machine or on its link, to which nobody else may redirect."""
        address = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        is_local = mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified
        if is_local and self._place.is_local is False:
            raise PermissionDenied(f"a registry redirects to {self.name}, which is this machine or its link")
        return bool(is_local)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no redirect, and the place that gave it."""

    host: str
    place: Place
    response: http.client.HTTPResponse


@contextmanager
def answer_of(place: Place, extra: Mapping[str, str], watchdog: Watchdog) -> Iterator[Answer]:
    """Hold the answer to a GET of *place* with *extra* headers, after redirects.

    Raises:
        InvalidArgument, PermissionDenied: a URL or redirect that is not followed.
        Unavailable: no connection, too many redirects, or the watchdog has had enough.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        connection = Connection(place)
        watchdog.watch(connection)
        try:
            with connection_errors(connection.name, watchdog):
                response = connection.get(extra)
            with response:
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or location is None:
                    yield Answer(connection.name, place, response)
                    return
        finally:
            connection.close()
        place = place.redirected(location, connection.is_local)
    raise Unavailable(f"{connection.name} redirects for the {_MAX_REDIRECTS + 1}th time; that is not followed")


@contextmanager
def connection_errors(host: str, watchdog: Watchdog) -> Iterator[None]:
    """Raise what goes wrong on the way to *host* as Unavailable, but a certificate that is not trusted as it is."""
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise PermissionDenied(f"{host}: certificate not trusted: {exc.verify_message}") from exc
    except ValueError:  # from http.client, about a name or a header that may hold a token: not to be shown
        raise InvalidArgument(f"{host[:128]!r}: not a host name, or a header for it has control characters") from None
    except (OSError, http.client.HTTPException) as exc:
        if watchdog.has_barked:
            raise too_slow(host, watchdog) from exc
        raise Unavailable(f"{host}: {str(exc)[:128] or type(exc).__name__}; try again later") from exc


def too_slow(host: str, watchdog: Watchdog) -> Unavailable:
    """Return the error that the bark of *watchdog* stands for."""
    return Unavailable(f"{host} sends less than {watchdog.min_rate} bytes a second; try again later")


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidArgument("the URL of a blob does not parse") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidArgument(f"the URL of a blob is not a plain http or https one: {parts.scheme[:16]!r}")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 0)
