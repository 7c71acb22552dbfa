"""The socket to which plugins connect themselves."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtimed.directories import clear_socket
from runtimed.errors import FailedPrecondition, PermissionDenied, RuntimedError
from runtimed.rpc import frames
from runtimed.threads import blocking

log = logging.getLogger(__name__)


class Listener:
    """*connected* gets the streams of each process of our own user that connects."""

    def __init__(self, path: Path, connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> None:
        self._path = path
        self._connected = connected
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Begin to accept. Raises FailedPrecondition: another runtime listens there, or the socket cannot be made."""
        sock = await blocking(_bound, self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock)

    async def close(self) -> None:
        """Accept no more, and remove the socket if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            frames.check_peer(writer.get_extra_info("socket"))
        except PermissionDenied as exc:
            log.warning("an NRI plugin was turned away: %s", exc)
            writer.close()
            return
        self._connected(reader, writer)


def _bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        clear_socket(path)
        sock.bind(os.fspath(path))
        path.chmod(0o600)  # before that nobody else could write to it, either, and who connects is looked at
        sock.listen()
    except OSError as exc:
        sock.close()
        raise FailedPrecondition(f"nri.socket {path}: cannot listen on it: {exc.strerror}") from None
    except RuntimedError as exc:
        sock.close()
        raise FailedPrecondition(f"nri.socket: {exc}") from None
    return sock
