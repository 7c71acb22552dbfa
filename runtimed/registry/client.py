"""HTTP to one repository of one registry: manifests and other small answers (OCI distribution-spec, "Pull").

Layer bytes do not come this way; worker processes fetch them with the URL and headers that this client gives.
"""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
from yarl import URL

from runtimed.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RuntimedError,
    Unauthenticated,
    Unavailable,
)
from runtimed.oci.reference import Reference
from runtimed.registry import hosts
from runtimed.registry.auth import AskCredentials, Authorizer
from runtimed.threads import blocking
from runtimed.workers.answers import retry_after_s

log = logging.getLogger(__name__)

_E = TypeVar("_E", bound=RuntimedError)

USER_AGENT = "runtimed"
_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 60.0  # for a whole answer of at most a few MiB
_MAX_ERROR_BODY = 16 << 10  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry that does not answer well is given."""

    attempts: int = 5  # requests in all, as long as none gets further than the one before
    first_wait_s: float = 0.5  # doubles with each
    longest_wait_s: float = 60.0  # also of what the registry may ask for by Retry-After

    async def wait(self, failures: int, error: Unavailable) -> None:
        """Wait before trying again after *failures* in a row, or raise *error* if that is enough."""
        asked = error.retry_after_s
        if failures >= self.attempts or (asked is not None and asked > self.longest_wait_s):
            raise error
        wait_s = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s) * random.uniform(0.5, 1.0)
        log.info(
            "registry failed; trying again", extra={"error": str(error), "wait_s": round(max(wait_s, asked or 0), 1)}
        )
        await asyncio.sleep(max(wait_s, asked or 0))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: headers (case does not matter) and body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """How a registry answered what was sent to it: the status and headers (case does not matter)."""

    status: int
    headers: Mapping[str, str]
    url: URL  # that answered


# Begins a request body anew: called again when a request has to be repeated.
Body = Callable[[], AsyncIterator[bytes]]


class RegistryClient:
    """One repository of a registry. An asynchronous context manager: holds connections while open."""

    def __init__(
        self,
        reference: Reference,
        *,
        default_scheme: str = "",
        headers: Mapping[str, str] | None = None,
        credentials: AskCredentials | None = None,
        patience: Patience | None = None,
        push_scopes: Sequence[str] = (),
    ) -> None:
        """Prepare requests for *reference*; *headers* go with each request to the registry itself, nowhere else.

        With *push_scopes* tokens are asked for with those, else for pulling.
        """
        self.reference = reference
        self.patience = patience or Patience()
        self._base = hosts.endpoint(reference.host, default_scheme).base / reference.repository
        self._headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
        self._credentials = credentials
        self._push_scopes = push_scopes

    async def __aenter__(self) -> Self:
        # No cookies and no .netrc: a request holds what is put into it here. The body counts as it comes, so that no
        # compression hides its size.
        self._session = aiohttp.ClientSession(
            connector=await self._connector(),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )
        self._authorizer = Authorizer(
            self._base, self.reference.repository, self._session, self._credentials, self._push_scopes
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _connector(self) -> aiohttp.TCPConnector:
        """Return a connector that trusts the authorities there are now, not those of when aiohttp was loaded."""
        if self._base.scheme == "https":
            return aiohttp.TCPConnector(ssl=await blocking(ssl.create_default_context))
        return aiohttp.TCPConnector()

    @property
    def _subject(self) -> str:
        """What errors are about: the image, and the registry where its name does not say which."""
        authority = self._base.authority
        return f"image {self.reference}" + (f" at {authority}" if authority != self.reference.host else "")

    def url(self, kind: str, name: str) -> URL:
        """Return the URL of one of the repository's ``manifests`` or ``blobs``."""
        return self._base / kind / name

    def headers(self) -> dict[str, str]:
        """Return what a request to the registry carries now, ``Authorization`` included."""
        authorization = {"Authorization": self._authorizer.header} if self._authorizer.header else {}
        return self._headers | authorization

    async def get(self, kind: str, name: str, *, accept: str = "*/*", limit: int) -> Answer:
        """Return a manifest or blob of at most *limit* bytes. Not verified.

        Raises:
            NotFound, Unauthenticated, PermissionDenied: what the registry says, with host, reference and remedy.
            Unavailable: no answer, or none that can be used, after some attempts; says what the last one was.
            InvalidArgument: larger than *limit*.
        """
        return await self._persistently("GET", self.url(kind, name), accept, limit)

    async def probe(self, kind: str, name: str) -> None:
        """Ask whether one manifest or blob is there, after a worker was refused it: what :meth:`headers` gives then is
        good again, or this raises as :meth:`get`."""
        await self._persistently("HEAD", self.url(kind, name), "*/*", 0)

    async def _persistently(self, method: str, url: URL, accept: str, limit: int) -> Answer:
        failures = 0
        while True:
            try:
                return await self._get(method, url, accept, limit)
            except Unavailable as exc:
                if isinstance(exc.__cause__, aiohttp.ClientConnectorError):
                    raise  # nobody there: the user should hear it at once
                failures += 1
                await self.patience.wait(failures, exc)

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
        raise Unavailable(f"{self._subject}: more than {_MAX_REDIRECTS} redirects")

    def location(self, sent: Sent) -> URL:
        """Return where an answer says that it goes on (an upload), if an honest registry may say so.

        Raises PermissionDenied, Unavailable.
        """
        said = sent.headers.get("Location", "")
        if not said:
            raise Unavailable(f"{self._subject}: the registry began an upload without saying where it goes on")
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
            async with asyncio.timeout(_ANSWER_TIMEOUT_S) as limit:
                async with self._session.request(
                    method,
                    url,
                    headers={**own, **headers, **({"Content-Length": str(length)} if method != "HEAD" else {})},
                    data=_watched(body(), limit) if body else None,
                    allow_redirects=False,
                ) as response:
                    if response.status == 401 and is_registry and not is_last:
                        await self._renew(used, response)
                        continue
                    if response.status in {307, 308}:
                        target = url.join(URL(response.headers.get("Location", ""), encoded=True))
                        hosts.check_redirect(url, target)
                        return target
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
        raise Unavailable(f"{self._subject}: more than {_MAX_REDIRECTS} redirects")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what goes wrong with a connection as ours."""
        subject = self._subject
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as exc:
            raise PermissionDenied(f"{subject}: certificate not trusted: {exc.certificate_error}") from exc
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
            async with self._session.request(
                method, url, headers=headers | {"Accept": accept}, allow_redirects=False
            ) as response:
                if response.status == 401 and is_registry and not is_last:
                    await self._renew(used, response)
                    continue
                if response.status in {301, 302, 303, 307, 308} and method != "HEAD":
                    # As it came: a signature may cover every byte of it.
                    target = url.join(URL(response.headers.get("Location", ""), encoded=True))
                    hosts.check_redirect(url, target)
                    return target
                if response.status >= 400:
                    raise await self._error(response)
                return Answer(response.headers, await self._body(response, limit))
        raise AssertionError("unreachable")

    async def _renew(self, refused: str, response: aiohttp.ClientResponse) -> None:
        try:
            await self._authorizer.renew(refused, tuple(response.headers.getall("WWW-Authenticate", ())))
        except RuntimedError as exc:
            raise type(exc)(f"{self._subject}: {exc}") from exc

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 << 10):
            body += chunk
            if len(body) > limit:
                raise InvalidArgument(f"{self._subject}: more than {limit} bytes")
        return bytes(body)

    async def _error(self, response: aiohttp.ClientResponse) -> RuntimedError:
        said = _first_error(await response.content.read(_MAX_ERROR_BODY))
        if response.status == 401 and self._authorizer.header.startswith("Basic "):
            return Unauthenticated(f"{self._subject}: refused the credentials; check user name and password")
        error = error_for(response.status, self._subject, said)
        if isinstance(error, Unavailable):
            error.retry_after_s = retry_after_s(response.headers.get("Retry-After", ""))
        return error


async def _watched(body: AsyncIterator[bytes], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """Yield *body*; each piece that is taken moves *limit* on."""
    async for piece in body:
        yield piece
        limit.reschedule(asyncio.get_running_loop().time() + _ANSWER_TIMEOUT_S)


def error_for(status: int, subject: str, said: str = "") -> RuntimedError:
    """Return the error that HTTP *status* of a registry stands for; *said* is what its body adds."""
    detail = f" (it says {said!r})" if said else ""
    match status:
        case 401:
            return Unauthenticated(
                f"{subject}: not authorized{detail}; give credentials for this registry, and check the name:"
                " some registries answer so for what does not exist"
            )
        case 403:
            return PermissionDenied(f"{subject}: access denied{detail}; the credentials do not reach this repository")
        case 404:
            return NotFound(f"{subject}: not found{detail}; check name and tag")
        case 429:
            return Unavailable(f"{subject}: too many requests{detail}; wait, or give credentials")
        case _ if status >= 500:
            return Unavailable(f"{subject}: the registry failed with {status}{detail}; try again later")
    return Unavailable(f"{subject}: unexpected answer {status}{detail}")


class _RegistryError(msgspec.Struct):
    code: str = ""
    message: str = ""


class _RegistryErrors(msgspec.Struct):
    errors: list[_RegistryError] = []


def _first_error(body: bytes) -> str:
    """Return what a registry's error body says first (distribution-spec, "Error Codes"), cut short; "" if nothing."""
    try:
        errors = msgspec.json.decode(body, type=_RegistryErrors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return (errors[0].message or errors[0].code)[:200] if errors else ""


def _reason(exc: aiohttp.ClientConnectorError) -> str:
    number = exc.os_error.errno  # negative for what getaddrinfo says
    return os.strerror(number) if number and number > 0 else exc.os_error.strerror or type(exc).__name__
