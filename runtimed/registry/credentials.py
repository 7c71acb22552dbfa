"""Who we are to a registry: what the configuration says, and what ``docker login`` has stored.

Looked up, and helper programs asked, each time that a registry wants to know; nothing is kept. What comes of it is
never part of an error or log message.
"""

import asyncio
import base64
import binascii
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimed import config
from runtimed.errors import InvalidArgument, PermissionDenied, Unavailable, os_errors
from runtimed.oci.reference import DEFAULT_HOST
from runtimed.registry.auth import AskCredentials, Credentials
from runtimed.registry.hosts import DOCKER_HUB
from runtimed.threads import blocking

_MAX_SIZE = 1 << 20  # bytes of a file or of what a helper says
_HELPER_LIMIT_S = 30.0
_HUB_KEY = "https://index.docker.io/v1/"  # what docker login calls docker.io
_HUB = frozenset((DEFAULT_HOST, DOCKER_HUB, "index.docker.io"))
_TOKEN_USER = "<token>"  # in the place of a name: the secret is an identity token
_NOT_FOUND = b"credentials not found"  # docker-credential-helpers' word for none
# Of the daemon's environment, what is not for the programs that it runs.
_PRIVATE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")


@dataclass(frozen=True, slots=True)
class Found:
    """Credentials that somebody has for a host: where they are from, and how to get them."""

    source: str
    get: Callable[[], Awaitable[Credentials | None]]


class Stored:
    """The credentials that the daemon has by itself."""

    def __init__(self, registry: config.Registry) -> None:
        self._registry = registry

    async def find(self, host: str) -> Found | None:
        """Return the credentials for *host* (with its port, if it is not the scheme's own), if there are any.

        Raises:
            InvalidArgument, PermissionDenied: a file that is not what it should be; names it.
        """
        for name in (host, *(_HUB if host in _HUB else ())):
            if given := self._registry.credentials.get(name):
                return _configured(name, given)
        if not self._registry.docker_config:
            return None
        path = Path(self._registry.docker_config)
        return _of_docker(path, await blocking(_read_docker_config, path), host)

    async def ask(self, host: str, challenges: tuple[str, ...]) -> Credentials | None:
        """Return the credentials for *host*; :data:`AskCredentials`. Raises as :meth:`find`, and Unavailable."""
        found = await self.find(host)
        return await found.get() if found else None


def first_of(*asks: AskCredentials) -> AskCredentials:
    """Return what asks each of *asks* in turn until one has credentials."""

    async def ask(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        for one in asks:
            if credentials := await one(host, challenges):
                return credentials
        return None

    return ask


def _configured(host: str, given: config.RegistryCredentials) -> Found:
    key = config.dotted(("registry", "credentials", host))
    if given.helper:
        return _by_helper(f"{key}.helper", given.helper, _HUB_KEY if host in _HUB else host)

    async def get() -> Credentials:
        secret = (await blocking(_read, Path(given.password_file or given.token_file))).decode(errors="replace").strip()
        if not secret:
            raise InvalidArgument(f"{key}: {given.password_file or given.token_file}: the file is empty")
        return Credentials(username=given.username, secret=secret)

    what = f"password_file {given.password_file}" if given.password_file else f"token_file {given.token_file}"
    return Found(f"configuration, {key}: {what}", get)


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Auth] = {}
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict, name="credHelpers")
    creds_store: str = msgspec.field(default="", name="credsStore")


def _read_docker_config(path: Path) -> _DockerConfig:
    if not path.exists():
        return _DockerConfig()
    try:
        return msgspec.json.decode(_read(path), type=_DockerConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidArgument(f"{path}: not what docker login writes") from None  # never what it says


def _of_docker(path: Path, stored: _DockerConfig, host: str) -> Found | None:
    names = (_HUB_KEY, *sorted(_HUB)) if host in _HUB else (host,)
    for name in names:
        if helper := stored.cred_helpers.get(name):
            return _by_helper(f"{path}: credHelpers", helper, name)
    for key, auth in stored.auths.items():
        if (auth.auth or auth.identitytoken or auth.registrytoken or auth.username) and (
            key in names or _host_of(key) in names
        ):
            return _in_file(path, key, auth)
    if stored.creds_store:
        return _by_helper(f"{path}: credsStore", stored.creds_store, names[0])
    return None


def _host_of(key: str) -> str:
    """Return the host of a key of ``auths``, which may be a URL."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


def _in_file(path: Path, key: str, auth: _Auth) -> Found:
    async def get() -> Credentials:
        if auth.registrytoken:
            return Credentials(header=f"Bearer {auth.registrytoken}")
        if auth.identitytoken:
            return Credentials(secret=auth.identitytoken)
        if not auth.auth:
            return Credentials(username=auth.username, secret=auth.password)
        try:
            name, colon, secret = base64.b64decode(auth.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name = colon = secret = ""
        if not colon:
            raise InvalidArgument(f"{path}: auths: {key[:200]!r}: auth is not NAME:SECRET in base64; log in again")
        return Credentials(username=name, secret=secret.strip("\0"))

    return Found(f"{path}: auths {key[:200]!r}", get)


def _by_helper(source: str, name: str, server: str) -> Found:
    program = f"docker-credential-{name}"
    if "/" in name or not name.isprintable():
        raise InvalidArgument(f"{source}: {name[:64]!r} is not the name of a credential helper")

    async def get() -> Credentials | None:
        return await ask_helper(program, server)

    return Found(f"{source}: {program}, asked for {server}", get)


class _Answer(msgspec.Struct):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


async def ask_helper(program: str, server: str, limit_s: float = _HELPER_LIMIT_S) -> Credentials | None:
    """Return what the credential helper *program* has for *server* (github.com/docker/docker-credential-helpers).

    Raises:
        PermissionDenied: there is no such program.
        Unavailable: it fails, or takes longer than *limit_s*; it has ended, with what it had started in its session.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as exc:
        raise PermissionDenied(f"credential helper {program}: {exc.strerror}; is it on the daemon's PATH?") from None
    remedy = f"try it: echo {server} | {program} get"
    has_ended = False
    try:
        async with asyncio.timeout(limit_s):
            output = await _converse(process, server.encode())
            status = await process.wait()
            has_ended = True
    except TimeoutError:
        raise Unavailable(f"credential helper {program}: no answer in {limit_s:.0f} s; {remedy}") from None
    finally:
        if not has_ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status:
        if _NOT_FOUND in output[:1024]:
            return None
        raise Unavailable(f"credential helper {program}: exit status {status}; {remedy}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unavailable(f"credential helper {program}: its answer is not one; {remedy}") from None
    if not answer.secret:
        return None
    return Credentials(username="" if answer.username == _TOKEN_USER else answer.username, secret=answer.secret)


async def _converse(process: asyncio.subprocess.Process, question: bytes) -> bytes:
    assert process.stdin
    assert process.stdout
    with suppress(ConnectionError):
        process.stdin.write(question)
        await process.stdin.drain()
        process.stdin.close()
    output = bytearray()
    while data := await process.stdout.read(1 << 16):
        output += data
        if len(output) > _MAX_SIZE:
            raise Unavailable(f"a credential helper says more than {_MAX_SIZE} bytes")
    return bytes(output)


def _read(path: Path) -> bytes:
    with os_errors(f"credentials {path}"), path.open("rb") as file:
        data = file.read(_MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise InvalidArgument(f"credentials {path}: more than {_MAX_SIZE} bytes")
    return data
