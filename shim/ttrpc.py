"""ttrpc on the shim's loop: the server of the Task API, and the client that sends events. Frames: runtimed.rpc.frames.

The daemon's own ttrpc (runtimed.rpc.ttrpc) does the same on asyncio.
"""

import _socket  # not socket, whose wrappers cost each shim 0.1 MB of memory
from collections.abc import Callable, Collection, Coroutine, Mapping
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
from shim import log, loop
from shim.messages import KeyValue, Request, Response, RpcStatus
from shim.proto import DecodeError, Message

M = TypeVar("M", bound=Message)


class Service(Protocol):
    """Has an async method of the request by the name of each RPC, and says of which type that is.

    Those named in *READS* are cancelled when the caller leaves, or its time is over; the others go on to their end.
    """

    @property
    def REQUESTS(self) -> Mapping[str, type[Message]]: ...
    @property
    def READS(self) -> Collection[str]: ...


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
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._read)

    def send(self, stream: int, type: int, payload: bytes) -> None:
        """Send a frame, or keep it until the peer takes it; until then nothing more is read from it."""
        if not self.is_open:
            return
        was_waiting = bool(self._unsent)
        self._unsent += frames.packed(stream, type, payload)
        if not was_waiting:
            self._write()
            if self._unsent and self.is_open:
                loop.remove_reader(self._socket.fileno())
                loop.add_writer(self._socket.fileno(), self._write_on)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())
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
            loop.remove_writer(self._socket.fileno())
            loop.add_reader(self._socket.fileno(), self._read)


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

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._peers)

    def serve(self, sock: _socket.socket) -> None:
        """Begin to accept clients on *sock*, a listening unix socket that the server will close."""
        sock.setblocking(False)
        self._listening = sock
        loop.add_reader(sock.fileno(), self._accept)

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
            loop.remove_reader(self._listening.fileno())
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
            loop.remove_reader(listening.fileno())
            loop.call_later(_ACCEPT_AGAIN_S, lambda: self._resume(listening))
            return
        self.attach(_socket.socket(fileno=fd))

    def _resume(self, listening: _socket.socket) -> None:
        if listening.fileno() >= 0:
            loop.add_reader(listening.fileno(), self._accept)


class _Peer:
    """One client of a server, and its calls under way."""

    def __init__(self, sock: _socket.socket, services: Mapping[str, Service], gone: Callable[["_Peer"], None]) -> None:
        self._services = services
        self._gone = gone
        self._last_stream = 0
        self._calls: set[loop.Task[None]] = set()
        self.connection = _Connection(sock, self._received, self._ended)

    def _received(self, frame: Frame) -> None:
        if frame.type != frames.REQUEST:
            return  # data of a stream that we refused
        refusal = frames.refusal(frame, self._last_stream)
        self._last_stream = max(self._last_stream, frame.stream)
        call = loop.spawn(self._answer(frame, refusal))
        self._calls.add(call)
        call.add_callback(lambda: self._calls.discard(call))

    def _ended(self) -> None:
        for call in self._calls:
            call.cancel()
        self._gone(self)

    async def _answer(self, frame: Frame, refusal: RuntimedError | None) -> None:
        try:
            if refusal is not None or frame.payload is None:
                raise refusal or ResourceExhausted(frames.too_long(frame.length))
            answer = await self._call(frame.payload)
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

    async def _call(self, payload: bytes) -> Message:
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
        limit = loop.timeout(limit_s)
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
