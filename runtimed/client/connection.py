"""Calls of the API over one connection; :mod:`runtimed.client` puts the nouns on top."""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from runtimed.errors import AlreadyExists, InvalidArgument, NotFound, RuntimedError, Unavailable
from runtimed.rpc.grpc_client import Call, Cancelled, Channel, Lost

log = logging.getLogger(__name__)

_NAMESPACE = "containerd-namespace"
_LEASE: ContextVar[str] = ContextVar("lease", default="")  # of the calls of this task
_MAX_SOCKET_PATH = 107  # bytes; unix(7)
_PATIENCE_S = 15.0  # how long a restarting daemon is waited for; a restart takes a second or two
_PROBE_S = 0.1
_TRIES = 10  # of a patient call, so many losses or UNAVAILABLE answers
_ONLY_A_NAME = r"[a-z]+(?: [a-z]+)? (?:\S+|'[^']*'|\"[^\"]*\")"


class DaemonLost(Unavailable):
    """There is no connection to the daemon, or not any more; as opposed to a daemon that answers UNAVAILABLE."""


class Method:
    """A method of the API."""

    def __init__(self, method: MethodDescriptor) -> None:
        self.path = f"/{method.containing_service.full_name}/{method.name}"
        self.answer = GetMessageClass(method.output_type)


class Service:
    """The methods of a service, as attributes."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self._methods = service.methods_by_name

    def __getattr__(self, name: str) -> Method:
        return Method(self._methods[name])


def service(module: ModuleType, name: str) -> Service:
    """Return the service *name* of a generated module; for :meth:`Connection.call`."""
    return Service(module.DESCRIPTOR.services_by_name[name])


class Connection:
    """Calls in one namespace. All errors are those of :mod:`runtimed.errors`."""

    def __init__(self, address: str, namespace: str) -> None:
        """*address* is the path of the daemon's socket, or a URL ``unix:///path``. Nothing is connected yet.

        Raises:
            DaemonLost: there is no daemon at the address; a note says what to do.
        """
        self._path = Path(address.removeprefix("unix://")).absolute()
        self.namespace = namespace
        probe(self._path)
        self._channel = Channel(self._path)

    @property
    def socket_path(self) -> Path:
        return self._path

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        lease = _LEASE.get()
        return ((_NAMESPACE, self.namespace), *((("containerd-lease", lease),) if lease else ()))

    async def close(self) -> None:
        await self._channel.close()

    async def call(self, method: Method, request: Message, *, patient: bool = False) -> Any:
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
                return method.answer.FromString(
                    await self._channel.unary(method.path, self.metadata, request.SerializeToString())
                )
            except RuntimedError as exc:
                error = self._explained(exc)
                if not (patient and isinstance(error, Unavailable)) or tries == _TRIES:
                    raise error from exc
            if isinstance(error, DaemonLost):
                await self._until_back(error)
            else:
                await asyncio.sleep(_PROBE_S)  # it is stopping, or a shim is not there yet

    async def messages(self, method: Method, request: Message, *, namespace: str = "") -> AsyncIterator[Any]:
        """Yield the answers of the server-streaming *method*, in another *namespace* if one is given.

        Raises as :meth:`call`.
        """
        async with self.opened(method, request, namespace=namespace) as call:
            while (data := await call.receive()) is not None:
                yield method.answer.FromString(data)

    @asynccontextmanager
    async def opened(
        self, method: Method, request: Message | None = None, *, namespace: str = ""
    ) -> AsyncIterator[Call]:
        """Hold a call of *method*; *request*, if it is given, is all that is sent. Raises as :meth:`call`."""
        metadata = ((_NAMESPACE, namespace),) if namespace else self.metadata
        try:
            call = await self._channel.call(
                method.path, metadata, None if request is None else request.SerializeToString()
            )
            try:
                yield call
            finally:
                call.cancel()
        except RuntimedError as exc:
            error = self._explained(exc)
            if error is exc:
                raise
            raise error from exc

    def _explained(self, exc: RuntimedError) -> RuntimedError:
        """Return what a call raised as it is for users."""
        if isinstance(exc, Lost | Cancelled):  # a daemon that stops cancels what is running
            lost = DaemonLost(f"lost the daemon at {self._path}")
            try:
                probe(self._path)
            except RuntimedError as gone:
                lost.__notes__ = gone.__notes__
            return lost
        return _with_word(exc)

    async def _until_back(self, error: RuntimedError) -> None:
        """Wait for the daemon to listen again. Raises *error*, with a note, if it does not."""
        log.warning("%s; waiting for it to come back (containers go on meanwhile)", error)
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
        log.warning("the daemon is back")

    @asynccontextmanager
    async def held_lease(self) -> AsyncIterator[str]:
        """Hold what this task makes within the block against garbage collection, for an hour at most.

        Yields the ID of the lease.
        """
        from runtimed.api import leases_pb2 as pb
        from runtimed.labels import GC_EXPIRE

        leases = service(pb, "Leases")
        id = f"client-{time.time_ns():x}-{os.urandom(3).hex()}"
        expire = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        await self.call(leases.Create, pb.CreateRequest(id=id, labels={GC_EXPIRE: expire}))
        before = _LEASE.get()
        _LEASE.set(id)
        try:
            yield id
        finally:
            _LEASE.set(before)
            await self.call(leases.Delete, pb.DeleteRequest(id=id))


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """Return the results of *calls*, made side by side. When one fails all have ended before its error is raised."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


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
            error.add_note("that takes root")
        else:
            error.add_note("start it with 'runtimed', or give the address of a running one (rctl: --address)")
        raise error from None


def _with_word(exc: RuntimedError) -> RuntimedError:
    """Return an error that only names the thing (``container 'x'``) with what its class says happened to it."""
    word = {NotFound: "not found", AlreadyExists: "already exists"}.get(type(exc))
    return type(exc)(f"{exc}: {word}") if word and re.fullmatch(_ONLY_A_NAME, str(exc)) else exc
