"""What happens around every RPC: errors become statuses, and the request is logged once, at debug."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from runtimed.errors import STATUSES, RuntimedError
from runtimed.rpc.grpc_server import Abort
from runtimed.services.context import Context

log = logging.getLogger(__name__)

# Hears of each call that has ended: its type, as Go's servers call it, its path, its status's name, its seconds.
Observe = Callable[[str, str, str, float], None]

# The message travels as a header, and clients drop a response whose headers exceed 8 KiB or so.
_LONGEST_MESSAGE = 4096  # bytes; what is not ASCII takes three times as many on the wire


def wrapped(handler: Any, path: str, observe: Observe | None = None) -> Callable[..., Any]:
    """Return what a server calls of a method's handler: answers a RuntimedError with its status.

    So servicers only raise. Any other exception is a bug: logged with its traceback, UNKNOWN on the wire with nothing
    of the inside in it. A cancelled call stays cancelled.
    """
    requests = "stream" if handler.request_streaming else "unary"
    responses = "stream" if handler.response_streaming else "unary"
    wrap = _stream if handler.response_streaming else _unary
    kind = _KINDS[handler.request_streaming, handler.response_streaming]
    heard = None if observe is None else partial(observe, kind)
    return wrap(getattr(handler, f"{requests}_{responses}"), path, heard)


_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
_Heard = Callable[[str, str, float], None] | None


def _unary(method: Callable[..., Awaitable[Any]], name: str, heard: _Heard) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        async with _answered(name, context, heard):
            return await method(request, context)

    return call


def _stream(method: Callable[..., Any], name: str, heard: _Heard) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _answered(name, context, heard):
            answers = method(request, context)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()

    return call


@asynccontextmanager
async def _answered(name: str, context: Context, heard: _Heard) -> AsyncIterator[None]:
    started = time.monotonic()
    code = "CANCELLED"  # unless it gets to an end
    try:
        yield
        code = "OK"
    except RuntimedError as exc:
        code = STATUSES[exc.code]
        raise Abort(exc.code, _shortened(str(exc))) from None
    except Abort as exc:  # of the server: the request cannot be read
        code = STATUSES[exc.code]
        raise
    except Exception as exc:
        code = "UNKNOWN"
        log.exception("request failed unexpectedly", extra={"method": name})
        message = f"unexpected {type(exc).__name__} in the daemon; its log has the details"
        raise Abort(RuntimedError.code, message) from None
    finally:
        took_s = time.monotonic() - started
        log.debug("request", extra={"method": name, "code": code, "took_ms": round(took_s * 1000, 3)})
        if heard is not None:
            heard(name, code, took_s)


def _shortened(message: str) -> str:
    longest = _LONGEST_MESSAGE if message.isascii() else _LONGEST_MESSAGE // 12
    return message if len(message) <= longest else f"{message[:longest]}..."
