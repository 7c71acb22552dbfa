"""Requests that make another protocol of an HTTP connection: at the URLs that Exec, Attach and PortForward answer."""

import asyncio
import importlib
from asyncio import StreamReader, StreamWriter, sslproto
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from runtimed.errors import Internal, InvalidArgument, NotFound, RuntimedError, Unavailable

if TYPE_CHECKING:
    from ssl import SSLContext

_WITHIN_S = 30.0
_LIMIT = 64 << 10  # bytes of an answer's head, and of what a refusal says


@asynccontextmanager
async def upgraded(
    url: str, method: str, headers: Mapping[str, str], *, authority: str | None = None
) -> AsyncIterator[tuple[StreamReader, StreamWriter, dict[str, str]]]:
    """Hold a connection on which the server has agreed to speak what *headers* ask for; with it, its own headers.

    *authority* is a PEM file with the certificates that the server's must come from, "" for any; None: the system's.

    Raises:
        InvalidArgument: *url* is none of HTTP, or the file has no certificates.
        Unavailable: the server cannot be reached, or its certificate is not trusted.
        NotFound, Internal: it refuses, and says so.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidArgument(f"the runtime answers with {url!r}, which is no URL of a streaming server")
    secure = _context(authority) if parts.scheme == "https" else None
    where = f"streaming server {parts.netloc}"
    try:
        async with asyncio.timeout(_WITHIN_S):
            port = parts.port or (443 if secure else 80)
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
    except (OSError, TimeoutError) as exc:  # of TLS, too
        error = Unavailable(f"{where}: {exc or 'no answer'}")
        if secure is not None and "CERTIFICATE" in str(exc):
            error.add_note("give the authority it is signed by, with --tls-ca FILE, or '' to trust any")
        raise error from None
    try:
        try:
            async with asyncio.timeout(_WITHIN_S):
                answered = await _ask(reader, writer, parts, method, headers)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as exc:
            raise Unavailable(f"{where}: {exc or 'no answer'}") from None
        yield reader, writer, answered
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _ask(
    reader: StreamReader, writer: StreamWriter, parts: SplitResult, method: str, headers: Mapping[str, str]
) -> dict[str, str]:
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    fields = {"Host": parts.netloc, "Connection": "Upgrade", **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if method == "POST":
        lines.append("Content-Length: 0")
    writer.write("\r\n".join([*lines, "", ""]).encode())
    status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answered = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    code = status.split(" ")[1:2]
    if code == ["101"]:
        return answered
    length = min(int(answered.get("content-length") or _LIMIT), _LIMIT)
    said = (await reader.read(length)).decode(errors="replace").strip()
    raise _refusal(code, said or status)


def _refusal(code: list[str], said: str) -> RuntimedError:
    return (NotFound if code == ["404"] else Internal)(f"streaming server: {said}")


def _context(authority: str | None) -> "SSLContext":
    import ssl  # rctl is started without it

    if getattr(sslproto, "ssl", None) is None:  # and so was asyncio: see runtimed.cli.program
        importlib.reload(sslproto)
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"--tls-ca {authority!r}: {exc}") from None
    if authority == "":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
