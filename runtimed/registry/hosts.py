"""Where a registry is reached, and where it may send us.

A registry that names other places (redirects, token servers) is a stranger: what it names must not make the daemon send
credentials elsewhere, fall back to plain http, or reach services of its own machine or the cloud's metadata address.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from yarl import URL

from runtimed.errors import InvalidArgument, PermissionDenied
from runtimed.oci.reference import DEFAULT_HOST
from runtimed.workers.tls import Tls

DOCKER_HUB = "registry-1.docker.io"  # docker.io itself serves no registry


class Capability(StrEnum):
    """What a host may be used for, in the words of hosts.toml."""

    PULL = "pull"  # what is asked for by its digest
    RESOLVE = "resolve"  # to say what a tag stands for
    PUSH = "push"


ALL = frozenset(Capability)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A host's HTTP side, and how it is spoken to."""

    base: URL  # the root of the distribution API, with a slash at its end
    capabilities: frozenset[Capability] = ALL
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls = Tls()
    source: str = "by the image's name"  # where it was configured: file and line

    def __str__(self) -> str:
        return str(self.base).rstrip("/")

    @property
    def authority(self) -> str:
        """Host, with the port if it is not the scheme's own."""
        return authority(self.base)


def authority(url: URL) -> str:
    """Return the host of *url* as references have it: with the port if that is not the scheme's own."""
    return url.host_port_subcomponent or ""


def endpoint(host: str, default_scheme: str = "") -> Endpoint:
    """Return where the registry *host* of a reference is reached when nothing else is configured.

    Loopback hosts are spoken to in plain http (unless the port is 443) and all others in https, as containerd does it;
    *default_scheme* overrides that.

    Raises:
        InvalidArgument: a scheme that is neither http nor https.
    """
    if default_scheme not in {"", "http", "https"}:
        raise InvalidArgument(f"scheme {default_scheme[:32]!r} for registry {host}: must be http or https")
    address = DOCKER_HUB if host == DEFAULT_HOST else host
    url = URL(f"https://{address}")
    usual = "http" if is_loopback(url) and url.explicit_port != 443 else "https"
    return Endpoint(base=URL(f"{default_scheme or usual}://{address}/v2/"))


def is_mirror(base: URL, host: str) -> bool:
    """Say whether *base* is another registry than that of the references that begin with *host*."""
    return authority(base) != authority(URL(f"{base.scheme}://{host}")) and not (
        host == DEFAULT_HOST and base.host == DOCKER_HUB
    )


def is_loopback(url: URL) -> bool:
    """Say whether *url* names this machine: ``localhost``, 127.0.0.0/8 or ::1."""
    address = _address(url)
    return address.is_loopback if address else (url.host or "").rstrip(".").lower() == "localhost"


def same_origin(one: URL, other: URL) -> bool:
    """Say whether scheme, host and port agree: only then may credentials given for *one* be sent to *other*."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def check_redirect(origin: URL, target: URL) -> None:
    """Refuse a redirect from *origin* to *target* that no honest registry sends.

    Raises:
        PermissionDenied: from https to anything else, to another scheme than http(s), with user and password in it,
            or from another machine to this one or to a link-local address.
    """
    shown = f"{origin.host}: redirect to {target.scheme}://{target.host}"
    if target.scheme not in {"http", "https"} or not target.host:
        raise PermissionDenied(f"{shown}: not an http address")
    if origin.scheme == "https" and target.scheme != "https":
        raise PermissionDenied(f"{shown}: leads from https to plain http")
    if target.user is not None or target.password is not None:
        raise PermissionDenied(f"{shown}: carries credentials of its own")
    if target.host != origin.host and is_internal(target) and not is_loopback(origin):
        raise PermissionDenied(f"{shown}: leads to an address of this machine or link")


def check_realm(registry: URL, realm: URL) -> None:
    """Refuse a token server that *registry* names but that must not see credentials.

    Raises:
        PermissionDenied: it is not https; plain http is taken only on the registry's own host, and only if the registry
            itself is spoken to in plain http. Or it is on this machine or link and the registry is not.
    """
    shown = f"{registry.host}: token server {realm.scheme}://{realm.host}"
    own_host = realm.host == registry.host
    if not realm.host or not (realm.scheme == "https" or (realm.scheme == registry.scheme == "http" and own_host)):
        raise PermissionDenied(f"{shown}: must be reached by https")
    if realm.user is not None or realm.password is not None:
        raise PermissionDenied(f"{shown}: carries credentials of its own")
    if not own_host and is_internal(realm) and not is_loopback(registry):
        raise PermissionDenied(f"{shown}: is an address of this machine or link")


def is_internal(url: URL) -> bool:
    """Say whether *url* names this machine or its link, where cloud providers keep what only this machine may know."""
    return is_loopback(url) if _address(url) is None else is_internal_address(url.host or "")


def is_internal_address(text: str) -> bool:
    """Say the same of an IP address; what is none is not."""
    address = _parsed(text.partition("%")[0])
    return address is not None and (
        address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    )


def _address(url: URL) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    return _parsed(url.host or "")


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
