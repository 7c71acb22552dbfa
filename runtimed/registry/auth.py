"""Answering a registry's 401: challenges (RFC 9110 11.6.1), bearer tokens (distribution's auth/token.md), Basic.

Credentials are asked for when a registry wants them, kept only inside the header they became, and never logged.
"""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from yarl import URL

from runtimed.errors import DataLoss, PermissionDenied, Unauthenticated, Unavailable
from runtimed.registry import hosts

if TYPE_CHECKING:
    import aiohttp

    from runtimed.registry.connections import Connections

_MAX_TOKEN_ANSWER = 1 << 20  # bytes
_MAX_CHALLENGE = 8 << 10  # characters of a WWW-Authenticate header that are looked at
_TIMEOUT_S = 30.0

# token, optionally = value; what lies between is skipped. Each alternative starts with another character.
_PIECE = re.compile(r'([A-Za-z0-9!#$%&\'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+)))?')
_PRINTABLE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a user gave for a host: name and password, a secret alone (an identity token), or a whole header."""

    username: str = ""
    secret: str = field(default="", repr=False)
    header: str = field(default="", repr=False)


# Called with the host that asks and its WWW-Authenticate headers; None: go on without.
AskCredentials = Callable[[str, tuple[str, ...]], Awaitable[Credentials | None]]


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server is ready to believe who we are."""

    scheme: str  # lower case
    parameters: Mapping[str, str]


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return the challenges in the WWW-Authenticate *headers*, several to a header or one to each; junk is skipped."""
    found: list[Challenge] = []
    for header in headers:
        for match in _PIECE.finditer(header[:_MAX_CHALLENGE]):
            name, quoted, plain = match.groups()
            if quoted is None and plain is None:
                found.append(Challenge(name.lower(), {}))
            elif found:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                found[-1] = Challenge(found[-1].scheme, {name.lower(): value, **found[-1].parameters})
    return found


class Authorizer:
    """The ``Authorization`` header for one repository of one registry, renewed when the registry refuses it."""

    def __init__(
        self,
        registry: URL,
        repository: str,
        connections: "Connections",
        ask: AskCredentials | None = None,
        push_scopes: Sequence[str] = (),
    ) -> None:
        """Ask for tokens to pull from *repository*, or for those of *push_scopes* (distribution's auth/scope.md)."""
        self._registry = registry
        self._scope = f"repository:{repository}:pull"
        self._push_scopes = list(push_scopes)
        self._connections = connections
        self._ask = ask
        self._lock = asyncio.Lock()
        self.header = ""  # what to send; "" is nothing

    async def renew(self, refused: str, challenge_headers: tuple[str, ...]) -> None:
        """Get another header than *refused*, which the registry has just answered with *challenge_headers*.

        Of several requests refused at once, one gets the new header and the others find it.

        Raises:
            Unauthenticated: credentials are wanted and there are none, or they were refused.
            PermissionDenied: the token server refuses, or must not be asked.
            Unavailable: the token server is not there.
        """
        async with self._lock:
            if self.header != refused:
                return
            challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(challenge_headers))}
            credentials = await self._ask(self._host, challenge_headers) if self._ask else None
            if credentials and credentials.header:
                header = credentials.header
            elif "bearer" in challenges:
                header = f"Bearer {await self._token(challenges['bearer'], credentials)}"
            elif "basic" in challenges:
                header = self._basic(credentials)
            else:
                offered = f"only offers {', '.join(sorted(challenges))[:100]!r}" if challenges else "does not say how"
                raise Unauthenticated(
                    f"registry {self._host} wants authorization but {offered}; Bearer and Basic are supported"
                )
            if header == refused:
                raise Unauthenticated(f"registry {self._host} refused the credentials; check user name and password")
            if not _PRINTABLE.fullmatch(header):
                raise Unauthenticated(f"registry {self._host}: credentials or token hold characters no header may")
            self.header = header

    @property
    def _host(self) -> str:
        return hosts.authority(self._registry)

    def _basic(self, credentials: Credentials | None) -> str:
        if credentials is None or not credentials.username:
            raise Unauthenticated(f"registry {self._host} wants a user name and password; give credentials for it")
        return _basic(credentials)

    async def _token(self, challenge: Challenge, credentials: Credentials | None) -> str:
        try:
            realm = URL(challenge.parameters.get("realm", ""))
        except ValueError:
            raise PermissionDenied(f"registry {self._host} names no valid token server") from None
        hosts.check_realm(self._registry, realm)
        import aiohttp  # here: who has made a request has loaded it

        # A registry names what one request takes; a push knows all it takes from the beginning.
        scopes = self._push_scopes or [challenge.parameters.get("scope") or self._scope]
        parameters = {}
        if service := challenge.parameters.get("service"):
            parameters["service"] = service
        subject = f"token server {realm.host} of registry {self._host}"
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                async with await self._request(realm, scopes, parameters, credentials) as response:
                    return await _read_token(response, subject)
        except aiohttp.ClientConnectorCertificateError as exc:
            raise PermissionDenied(f"{subject}: certificate not trusted: {exc.certificate_error}") from exc
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Unavailable(f"{subject}: {exc or 'no answer in time'}") from exc

    async def _request(
        self, realm: URL, scopes: list[str], parameters: dict[str, str], credentials: Credentials | None
    ) -> "aiohttp.ClientResponse":
        """Ask for a token: by GET with name and password or without, by POST with an identity token (auth/oauth.md)."""
        is_own = realm.host == self._registry.host
        if credentials and credentials.secret and not credentials.username:
            form = parameters | {
                "scope": " ".join(scopes),
                "grant_type": "refresh_token",
                "refresh_token": credentials.secret,
                "client_id": "runtimed",
            }
            return await self._connections.request("POST", realm, is_own=is_own, data=form)
        headers = {}
        if credentials and credentials.username:
            headers["Authorization"] = _basic(credentials)
            parameters = parameters | {"account": credentials.username}
        url = realm.update_query({"scope": scopes, **parameters})
        return await self._connections.request("GET", url, is_own=is_own, headers=headers)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


async def _read_token(response: "aiohttp.ClientResponse", subject: str) -> str:
    match response.status:
        case 200:
            pass
        case 401 | 400:
            raise Unauthenticated(f"{subject} refused the credentials; check user name and password")
        case 403:
            raise PermissionDenied(f"{subject} refused access")
        case status:
            raise Unavailable(f"{subject} answered {status}")
    body = await response.content.read(_MAX_TOKEN_ANSWER)
    while not response.content.at_eof() and len(body) < _MAX_TOKEN_ANSWER:
        body += await response.content.read(_MAX_TOKEN_ANSWER)
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except msgspec.DecodeError as exc:
        raise DataLoss(f"{subject}: its answer is not a token: {exc}") from None
    token = answer.token or answer.access_token
    if not token:
        raise DataLoss(f"{subject}: its answer holds no token")
    return token
