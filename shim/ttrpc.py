"""ttrpc on the shim's loop: the server of the Task API, and the client that sends events. Frames: runtimed.rpc.frames.

The daemon's own ttrpc (runtimed.rpc.ttrpc) does the same on asyncio.
"""

import _socket  # not socket, whose wrappers cost each shim 0.1 MB of memory
from collections.abc import Callable, Collection, Coroutine, Mapping
from math import inf
from time import monotonic
from typing import Any, Protocol, TypeVar

from runtimed.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
    Unimplemented,
    from_code,
    from_os_error,
)
from runtimed.rpc import frames
from runtimed.rpc.frames import Frame
from shim import log, loop, poller
from shim.messages import KeyValue, Request, Response, RpcStatus
from shim.proto import DecodeError, Message

M = TypeVar("M", bound=Message)


class Service(Protocol):
    """Has an async method of the request by the name of each RPC, and says of which type that is.

    Those named in *READS* are cancelled when the caller leaves, or its time is over; the others go on to their end.
    Those named in *RESUMABLE*, reads too, may be given up while they wait and are called again by the next worker.
    """

    @property
    def REQUESTS(self) -> Mapping[str, type[Message]]: ...
    @property
    def READS(self) -> Collection[str]: ...
    @property
    def RESUMABLE(self) -> Collection[str]: ...


_READ_SIZE = 64 << 10  # bytes
_ACCEPT_AGAIN_S = 0.2


class _Connection:
    """A connected socket: frames come to *received*, its end is told to *ended* once."""

    def __init__(self, sock: _socket.socket, received: Callable[[Frame], None], ended: Callable[[], None]) -> None:
        self._socket = sock
        self._received = received
        self._ended = ended
        self._splitter = frames.Splitter()
        self._unsent = bytearray()
        self.is_open = True
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_socket": self._socket.fileno() if self.is_open else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.is_open:
            self._socket = _socket.socket(fileno=state["_socket"])
            self._begin()

    def _begin(self) -> None:
        self._socket.setblocking(False)
        poller.add_reader(self._socket.fileno(), self._read, resumable=True)

    def send(self, stream: int, type: int, payload: bytes) -> None:
        """Send a frame, or keep it until the peer takes it; until then nothing more is read from it."""
        if not self.is_open:
            return
        was_waiting = bool(self._unsent)
        self._unsent += frames.packed(stream, type, payload)
        if not was_waiting:
            self._write()
            if self._unsent and self.is_open:
                poller.remove_reader(self._socket.fileno())
                poller.add_writer(self._socket.fileno(), self._write_on)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            poller.remove_reader(self._socket.fileno())
            poller.remove_writer(self._socket.fileno())
            self._socket.close()
            self._ended()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for frame in self._splitter.feed(data):
            self._received(frame)

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _write_on(self) -> None:
        self._write()
        if not self._unsent and self.is_open:
            poller.remove_writer(self._socket.fileno())
            poller.add_reader(self._socket.fileno(), self._read, resumable=True)


def connected(path: str) -> _socket.socket:
    """Return a socket connected to the unix socket *path*.

    Raises:
        Unavailable: nobody listens there, or the queue of who does is full.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(path)  # a unix socket connects at once or not at all
    except BlockingIOError:
        sock.close()
        raise Unavailable(f"ttrpc server at {path}: its queue is full") from None
    except FileNotFoundError:
        sock.close()
        raise Unavailable(f"ttrpc server at {path}: there is no such socket") from None
    except OSError as exc:
        sock.close()
        raise from_os_error(exc, f"ttrpc server at {path}") from exc
    return sock


class Client:
    """The client on a connected socket, which it closes. Any number of calls may be under way at once."""

    def __init__(self, sock: _socket.socket) -> None:
        self._peer = str(sock.getpeername() or "a socket pair")
        self._stream = -1
        self._pending: dict[int, loop.Future[Response]] = {}
        self._connection = _Connection(sock, self._received, self._ended)

    @property
    def is_open(self) -> bool:
        return self._connection.is_open

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        limit_s: float,
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """Call a method and return its response.

        Raises:
            DeadlineExceeded: no answer within *limit_s*; the server may still be working on it.
            Unavailable: the connection is gone, or went before the answer came.
            RuntimedError: the error the server answered, as the class of its code.
        """
        call = Request(
            service=service,
            method=method,
            payload=request.SerializeToString(),
            timeout_nano=max(1, int(limit_s * 1e9)),
            metadata=[KeyValue(key=key, value=value) for key, value in (metadata or {}).items()],
        )
        if not self.is_open:
            raise Unavailable(f"connection to {self._peer} is closed")
        self._stream += 2
        stream = self._stream
        answer = self._pending[stream] = loop.Future()
        try:
            with loop.timeout(limit_s):
                self._connection.send(stream, frames.REQUEST, call.SerializeToString())
                response = await answer
        except TimeoutError:
            raise DeadlineExceeded(f"{service}/{method}: no answer from {self._peer} within {limit_s} s") from None
        finally:
            self._pending.pop(stream, None)
        if response.status is not None and response.status.code:
            raise from_code(response.status.code, response.status.message)
        try:
            return response_type.FromString(response.payload)
        except DecodeError:
            raise Internal(f"{service}/{method}: {self._peer} sent a malformed response") from None

    def close(self) -> None:
        """Disconnect. Calls under way fail with Unavailable."""
        self._connection.close()

    def _received(self, frame: Frame) -> None:
        answer = self._pending.get(frame.stream)
        if frame.type != frames.RESPONSE or answer is None or answer.done():
            return
        try:
            if frame.payload is None:
                raise ResourceExhausted(frames.too_long(frame.length))
            answer.set_result(Response.FromString(frame.payload))
        except DecodeError:
            answer.set_exception(Internal("the answer is not a ttrpc response"))
        except RuntimedError as exc:
            answer.set_exception(exc)

    def _ended(self) -> None:
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"connection to {self._peer} closed before the answer"))


class Server:
    """Answers calls for *services*, by their full names. Only peers with this process's user ID may connect."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._listening: _socket.socket | None = None
        self._peers: set[_Peer] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_listening": self._listening.fileno() if self._listening is not None else -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if state["_listening"] >= 0:
            self.serve(_socket.socket(fileno=state["_listening"]))

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._peers)

    @property
    def next_deadline(self) -> float:
        """The time, by the monotonic clock, at which a resumable call is to be given up."""
        return min((deadline for peer in self._peers for deadline in peer.deadlines), default=inf)

    def serve(self, sock: _socket.socket) -> None:
        """Begin to accept clients on *sock*, a listening unix socket that the server will close."""
        sock.setblocking(False)
        self._listening = sock
        poller.add_reader(sock.fileno(), self._accept, resumable=True)

    def attach(self, sock: _socket.socket) -> None:
        """Serve one client, connected already, on *sock*, which the server will close."""
        try:
            frames.check_peer(sock)
        except PermissionDenied as exc:
            log.warning(str(exc))
            sock.close()
            return
        self._peers.add(_Peer(sock, self._services, self._peers.discard))

    def close(self) -> None:
        """Stop accepting, cancel the calls under way, disconnect everybody."""
        if self._listening is not None:
            poller.remove_reader(self._listening.fileno())
            self._listening.close()
        for peer in list(self._peers):
            peer.connection.close()

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            fd, _ = self._listening._accept()  # type: ignore[attr-defined]  # socket.accept is made of it
        except BlockingIOError:
            return
        except OSError as exc:
            # Out of descriptors, say. The client stays in the queue and makes this be called at once again: wait.
            log.error(f"a client cannot be accepted: {exc.strerror}")
            listening = self._listening
            poller.remove_reader(listening.fileno())
            poller.call_later(_ACCEPT_AGAIN_S, lambda: self._resume(listening))
            return
        self.attach(_socket.socket(fileno=fd))

    def _resume(self, listening: _socket.socket) -> None:
        if listening.fileno() >= 0:
            poller.add_reader(listening.fileno(), self._accept, resumable=True)


class _Peer:
    """One client of a server, and its calls under way."""

    def __init__(self, sock: _socket.socket, services: Mapping[str, Service], gone: Callable[["_Peer"], None]) -> None:
        self._services = services
        self._gone = gone
        self._last_stream = 0
        self._calls: dict[loop.Task[None], tuple[Frame, float]] = {}  # each with its deadline, by the monotonic clock
        self.connection = _Connection(sock, self._received, self._ended)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_calls": list(self._calls.values())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _calls={})
        for frame, deadline in state["_calls"]:
            self._begin(frame, None, deadline)

    @property
    def deadlines(self) -> list[float]:
        return [deadline for _, deadline in self._calls.values()]

    def _received(self, frame: Frame) -> None:
        if frame.type != frames.REQUEST:
            return  # data of a stream that we refused
        refusal = frames.refusal(frame, self._last_stream)
        self._last_stream = max(self._last_stream, frame.stream)
        self._begin(frame, refusal)

    def _begin(self, frame: Frame, refusal: RuntimedError | None, deadline: float = inf) -> None:
        call = loop.spawn(self._answer(frame, refusal, deadline))
        self._calls[call] = frame, deadline
        call.add_callback(lambda: self._ended_one(call))

    def _ended_one(self, call: loop.Task[None]) -> None:
        del self._calls[call]

    def _ended(self) -> None:
        for call in self._calls:
            call.cancel()
        self._gone(self)

    async def _answer(self, frame: Frame, refusal: RuntimedError | None, deadline: float) -> None:
        try:
            if refusal is not None or frame.payload is None:
                raise refusal or ResourceExhausted(frames.too_long(frame.length))
            answer = await self._call(frame, frame.payload, deadline)
            payload = Response(payload=answer.SerializeToString()).SerializeToString()
            if len(payload) > frames.MAX_MESSAGE:
                raise ResourceExhausted(frames.too_long(len(payload)))
        except RuntimedError as exc:
            payload = _error(exc.code, str(exc))
        except OSError as exc:  # no descriptors left, say
            log.exception("a call failed", exc)
            error = from_os_error(exc, "shim")
            payload = _error(error.code, str(error))
        except Exception as exc:
            log.exception("a call failed", exc)
            payload = _error(RuntimedError.code, f"{type(exc).__name__}: {exc}")
        self.connection.send(frame.stream, frames.RESPONSE, payload)

    async def _call(self, frame: Frame, payload: bytes, deadline: float) -> Message:
        try:
            call = Request.FromString(payload)
        except DecodeError:
            raise InvalidArgument("not a ttrpc request") from None
        service = self._services.get(call.service)
        if service is None:
            raise Unimplemented(f"service {call.service}")
        request_type = service.REQUESTS.get(call.method)
        if request_type is None:
            raise Unimplemented(f"method {call.method} of service {call.service}")
        try:
            request = request_type.FromString(call.payload)
        except DecodeError:
            raise InvalidArgument(f"{call.service}/{call.method}: malformed request") from None
        limit_s = call.timeout_nano / 1e9 if call.timeout_nano > 0 else None
        is_resumable = call.method in service.RESUMABLE
        if limit_s is not None and deadline == inf:
            deadline = monotonic() + limit_s
        limit = loop.timeout(max(0.0, deadline - monotonic()) if limit_s is not None else None, resumable=is_resumable)
        if is_resumable:
            task = loop.current()
            task.resumable = True
            self._calls[task] = frame, deadline
        try:
            with limit:
                answering: Coroutine[Any, Any, Message] = getattr(service, call.method)(request)
                return await (answering if call.method in service.READS else loop.spawn(answering))
        except TimeoutError:
            if limit.is_expired:
                raise DeadlineExceeded(f"{call.service}/{call.method}: not done within {limit_s:g} s") from None
            raise


def _error(code: int, message: str) -> bytes:
    status = RpcStatus(code=code, message=message[: frames.MAX_MESSAGE // 8])
    return Response(status=status).SerializeToString()
