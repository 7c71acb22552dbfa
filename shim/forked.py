"""Work that blocks, or that leaves much behind in memory: done by a process forked for it, which then ends."""

import os
from collections.abc import Callable

from runtimed.errors import Internal, RuntimedError, from_code, from_os_error
from shim.exits import Children, too_many_processes

_MAX_MESSAGE = 4000  # bytes; a pipe holds them without a reader


async def forked(children: Children, func: Callable[..., object], *args: object) -> None:
    """Call *func* in a process of its own, for what it does outside of it.

    Raises:
        RuntimedError: *func* raised it; an OSError is the class that its errno stands for.
        ResourceExhausted: there can be no further process.
        Internal: it failed otherwise.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = os.fork()
        except BlockingIOError:
            raise too_many_processes() from None
        if pid == 0:
            _call(writer, func, args)
        try:
            child = children.own(pid)
        finally:
            os.close(writer)
        status = (await child.exited).status
        said = os.read(reader, _MAX_MESSAGE) if status else b""
    finally:
        os.close(reader)
    if status:
        code, _, message = said.decode(errors="replace").partition(" ")
        if not code:
            raise Internal(f"a process forked for {func.__name__} ended with status {status}")
        raise from_code(int(code), message)


def _call(writer: int, func: Callable[..., object], args: tuple[object, ...]) -> None:
    """Never comes back."""
    try:
        func(*args)
        os._exit(0)
    except OSError as exc:
        error: RuntimedError = from_os_error(exc, func.__name__)
    except RuntimedError as exc:
        error = exc
    except BaseException as exc:
        error = Internal(f"{func.__name__}: {type(exc).__name__}: {exc}")
    try:
        os.write(writer, f"{error.code} {error}".encode(errors="replace")[:_MAX_MESSAGE])
    finally:
        os._exit(1)
