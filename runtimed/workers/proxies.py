"""HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as Go's programs read them (golang.org/x/net/http/httpproxy)."""

import base64
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from runtimed.errors import InvalidArgument

VARIABLES = tuple(f(name) for name in ("http_proxy", "https_proxy", "no_proxy") for f in (str.upper, str.lower))
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `str` is its address without what it is to know of us."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)  # the value of a Proxy-Authorization header

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def proxy_for(scheme: str, host: str, port: int | None, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy by which *host* is reached; None: directly, as always for this machine itself.

    Raises:
        InvalidArgument: the variable's value is no URL of an HTTP proxy.
    """
    name = f"{scheme}_proxy"
    value = environ.get(name.upper()) or environ.get(name, "")
    if not value or _is_this_machine(host):
        return None
    exceptions = environ.get("NO_PROXY") or environ.get("no_proxy", "")
    if any(_matches(entry, host.lower().rstrip("."), port or _DEFAULT_PORTS[scheme]) for entry in _entries(exceptions)):
        return None
    return _parse(name.upper(), value)


def _parse(name: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidArgument(f"{name}: not a URL") from None  # it may hold a password
    if parts.scheme != "http" or not host:
        raise InvalidArgument(f"{name}: must be http://[USER:PASSWORD@]HOST:PORT; {parts.scheme[:16]!r} is not spoken")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(host, port or 80, authorization)


def _entries(value: str) -> Iterator[str]:
    return (entry for part in value.split(",") if (entry := part.strip().lower()))


def _matches(entry: str, host: str, port: int) -> bool:
    """Say whether *entry* of NO_PROXY means *host*: "*", an address, a network, or a domain, with a port or without."""
    if entry == "*":
        return True
    address = _address(host)
    if address and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, _, digits = entry.rpartition(":")
    if name and digits.isdigit() and (name.count(":") == 0 or name.endswith("]")):
        if int(digits[:6]) != port:
            return False
        entry = name
    if address:
        return _address(entry.strip("[]")) == address
    domain = entry.removeprefix("*").strip(".")
    is_below_only = entry.startswith((".", "*."))
    return host.endswith(f".{domain}") or (host == domain and not is_below_only)


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host.lower().rstrip(".") == "localhost"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
