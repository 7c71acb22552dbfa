"""Ending connections to peers that send too little: a byte now and then would hold a worker forever."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    interim answers, headers, trailers), ends as well, as an error of whoever reads there. Time in which nobody reads,
    because the disk is slow, does not count. A context manager.
    """

    def __init__(self, min_rate: int = MIN_RATE, window_s: float = WINDOW_S) -> None:
        self.min_rate = min_rate
        self.has_barked = False
        self._window_s = window_s
        self._received = 0
        self._away_s = 0.0
        self._away_since: float | None = None
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

    @contextmanager
    def away(self) -> Iterator[None]:
        """Do something else than reading meanwhile."""
        self._away_since = time.monotonic()
        try:
            yield
        finally:
            self._away_s, self._away_since = self._away(), None

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
        before, away_before = self._received, self._away()
        while not self._is_over.wait(self._window_s):
            now, away = self._received, self._away()
            listened_s = self._window_s - (away - away_before)
            if listened_s > self._window_s / 2 and now - before < self.min_rate * listened_s:
                self.has_barked = True
                self.end_all()
            before, away_before = now, away

    def _away(self) -> float:
        """Return for how long nobody has read, in all."""
        since = self._away_since
        return self._away_s + (time.monotonic() - since if since is not None else 0.0)
