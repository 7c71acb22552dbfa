"""Learning that a client has left while nothing is read from it."""

import asyncio
import select
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager


class HangUp(AbstractContextManager["HangUp"]):
    """Calls *callback* once when the peer of *transport* has closed its end, or is gone; until :meth:`close`."""

    def __init__(self, transport: asyncio.BaseTransport, callback: Callable[[], None]) -> None:
        self.has_come = False
        self._callback = callback
        self._epoll = select.epoll()
        loop = asyncio.get_running_loop()
        connection = None if transport.is_closing() else transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:  # it is closed here already
            loop.call_soon(self._come)
            return
        self._epoll.register(connection.fileno(), select.EPOLLRDHUP)
        loop.add_reader(self._epoll.fileno(), self._come)

    def close(self) -> None:
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _come(self) -> None:
        if self._epoll.closed:
            return
        self.has_come = True
        self.close()
        self._callback()


def watch_over(transport: asyncio.BaseTransport) -> None:
    """Have the kernel find out within two minutes that a peer has gone without a word."""
    connection: socket.socket = transport.get_extra_info("socket")
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
