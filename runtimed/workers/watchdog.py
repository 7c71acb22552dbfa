"""Ending connections to peers that send too little: a byte now and then would hold a worker forever."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

MIN_RATE = 1024  # bytes a second
WINDOW_S = 60.0


class Connected(Protocol):
    """What has a socket, once it is connected."""

    @property
    def wire(self) -> socket.socket | None: ...


class Watchdog:
    """A thread that shuts all watched connections down when they bring less than *min_rate* over *window_s* together.

    Only bytes of a body count. So whatever else a peer can be slow with, or go on with without an end (a handshake,
    interim answers, headers, trailers), ends as well, as an error of whoever reads there. A context manager.
    """

    def __init__(self, min_rate: int = MIN_RATE, window_s: float = WINDOW_S) -> None:
        self.min_rate = min_rate
        self.has_barked = False
        self._least = min_rate * window_s
        self._window_s = window_s
        self._received = 0
        self._connections: list[Connected] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def watch(self, connection: Connected) -> None:
        """Watch *connection* as well."""
        self._connections.append(connection)

    def received(self, count: int) -> None:
        """Take note of *count* bytes."""
        self._received += count

    def end_all(self) -> None:
        """Shut all connections down: whoever waits for one of them goes on at once."""
        for connection in list(self._connections):
            if (wire := connection.wire) is not None:
                with suppress(OSError):
                    # Not the method of an SSLSocket, which must not be called beside one that reads.
                    socket.socket.shutdown(wire, socket.SHUT_RDWR)

    def _watch(self) -> None:
        before = self._received
        while not self._is_over.wait(self._window_s):
            if self._received - before < self._least:
                self.has_barked = True
                self.end_all()
            before = self._received
