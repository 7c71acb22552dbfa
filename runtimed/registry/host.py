"""HTTP to one repository on one host: manifests and other small answers (OCI distribution-spec, "Pull"), and uploads.

Layer bytes do not come this way; worker processes fetch them with the URL and headers that are given here.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
from yarl import URL

from runtimed.errors import InvalidArgument, PermissionDenied, RuntimedError, Unauthenticated, Unavailable
from runtimed.oci.reference import Reference
from runtimed.registry import hosts
from runtimed.registry.answers import Answer, Sent, error_for, first_error
from runtimed.registry.auth import AskCredentials, Authorizer
from runtimed.registry.connections import Connections
from runtimed.registry.hosts import Endpoint
from runtimed.workers.answers import retry_after_s

USER_AGENT = "runtimed"
_MAX_REDIRECTS = 5
_ANSWER_TIMEOUT_S = 60.0  # for a whole answer of at most a few MiB
_MAX_ERROR_BODY = 16 << 10  # bytes

# Begins a request body anew: called again when a request has to be repeated.
Body = Callable[[], AsyncIterator[bytes]]


class HostClient:
    """One repository on one host. Holds connections until it is closed. Nothing is tried again here."""

    def __init__(
        self,
        endpoint: Endpoint,
        reference: Reference,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: AskCredentials | None = None,
        push_scopes: Sequence[str] = (),
    ) -> None:
        """Prepare requests for *reference*; *headers* go with each request to its registry itself, nowhere else.

        With *push_scopes* tokens are asked for with those, else for pulling.
        """
        self.endpoint = endpoint
        self._reference = reference
        self._base = endpoint.base / reference.repository
        self._headers = {
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            # A client's headers are for the registry that it named; it need not know of mirrors.
            **({} if hosts.is_mirror(endpoint.base, reference.host) else headers or {}),
            **endpoint.headers,
        }
        self._connections = Connections(endpoint)
        self._authorizer = Authorizer(self._base, reference.repository, self._connections, credentials, push_scopes)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    @property
    def subject(self) -> str:
        """What errors are about: the image, and the host where its name does not say which."""
        authority = self.endpoint.authority
        return f"image {self._reference}" + (f" at {authority}" if authority != self._reference.host else "")

    def url(self, kind: str, name: str) -> URL:
        """Return the URL of one of the repository's ``manifests`` or ``blobs``."""
        url = self._base / kind / name
        # As containerd asks a mirror: it may be one of several registries.
        is_mirror = hosts.is_mirror(self._base, self._reference.host)
        return url.with_query({"ns": self._reference.host}) if is_mirror else url

    def headers(self) -> dict[str, str]:
        """Return what a request to the host carries now, ``Authorization`` included."""
        authorization = {"Authorization": self._authorizer.header} if self._authorizer.header else {}
        return self._headers | authorization

    async def get(self, url: URL, *, accept: str = "*/*", limit: int) -> Answer:
        """Return an answer of at most *limit* bytes. Not verified.

        Raises:
            NotFound, Unauthenticated, PermissionDenied: what the host says, with host, reference and remedy.
            Unavailable: no answer, or none that can be used.
            InvalidArgument: larger than *limit*.
        """
        return await self._get("GET", url, accept, limit)

    async def probe(self, kind: str, name: str) -> None:
        """Ask whether one manifest or blob is there, after a worker was refused it: what :meth:`headers` gives then is
        good again, or this raises as :meth:`get`."""
        await self._get("HEAD", self.url(kind, name), "*/*", 0)

    async def send(
        self,
        method: str,
        url: URL,
        *,
        accepted: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        length: int = 0,
    ) -> Sent:
        """Make one request with *body*, of *length* bytes, and return how it was answered if the status is *accepted*.

        *url* may be what the registry has sent us to (an upload's location); credentials go to the registry only. Not
        tried again but for a token that has expired. Nothing may be taken or answered for a minute.

        Raises: as :meth:`get`.
        """
        with self._failures():
            for _ in range(_MAX_REDIRECTS):
                answer = await self._exchange(method, url, accepted, headers or {}, body, length)
                if isinstance(answer, Sent):
                    return answer
                url = answer
        raise Unavailable(f"{self.subject}: more than {_MAX_REDIRECTS} redirects")

    def location(self, sent: Sent) -> URL:
        """Return where an answer says that it goes on (an upload), if an honest registry may say so.

        Raises PermissionDenied, Unavailable.
        """
        said = sent.headers.get("Location", "")
        if not said:
            raise Unavailable(f"{self.subject}: the registry began an upload without saying where it goes on")
        with self._failures():
            target = sent.url.join(URL(said, encoded=True))
            hosts.check_redirect(sent.url, target)
        return target

    async def _exchange(
        self,
        method: str,
        url: URL,
        accepted: Collection[int],
        headers: Mapping[str, str],
        body: Body | None,
        length: int,
    ) -> Sent | URL:
        is_registry = hosts.same_origin(self._base, url)
        for is_last in (False, True):
            used = self._authorizer.header
            own = self.headers() if is_registry else {"User-Agent": USER_AGENT}
            own |= headers
            if method != "HEAD":
                own["Content-Length"] = str(length)
            async with asyncio.timeout(_ANSWER_TIMEOUT_S) as limit:
                data = _watched(body(), limit) if body else None
                async with await self._request(method, url, is_registry, headers=own, data=data) as response:
                    if response.status == 401 and is_registry and not is_last:
                        await self._renew(used, response)
                        continue
                    if response.status in {307, 308}:
                        return self._target(url, response)
                    if response.status not in accepted:
                        raise await self._error(response)
                    return Sent(response.status, response.headers, url)
        raise AssertionError("unreachable")

    async def _get(self, method: str, url: URL, accept: str, limit: int) -> Answer:
        with self._failures():
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                for _ in range(_MAX_REDIRECTS):
                    answer = await self._follow(method, url, accept, limit)
                    if isinstance(answer, Answer):
                        return answer
                    url = answer
        raise Unavailable(f"{self.subject}: more than {_MAX_REDIRECTS} redirects")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what goes wrong with a connection as ours."""
        subject = self.subject
        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as exc:
            reason = exc.certificate_error if isinstance(exc, aiohttp.ClientConnectorCertificateError) else exc
            raise PermissionDenied(f"{subject}: certificate not trusted: {reason}") from exc
        except aiohttp.ClientProxyConnectionError as exc:
            raise Unavailable(f"{subject}: cannot connect to the proxy {exc.host}:{exc.port}: {_reason(exc)}") from exc
        except aiohttp.ClientHttpProxyError as exc:
            raise Unavailable(f"{subject}: the proxy answers {exc.status} {exc.message[:64]!r}") from exc
        except aiohttp.ClientConnectorError as exc:
            raise Unavailable(f"{subject}: cannot connect: {_reason(exc)}; is it running there?") from exc
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise InvalidArgument(f"{subject}: not a URL: {str(exc)[:200]!r}") from exc
        except aiohttp.ClientError as exc:
            raise Unavailable(f"{subject}: {str(exc)[:300] or type(exc).__name__}") from exc
        except TimeoutError as exc:
            raise Unavailable(f"{subject}: no answer in {_ANSWER_TIMEOUT_S:.0f} s") from exc

    async def _follow(self, method: str, url: URL, accept: str, limit: int) -> Answer | URL:
        """Make one request, with another try when a new token may help; return the answer or where it is."""
        is_registry = hosts.same_origin(self._base, url)
        for is_last in (False, True):
            used = self._authorizer.header
            headers = self.headers() if is_registry else {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
            headers["Accept"] = accept
            async with await self._request(method, url, is_registry, headers=headers) as response:
                if response.status == 401 and is_registry and not is_last:
                    await self._renew(used, response)
                    continue
                if response.status in {301, 302, 303, 307, 308} and method != "HEAD":
                    return self._target(url, response)
                if response.status >= 400:
                    raise await self._error(response)
                return Answer(response.headers, await self._body(response, limit), hosts.authority(url))
        raise AssertionError("unreachable")

    async def _request(self, method: str, url: URL, is_registry: bool, **options: Any) -> aiohttp.ClientResponse:
        return await self._connections.request(method, url, is_own=is_registry, **options)

    def _target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        """Return where a redirect leads. As it came: a signature may cover every byte of it."""
        target = url.join(URL(response.headers.get("Location", ""), encoded=True))
        hosts.check_redirect(url, target)
        return target

    async def _renew(self, refused: str, response: aiohttp.ClientResponse) -> None:
        try:
            await self._authorizer.renew(refused, tuple(response.headers.getall("WWW-Authenticate", ())))
        except RuntimedError as exc:
            raise type(exc)(f"{self.subject}: {exc}") from exc

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 << 10):
            body += chunk
            if len(body) > limit:
                raise InvalidArgument(f"{self.subject}: more than {limit} bytes")
        return bytes(body)

    async def _error(self, response: aiohttp.ClientResponse) -> RuntimedError:
        if response.status == 407:
            return Unavailable(f"{self.subject}: the proxy answers 407: it wants credentials; put them into its URL")
        said = first_error(await response.content.read(_MAX_ERROR_BODY))
        if response.status == 401 and self._authorizer.header.startswith("Basic "):
            return Unauthenticated(f"{self.subject}: refused the credentials; check user name and password")
        error = error_for(response.status, self.subject, said)
        if isinstance(error, Unavailable):
            error.retry_after_s = retry_after_s(response.headers.get("Retry-After", ""))
        return error


async def _watched(body: AsyncIterator[bytes], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """Yield *body*; each piece that is taken moves *limit* on."""
    async for piece in body:
        yield piece
        limit.reschedule(asyncio.get_running_loop().time() + _ANSWER_TIMEOUT_S)


def _reason(exc: aiohttp.ClientConnectorError) -> str:
    number = exc.os_error.errno  # negative for what getaddrinfo says
    return os.strerror(number) if number and number > 0 else exc.os_error.strerror or type(exc).__name__
