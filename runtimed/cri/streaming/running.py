"""One exec or attach with its client: the call to the runtime, and what is said when it has ended."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec

from runtimed.cri.streaming import status
from runtimed.cri.streaming.session import Input, Runtime, Session
from runtimed.cri.streaming.tickets import Ticket
from runtimed.errors import RuntimedError

log = logging.getLogger(__name__)
_MAX_RESIZE = 1024  # bytes


class _Size(msgspec.Struct, rename="pascal"):
    width: int = 0
    height: int = 0


async def run(runtime: Runtime, ticket: Ticket, session: Session, gone: asyncio.Event) -> tuple[bytes, str]:
    """Run the request; return its metav1.Status and the error in words, "" if there is none.

    When *gone* is set the runtime's call is cancelled.
    """
    if ticket.kind == "exec":
        call: Coroutine[Any, Any, int | None] = runtime.exec(ticket.target, list(ticket.command), ticket.tty, session)
    else:
        call = runtime.attach(ticket.target, ticket.tty, session)
    try:
        code = await unless(call, gone)
    except RuntimedError as exc:
        return status.failure(str(exc)), str(exc)
    except Exception:
        log.exception("streaming request failed")
        return status.failure("internal error"), "internal error"
    if code:
        return status.exit_code(code), f"command terminated with exit code {code}"
    return status.success(), ""


async def unless(call: Coroutine[Any, Any, Any], gone: asyncio.Event) -> Any:
    """Return what *call* returns; it is cancelled when *gone* is set, and None is returned."""
    calling, leaving = asyncio.create_task(call), asyncio.create_task(gone.wait())
    try:
        await asyncio.wait({calling, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        calling.cancel()
        await asyncio.wait({calling, leaving})
    return None if calling.cancelled() else calling.result()


async def follow_sizes(lines: Input, session: Session) -> None:
    """Pass on what comes on a resize stream: JSON objects, one after the other."""
    rest = b""
    while data := await lines.read():
        *complete, rest = (rest + data).replace(b"}", b"}\n").split(b"\n")
        for text in complete:
            resize(text, session)
        if len(rest) > _MAX_RESIZE:
            return


def resize(text: bytes, session: Session) -> None:
    """Pass on one size; what is none is ignored."""
    if not text.strip():
        return
    try:
        size = msgspec.json.decode(text, type=_Size)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    if 0 < size.width < 1 << 16 and 0 < size.height < 1 << 16:
        session.resize(size.width, size.height)
