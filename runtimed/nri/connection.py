"""The daemon's end of a connection to a plugin: registration, configuration, and every question that follows."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from runtimed.api import nri_pb2 as pb
from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, RuntimedError, Unimplemented
from runtimed.nri import calls, mux
from runtimed.nri.calls import Call
from runtimed.rpc import ttrpc

_INDEX = re.compile(r"[0-9]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_CALLS_AT_ONCE = 16  # of a plugin to the daemon
_SHUTDOWN_S = 1.0  # for a plugin to take note that the daemon ends

T = TypeVar("T", bound=Message)
Updater = Callable[[str, pb.UpdateContainersRequest], Awaitable[pb.UpdateContainersResponse]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a plugin is called, and when its turn is: plugins are asked in the order of their indices."""

    index: str
    name: str

    def __str__(self) -> str:
        return f"{self.index}-{self.name}"

    def check(self) -> "Identity":
        """Return it. Raises InvalidArgument."""
        if not _INDEX.fullmatch(self.index):
            raise InvalidArgument(f"NRI plugin index {self.index[:32]!r}: must be two digits, such as 10")
        if not _NAME.fullmatch(self.name):
            raise InvalidArgument(f"NRI plugin name {self.name[:64]!r}: must be letters, digits and any of _.+-")
        return self


class Connection:
    """A plugin. *identity* is that of one that was launched; others say it themselves.

    *update* is called for what the plugin asks of containers whenever it likes.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identity: Identity | None,
        update: Updater,
        request_timeout_s: float,
    ) -> None:
        self._given = identity
        self.identity = identity or Identity("", "?")
        self._update = update
        self._timeout_s = request_timeout_s
        self._events = 0
        self._tells_by_state_change = False
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mux = mux.Mux(reader, writer)
        channel, served = self._mux.open(mux.PLUGIN), self._mux.open(mux.RUNTIME)
        self._client = ttrpc.Client(channel, channel, "NRI plugin")
        service = {
            "RegisterPlugin": ttrpc.Method(pb.RegisterPluginRequest, self._register),
            "UpdateContainers": ttrpc.Method(pb.UpdateContainersRequest, self._update_containers),
        }
        server = ttrpc.Server({calls.RUNTIME_SERVICE: service})
        self._serving = asyncio.create_task(server.converse(served, served, _CALLS_AT_ONCE))
        self._mux.start()

    def __str__(self) -> str:
        return str(self.identity)

    @property
    def closed(self) -> "asyncio.Future[None]":
        """Done once the connection is gone."""
        return self._client.closed

    async def begin(self, request: pb.ConfigureRequest) -> None:
        """Wait until the plugin has registered, and configure it; the limits are those that it is told of.

        Raises:
            DeadlineExceeded, Unavailable: it has not in time, or is gone.
            InvalidArgument: a name or index that cannot be, or events that are not known.
        """
        limit_s = request.registration_timeout / 1000
        await asyncio.wait({self._registered, self.closed}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._registered.done() and not self.closed.done():
            raise DeadlineExceeded(f"NRI plugin {self}: has not registered within {limit_s:g} s")
        if self._registered.done():
            self._registered.result()
        answer = await self._call("Configure", request, pb.ConfigureResponse)
        if answer.events & ~calls.ALL_EVENTS:
            raise InvalidArgument(f"NRI plugin {self}: asks for events {answer.events:#x}, of which some are not known")
        self._events = answer.events or calls.ALL_EVENTS

    def wants(self, call: Call) -> bool:
        """Say whether it is to be told."""
        return bool(self._events & calls.bit(call.event))

    async def ask(self, call: Call, request: Any) -> Any:
        """Return the answer.

        Raises:
            DeadlineExceeded, Unavailable: none in time; the connection is gone.
            RuntimedError: what the plugin says.
        """
        if call.is_state_change and not self._tells_by_state_change:
            try:
                return await self._call(call.method, request, call.response)
            except Unimplemented:  # what plugins before NRI 0.11 answer
                self._tells_by_state_change = True
        if call.is_state_change:
            event = pb.StateChangeEvent(event=pb.Event.Name(call.event), pod=request.pod)
            if "container" in request.DESCRIPTOR.fields_by_name:
                event.container.CopyFrom(request.container)
            await self._call("StateChange", event, pb.Empty)
            return call.response()
        return await self._call(call.method, request, call.response)

    async def synchronize(self, request: pb.SynchronizeRequest, limit_s: float) -> pb.SynchronizeResponse:
        """Send a piece of what there is. Raises like :meth:`ask`."""
        return await self._call("Synchronize", request, pb.SynchronizeResponse, limit_s)

    async def close(self, *, shutdown: bool = False) -> None:
        """Disconnect; with *shutdown* it is told first, and has a moment for it."""
        if shutdown and not self.closed.done():
            with suppress(RuntimedError):
                await self._call("Shutdown", pb.Empty(), pb.Empty, min(_SHUTDOWN_S, self._timeout_s))
        self._serving.cancel()
        await self._client.close()
        await asyncio.wait([self._serving])
        if not self._registered.done():
            self._registered.cancel()

    async def _call(self, method: str, request: Message, response: type[T], limit_s: float | None = None) -> T:
        return await self._client.call(calls.SERVICE, method, request, response, limit_s or self._timeout_s)

    async def _register(self, request: pb.RegisterPluginRequest, metadata: Mapping[str, str]) -> pb.Empty:
        if self._registered.done():
            raise FailedPrecondition(f"NRI plugin {self}: is registered already")
        try:
            self.identity = self._given or Identity(request.plugin_idx, request.plugin_name).check()
        except InvalidArgument as exc:
            self._registered.set_exception(exc)
            raise
        self._registered.set_result(None)
        return pb.Empty()

    async def _update_containers(
        self, request: pb.UpdateContainersRequest, metadata: Mapping[str, str]
    ) -> pb.UpdateContainersResponse:
        if not self._events:
            raise FailedPrecondition("NRI plugin: not registered and configured yet")
        return await self._update(str(self), request)
