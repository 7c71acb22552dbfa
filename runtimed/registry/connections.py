"""Connections of the daemon to one host, and to those that it names: token servers, redirects."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from runtimed.registry import hosts
from runtimed.registry.hosts import Endpoint
from runtimed.threads import blocking
from runtimed.workers import tls
from runtimed.workers.proxies import proxy_for

_CONNECT_TIMEOUT_S = 15.0


class Connections:
    """Made when they are first used, by what the files of the host's configuration hold then."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = asyncio.Lock()
        self._sessions: dict[_Kind, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Close them."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def request(self, method: str, url: URL, *, is_own: bool, **options: Any) -> aiohttp.ClientResponse:
        """Begin a request to *url*; *is_own*: it is on the host itself, which may see who we are.

        Redirects are not followed. Raises what aiohttp does, and InvalidArgument or NotFound for a file or proxy.
        """
        proxy = proxy_for(url.scheme, url.raw_host or "", url.port)
        session = await self._session(_Kind(is_own, url.scheme == "https", proxy is not None))
        if proxy is not None:
            options["proxy"] = URL(str(proxy))
            if proxy.authorization:
                # Of CONNECT; without that, for plain http, of the request itself.
                where = "proxy_headers" if url.scheme == "https" else "headers"
                options[where] = {**options.get(where, {}), "Proxy-Authorization": proxy.authorization}
        return await session.request(method, url, allow_redirects=False, **options)

    async def _session(self, kind: "_Kind") -> aiohttp.ClientSession:
        async with self._lock:
            if kind not in self._sessions:
                self._sessions[kind] = await self._made(kind)
            return self._sessions[kind]

    async def _made(self, kind: "_Kind") -> aiohttp.ClientSession:
        own = self._endpoint.tls
        context: ssl.SSLContext | bool = True  # aiohttp's own, which trusts nobody (:mod:`.loading`); nobody asks it
        if kind.is_tls:
            context = await blocking(tls.context, own if kind.is_own else own.elsewhere())
        resolver = None if kind.is_own or kind.is_proxied else _Outward(self._endpoint)
        # No cookies and no .netrc: a request holds what is put into it here. The body counts as it comes, so that no
        # compression hides its size.
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, resolver=resolver),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )


@dataclass(frozen=True, slots=True)
class _Kind:
    """What connections of different sessions differ in."""

    is_own: bool
    is_tls: bool
    is_proxied: bool


class _Outward(AbstractResolver):
    """Resolves names that a registry gave, but not to this machine or its link, unless the registry is there itself.

    What names say by themselves is looked at in :mod:`runtimed.registry.hosts`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._may_be_internal = hosts.is_internal(endpoint.base)
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if self._may_be_internal:
            return found
        outward = [one for one in found if not hosts.is_internal_address(one["host"])]
        if not outward:
            raise OSError(None, "its name, which a registry gave, stands for this machine or its link")
        return outward

    async def close(self) -> None:
        await self._resolver.close()
