"""The connection to the daemon, as any client of its API has it."""

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when grpc is imported. Without: fork handlers that we do not need, and the C library's own lines on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from runtimed.cli.output import note
from runtimed.errors import InvalidArgument, RuntimedError, Unavailable, from_code

_MAX_MESSAGE = 16 << 20  # bytes, both ways; containerd's clients
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    # Of a socket's path grpc would make an authority that Go's server refuses.
    ("grpc.default_authority", "localhost"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite the name, how long the first words of a connection may take: a daemon that has much to do is not lost.
    ("grpc.min_reconnect_backoff_ms", 15_000),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_MAX_SOCKET_PATH = 107  # bytes; unix(7)
_PATIENCE_S = 15.0  # how long a restarting daemon is waited for; a restart takes a second or two
_PROBE_S = 0.1
_TRIES = 10  # of a patient call, so many losses or UNAVAILABLE answers
_ONLY_A_NAME = re.compile(r"[a-z]+(?: [a-z]+)? (?:\S+|'[^']*'|\"[^\"]*\")")


class DaemonLost(Unavailable):
    """There is no connection to the daemon, or not any more; as opposed to a daemon that answers UNAVAILABLE."""


@dataclass(slots=True)
class Settings:
    """The global options."""

    address: str = ""  # a path, or unix:///path
    namespace: str = ""
    json: bool = False
    debug: bool = False

    @property
    def socket_path(self) -> Path:
        return Path(self.address.removeprefix("unix://")).absolute()


class Client:
    """Calls in one namespace. All errors are those of :mod:`runtimed.errors`."""

    def __init__(self, settings: Settings, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.namespace = settings.namespace
        self._path = settings.socket_path
        self._metadata: tuple[tuple[str, str], ...] = (("containerd-namespace", settings.namespace),)
        self._lease: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, *self._lease)

    async def call(self, method: Callable[..., Any], request: Any, *, patient: bool = False) -> Any:
        """Return the answer of the unary *method*.

        With *patient* it is asked again if the daemon goes away meanwhile and comes back within 15 s; only for what
        may be asked twice.

        Raises:
            DaemonLost: the daemon has gone.
            RuntimedError: what the daemon answered.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return await method(request, metadata=self.metadata)
            except grpc.aio.AioRpcError as exc:
                error = self.error(exc)
                if not (patient and isinstance(error, Unavailable)) or tries == _TRIES:
                    raise error from exc
            if isinstance(error, DaemonLost):
                await self._until_back(error)
            else:
                await asyncio.sleep(_PROBE_S)  # it is stopping, or a shim is not there yet

    async def messages(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """Yield the answers of the server-streaming *method*. Raises as :meth:`call`."""
        try:
            async for message in method(request, metadata=self.metadata):
                yield message
        except grpc.aio.AioRpcError as exc:
            raise self.error(exc) from exc

    def error(self, exc: grpc.aio.AioRpcError) -> RuntimedError:
        """Return what grpc raised as our class."""
        code, details = exc.code(), exc.details() or ""
        # A daemon that stops cancels what is running; our own cancelling raises CancelledError instead.
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
            lost = DaemonLost(f"lost the daemon at {self._path}")
            try:
                probe(self._path)
            except RuntimedError as gone:
                lost.__notes__ = gone.__notes__
                return lost
            return Unavailable(details) if details and not _is_transport(details) else lost
        return from_code(code.value[0], _with_word(code, details))

    async def _until_back(self, error: RuntimedError) -> None:
        """Wait for the daemon to listen again. Raises *error*, with a note, if it does not."""
        note(f"{error}; waiting for it to come back (containers go on meanwhile)")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                probe(self._path)
            except RuntimedError:
                if time.monotonic() > deadline:
                    raise error from None
                await asyncio.sleep(_PROBE_S)
            else:
                break
        # Not by wait_for_ready on the call: grpc would then also wait, in silence, for a daemon that has just gone.
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self.channel.channel_ready()
        except TimeoutError:
            raise error from None
        note("the daemon is back")

    @asynccontextmanager
    async def held_lease(self) -> AsyncIterator[None]:
        """Hold what is made by calls within the block against garbage collection, for an hour at most."""
        from runtimed.api import leases_pb2 as pb
        from runtimed.api.leases_pb2_grpc import LeasesStub
        from runtimed.labels import GC_EXPIRE

        leases = LeasesStub(self.channel)
        id = f"rctl-{time.time_ns():x}-{os.getpid()}"
        expire = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        await self.call(leases.Create, pb.CreateRequest(id=id, labels={GC_EXPIRE: expire}))
        self._lease = (("containerd-lease", id),)
        try:
            yield
        finally:
            self._lease = ()
            await self.call(leases.Delete, pb.DeleteRequest(id=id))


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Client]:
    """Hold a connection to the daemon.

    Raises:
        DaemonLost: there is none at the address; a note says what to do.
    """
    probe(settings.socket_path)
    async with grpc.aio.insecure_channel(f"unix:{settings.socket_path}", options=_OPTIONS) as channel:
        yield Client(settings, channel)


def probe(path: Path) -> None:
    """Connect once. Raises DaemonLost or InvalidArgument with a note of what to do; grpc's own words say less."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidArgument(f"address {path} is longer than {_MAX_SOCKET_PATH} bytes, the most a socket can have")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(os.fspath(path))
    except OSError as exc:
        reasons: dict[type[OSError], str] = {
            FileNotFoundError: "there is no such socket",
            ConnectionRefusedError: "nobody listens on the socket",
            PermissionError: "permission denied",
        }
        error = DaemonLost(f"no daemon at {path}: {reasons.get(type(exc), exc.strerror or exc)}")
        if isinstance(exc, PermissionError):
            error.add_note("run rctl as root")
        else:
            error.add_note("start it with 'runtimed', or give the address of a running one with --address")
        raise error from None


def _with_word(code: grpc.StatusCode, details: str) -> str:
    """Return a message that only names the thing (``container 'x'``) with what its code says happened to it."""
    words = {grpc.StatusCode.NOT_FOUND: "not found", grpc.StatusCode.ALREADY_EXISTS: "already exists"}
    word = words.get(code)
    return f"{details}: {word}" if word and _ONLY_A_NAME.fullmatch(details) else details


def _is_transport(details: str) -> bool:
    """Say whether *details* are grpc's own words about its connection rather than a daemon's answer."""
    words = (
        "failed to connect",
        "Socket closed",
        "Connection reset",
        "recvmsg",
        "GOAWAY",
        "Stream removed",
        "CANCELLED",
    )
    return any(word.lower() in details.lower() for word in words)


def run(settings: Settings, work: Callable[[Client], Awaitable[int]]) -> int:
    """Return the exit status of *work*, given a connection."""

    async def connected_work() -> int:
        async with connected(settings) as client:
            return await work(client)

    return asyncio.run(connected_work())
